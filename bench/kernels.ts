/**
 * The inner loops on one thread: zero-page detection beside its plain twin, a packet's header in both directions, and
 * every backend of each codec in both directions. What a channel can reach at most follows from these.
 */
import { createZlibReceiver, createZlibSender } from '../src/methods/zlib.js';
import { createZstdReceiver, createZstdSender, zstdBackends } from '../src/methods/zstd.js';
import { zstdBinding } from '../src/methods/zstd-binding.js';
import type { ReceiveMethod, SendMethod } from '../src/methods/contract.js';
import { allocateRam } from '../src/ram/allocate.js';
import { isZeroRange, isZeroRangePlain } from '../src/ram/zero-page.js';
import {
  MULTIFD_PACKET_BYTES,
  PacketHeader,
  fillPacket,
  packetHeaderBytes,
  pagesPerPacket,
  unfillPacket,
} from '../src/wire/packet.js';
import { fillImage } from './support/image.js';
import { alternate, row, type Plot, type Row } from './support/measure.js';
import { endlessFrame } from './support/zstd-frames.js';

const PAGE = 4096;
const ROUNDS = 5;
/** A side runs so long, in a loop without a clock. */
const SIDE_MS = 20;
const ZSTD_LEVEL = 1;
const ZLIB_LEVEL = 1;
const PACKETS = 32;
const RAM_BYTES = 2 ** 28;

export async function run(): Promise<Row[]> {
  return [...(await zeroDetection()), ...(await headers()), ...(await codecs()), ...(await firstTouch())];
}

/** Nanoseconds of one call, over as many as take SIDE_MS. */
function nanoseconds(call: () => unknown): Promise<number> {
  let calls = 1;
  for (;;) {
    const begun = performance.now();
    for (let i = 0; i < calls; i++) call();
    const ms = performance.now() - begun;
    if (ms >= SIDE_MS) return Promise.resolve((ms * 1e6) / calls);
    calls *= 2;
  }
}

async function zeroDetection(): Promise<Row[]> {
  const rows: Row[] = [];
  const memory = Buffer.from(new SharedArrayBuffer(MULTIFD_PACKET_BYTES));
  const cases: [name: string, length: number, differs: number | undefined][] = [
    ['a zero page', PAGE, undefined],
    ['a zero packet of 512 KiB', MULTIFD_PACKET_BYTES, undefined],
    // Found by the look at the ends, before anything is compared.
    ['a page that differs in its last byte', PAGE, PAGE - 1],
    // The most that a comparison of a page can take.
    ['a page that differs in the byte before', PAGE, PAGE - 2],
  ];
  for (const [name, length, differs] of cases) {
    memory.fill(0);
    if (differs !== undefined) memory[differs] = 1;
    const expected = differs === undefined;
    if (isZeroRange(memory, 0, length) !== expected || isZeroRangePlain(memory, 0, length) !== expected)
      throw new Error(`zero detection: ${name} is not seen`);
    const figures = await alternate(
      {
        isZeroRange: () => nanoseconds(() => isZeroRange(memory, 0, length)),
        isZeroRangePlain: () => nanoseconds(() => isZeroRangePlain(memory, 0, length)),
      },
      ROUNDS,
    );
    for (const [side, values] of Object.entries(figures)) {
      const speed = values.map((ns) => length / ns);
      const plot: Plot = { chart: 'zero-detection', series: side, x: name };
      rows.push(row('kernels', `zero detection of ${name}: ${side}`, 'GB/s', speed, { plot }));
    }
  }
  return rows;
}

async function headers(): Promise<Row[]> {
  const pages = Uint32Array.from({ length: pagesPerPacket(PAGE) }, (_, i) => 5_000_000 + i);
  const ramblock = Buffer.alloc(256);
  ramblock.write('pc.ram', 'latin1');
  const header = Buffer.alloc(packetHeaderBytes(PAGE));
  const packet = {
    flags: 0,
    normalPages: pages.length,
    zeroPages: 0,
    nextPacketSize: MULTIFD_PACKET_BYTES,
    packetNum: 7,
    ramblock,
    pages,
  };
  const block = { index: 0, size: 2 ** 40 };
  const expectation = {
    pageSize: PAGE,
    methodFlag: 0,
    findBlock: (name: string) => (name === 'pc.ram' ? block : undefined),
  };
  const into = new PacketHeader(PAGE);
  fillPacket(header, PAGE, packet);
  unfillPacket(header, expectation, into);
  if (into.normalPages !== pages.length || into.pages.some((page, i) => page !== pages[i]))
    throw new Error('the header decodes to something else');
  const figures = await alternate(
    {
      fillPacket: () => nanoseconds(() => fillPacket(header, PAGE, packet)),
      unfillPacket: () => nanoseconds(() => unfillPacket(header, expectation, into)),
    },
    ROUNDS,
  );
  return Object.entries(figures).map(([side, values]) =>
    row('kernels', `${side}, a packet of ${pages.length} pages`, 'ns', values, {
      plot: { chart: 'header', series: side, x: `${pages.length} pages` },
    }),
  );
}

/** A guest's RAM that nobody has written yet: what the kernel, and the host of a virtual machine, take for its pages. */
async function firstTouch(): Promise<Row[]> {
  const touch = (make: (bytes: number) => SharedArrayBuffer) => (): Promise<number> => {
    const bytes = new Uint8Array(make(RAM_BYTES));
    const begun = performance.now();
    for (let at = 0; at < bytes.length; at += PAGE) bytes[at] = 1;
    return Promise.resolve(RAM_BYTES / 1e6 / (performance.now() - begun));
  };
  const sides = {
    'plain memory': touch((bytes) => new SharedArrayBuffer(bytes)),
    'allocateRam()': touch(allocateRam),
  };
  const figures = await alternate(sides, ROUNDS);
  return Object.entries(figures).map(([side, values]) =>
    row('kernels', `first touch of ${RAM_BYTES / 2 ** 20} MiB: ${side}`, 'GB/s', values),
  );
}

// ---- codecs ----

interface Backend {
  name: string;
  sender?: () => SendMethod;
  receiver?: () => ReceiveMethod;
  /** What the receiver decodes; without it what the sender makes. */
  payloads?: (pages: Buffer[]) => Promise<Buffer[]>;
}

const zlibStream = (): SendMethod => createZlibSender(ZLIB_LEVEL, true);
const ZSTD_NAMES = { node: 'zstd, Node', libzstd: "zstd, the system's libzstd", binding: 'zstd, binding' };

const BACKENDS: Backend[] = [
  { name: 'zlib, Node, one stream', sender: zlibStream, receiver: () => createZlibReceiver(PAGE, true) },
  { name: 'zlib, Node, a packet at a time', sender: () => createZlibSender(ZLIB_LEVEL, false) },
  {
    name: 'zlib, fflate',
    receiver: () => createZlibReceiver(PAGE, false),
    payloads: (pages) => compressAll(zlibStream(), pages),
  },
  ...zstdBackends().map((backend) => ({
    name: ZSTD_NAMES[backend],
    sender: () => createZstdSender(ZSTD_LEVEL, backend),
    receiver: () => createZstdReceiver(PAGE, backend),
  })),
  ...zstdBackends().map((backend) => ({
    name: `${backend === 'binding' ? 'zstd, our decoder' : ZSTD_NAMES[backend]} on a frame that goes on`,
    receiver: () => createZstdReceiver(PAGE, backend),
    payloads: async (pages: Buffer[]) =>
      endlessFrame(await zstdBinding().compress(Buffer.concat(pages), ZSTD_LEVEL), pages.length),
  })),
];

/** Copies: a sender's payload is valid until the call after the next. */
async function compressAll(sender: SendMethod, pages: Buffer[]): Promise<Buffer[]> {
  const payloads: Buffer[] = [];
  for (const packet of pages) payloads.push(Buffer.from(await sender.compress(packet)));
  sender.close();
  return payloads;
}

async function codecs(): Promise<Row[]> {
  const rows: Row[] = [];
  const memory = new SharedArrayBuffer(PACKETS * MULTIFD_PACKET_BYTES);
  fillImage(memory, 'program');
  // The channels give private memory to the codecs as well.
  const program = Buffer.from(new Uint8Array(memory));
  const pages = Array.from({ length: PACKETS }, (_, i) =>
    program.subarray(i * MULTIFD_PACKET_BYTES, (i + 1) * MULTIFD_PACKET_BYTES),
  );
  const decoded = Buffer.alloc(MULTIFD_PACKET_BYTES);
  const speed = (ms: number): number => program.length / 1e6 / ms;
  for (const { name, sender, receiver, payloads } of BACKENDS) {
    const given =
      payloads !== undefined
        ? await payloads(pages)
        : sender !== undefined
          ? await compressAll(sender(), pages)
          : [];
    const sides: Record<string, () => Promise<number>> = {};
    if (sender !== undefined) {
      sides.compress = async () => {
        const method = sender();
        const begun = performance.now();
        for (const packet of pages) await method.compress(packet);
        const figure = speed(performance.now() - begun);
        method.close();
        return figure;
      };
    }
    if (receiver !== undefined) {
      sides.decompress = async () => {
        const method = receiver();
        let ms = 0;
        for (const [i, payload] of given.entries()) {
          const begun = performance.now();
          const own = await method.decompress(payload, decoded);
          ms += performance.now() - begun;
          if (!(own ?? decoded).equals(pages[i]))
            throw new Error(`${name}: packet ${i} decodes to other bytes`);
        }
        method.close();
        return speed(ms);
      };
    }
    const figures = await alternate(sides, ROUNDS);
    for (const [side, values] of Object.entries(figures)) {
      const plot: Plot = { chart: 'codecs', series: side, x: name };
      rows.push(row('kernels', `${name}: ${side}`, 'GB/s', values, { plot }));
    }
  }
  return rows;
}
