/**
 * A whole receive channel, on this thread: packets as they come in, decoded, and their pages put in place. Its blocks lie
 * between canaries: one in shared memory, one in a file, one in private memory, which this thread fills.
 */
import { closeSync, ftruncateSync, mkdtempSync, openSync, readSync, rmSync, writeSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { Duplex } from 'node:stream';
import type { Compression } from '../../../src/index.js';
import { MultifdError } from '../../../src/errors.js';
import { sharedBitmaps, viewBitmaps } from '../../../src/ram/bitmap.js';
import { makeBlocks, type RAMBlock } from '../../../src/ram/block.js';
import { runReceiveChannel } from '../../../src/recv/channel.js';
import { Delivery } from '../../../src/recv/delivery.js';
import { Control, STOP_END, STOP_RUN } from '../../../src/shared/control.js';
import { slotDataBytes } from '../../../src/shared/layout.js';
import { CAPTURED_BLOCKS } from '../../stream/support.js';
import { readCapture } from '../../support/reference-decoder.js';
import { deviceStateBytes, packetBytes, syncBytes } from '../../support/raw-channel.js';
import { METHODS } from '../../../src/methods/methods.js';
import { Fault, bytes, cut, type Fuzzer, type Seed, type Target } from '../contract.js';
import { PAGE, cutHeader, packetsOf } from '../seeds.js';

const CANARY = Buffer.alloc(PAGE, 0xa5);
const MOST_DEVICE_BYTES = 4096;
const PIECES = [3000, 1, 5000, 200, 65536];
const FILE_BLOCK = 'pc.bios';
const PRIVATE_BLOCK = 'pc.rom';

/** A connection that has been secured already, as far as the channel sees. */
class Wire extends Duplex {
  #at = 0;
  #pieces = 0;
  readonly #input: Buffer;

  constructor(input: Buffer) {
    super({ highWaterMark: 1 });
    this.#input = input;
  }

  setKeepAlive(): this {
    return this;
  }

  override _read(): void {
    if (this.#at >= this.#input.length) return void this.push(null);
    const size = PIECES[this.#pieces++ % PIECES.length];
    this.push(this.#input.subarray(this.#at, (this.#at += size)));
  }

  override _write(_bytes: Buffer, _encoding: string, done: () => void): void {
    done();
  }
}

/** The guest's memory, and what lies around it. */
class GuestRam {
  readonly blocks: RAMBlock[];
  readonly #folder = mkdtempSync(path.join(os.tmpdir(), 'multifd-fuzz-'));
  readonly #fd: number;
  readonly #fileBytes: number;
  readonly #canaries: Buffer[] = [];
  readonly #seen = Buffer.alloc(2 * PAGE);

  constructor() {
    const file = path.join(this.#folder, 'ram');
    this.#fd = openSync(file, 'w+');
    this.#fileBytes =
      2 * PAGE + (CAPTURED_BLOCKS.find(([name]) => name === FILE_BLOCK) as [string, number])[1];
    ftruncateSync(this.#fd, this.#fileBytes);
    this.#heal();
    this.blocks = makeBlocks(
      CAPTURED_BLOCKS.map(([name, size]) => {
        if (name === FILE_BLOCK) return { name, file: { fd: this.#fd }, offset: PAGE, size };
        const length = size + 2 * PAGE;
        const buffer = name === PRIVATE_BLOCK ? new ArrayBuffer(length) : new SharedArrayBuffer(length);
        for (const at of [0, PAGE + size]) {
          const canary = Buffer.from(buffer as ArrayBuffer, at, PAGE);
          CANARY.copy(canary);
          this.#canaries.push(canary);
        }
        return { name, memory: new Uint8Array(buffer as ArrayBuffer, PAGE, size) };
      }),
      PAGE,
    );
  }

  #heal(): void {
    writeSync(this.#fd, CANARY, 0, PAGE, 0);
    writeSync(this.#fd, CANARY, 0, PAGE, this.#fileBytes - PAGE);
    for (const canary of this.#canaries) CANARY.copy(canary);
  }

  /** @throws Fault */
  check(): void {
    readSync(this.#fd, this.#seen, 0, PAGE, 0);
    const more = readSync(this.#fd, this.#seen, PAGE, PAGE, this.#fileBytes - PAGE);
    const inFile =
      more === PAGE &&
      this.#seen.subarray(0, PAGE).equals(CANARY) &&
      this.#seen.subarray(PAGE).equals(CANARY);
    const inMemory = this.#canaries.every((canary) => canary.equals(CANARY));
    if (inFile && inMemory) return;
    this.#heal();
    throw new Fault(`a write beside a block in ${inFile ? 'memory' : 'the file'}`);
  }

  close(): void {
    closeSync(this.#fd);
    rmSync(this.#folder, { recursive: true, force: true });
  }
}

function target(compression: Compression): Target {
  const ram = new GuestRam();
  const pageCounts = ram.blocks.map(({ pageCount }) => pageCount);
  const described = ram.blocks.map((block) => block.describe());
  return {
    async run(input) {
      const received = sharedBitmaps(pageCounts);
      const shape = { channels: 1, clients: 0, pageSize: PAGE, dataBytes: slotDataBytes(MOST_DEVICE_BYTES) };
      const control = Control.create(shape);
      let failed: MultifdError | undefined;
      const fail = (error: MultifdError): void => {
        failed ??= error;
        control.stop(STOP_END);
      };
      const deviceState = async (idstr: string, _instance: number, payload: Buffer): Promise<void> => {
        if (payload.length < 1 || payload.length > MOST_DEVICE_BYTES)
          throw new Fault(`${idstr}: ${payload.length} bytes`);
      };
      const delivery = new Delivery({ control, devices: new Map(), pages: undefined, deviceState, fail });
      const words = viewBitmaps(received, pageCounts);
      delivery.start(
        ram.blocks.map((block, i) => ({ block, words: words[i], arrived: undefined })),
        PAGE,
      );
      const syncing = releaseSyncs(control);
      const wire = new Wire(input) as never;
      const outcome = await runReceiveChannel(
        {
          ...{
            shared: control.shared,
            id: 0,
            compression,
            fd: -1,
            surplus: Buffer.alloc(0),
            proof: undefined,
          },
          ...{
            stallTimeoutMs: 10_000,
            pageSize: PAGE,
            blocks: described,
            deviceStateBytes: MOST_DEVICE_BYTES,
          },
          ...{ devices: undefined, received, present: undefined, arrived: undefined },
        },
        { socket: wire, raw: wire, tls: {} as never },
      );
      control.stop(STOP_END);
      await syncing;
      ram.check();
      if (failed !== undefined && failed.cause instanceof Fault) throw failed.cause;
      const error = outcome.error === undefined ? failed : MultifdError.fromPlain(outcome.error);
      // The code of what is a bug.
      if (error?.code === 'ERR_MULTIFD_WORKER') throw new Error(error.message, { cause: error.cause });
      if (error !== undefined) throw error;
    },
    close: () => ram.close(),
  };
}

/** The calling thread's part: each SYNC is let go on at once. */
async function releaseSyncs(control: Control): Promise<void> {
  let released = 0;
  while (control.stopped === STOP_RUN) {
    const seen = control.readyCount;
    for (; released < control.syncsDone(0); released++) control.releaseSync(0);
    const wait = control.waitReady(seen, 0);
    if (wait !== undefined) await wait;
  }
}

/** Packets of our own: pages that lie apart and side by side, in each block; a device. */
async function ownSeed(compression: Compression): Promise<Seed> {
  const { flag, load } = METHODS[compression];
  const sender = (await load?.())?.createSender(1);
  const seed: Seed = [];
  for (const [ramblock, pages] of [
    ['pc.ram', [7, 8, 9, 100]],
    [FILE_BLOCK, [0, 15]],
    [PRIVATE_BLOCK, [1, 31]],
  ] as const) {
    const data = Buffer.alloc(pages.length * PAGE, `pages of ${ramblock} `);
    const payload = sender === undefined ? data : Buffer.from(await sender.compress(data));
    const normal = pages.map((page) => page * PAGE);
    const packet = packetBytes({ flags: flag, ramblock, normal, zero: [2 * PAGE], payload });
    seed.push(...cutHeader(packet.subarray(0, packet.length - payload.length)), bytes(payload));
  }
  sender?.close();
  const device = deviceStateBytes({ idstr: 'vfio', instanceId: 3, payload: Buffer.alloc(50, 7) });
  return [...seed, ...cut(device, ['+4', '+4', '+4', '=256', '+4', '+4']), ...cutHeader(syncBytes())];
}

const CAPTURES: Record<Compression, string[]> = {
  none: ['q72-none.ch1', 'q100-none-legacyzero.ch1'],
  zlib: ['q72-zlib.ch1', 'q100-zlib.ch1'],
  zstd: ['q72-zstd.ch1', 'q100-zstd.ch1'],
};

function fuzzerOf(compression: Compression): Fuzzer {
  return {
    name: `channel-${compression}`,
    what: `a receive channel of method ${compression}: packets of all kinds, pages put in place`,
    runs: 600,
    // Its buffers and landing; windows of zstd.
    most: { bytes: 2 ** 26, perByte: 64 },
    words: [
      syncBytes(),
      ...CAPTURED_BLOCKS.map(([name]) => Buffer.from(`${name}\0`)),
      Buffer.from('1122334400000001', 'hex'),
    ],
    async seeds() {
      const captures = CAPTURES[compression].map((name) => {
        const all = readCapture(name).subarray(64);
        return packetsOf(all, Math.min(all.length, 2 ** 16));
      });
      return [await ownSeed(compression), ...captures];
    },
    open: () => target(compression),
  };
}

export default (['none', 'zlib', 'zstd'] as const).map(fuzzerOf);
