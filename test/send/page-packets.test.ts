/**
 * When a send channel gives a slot back, and that nothing overtakes a packet that the codec has (src/send/page-packets.ts): over a
 * real Control, with a client that fills the slot anew in the very moment in which it is its own again.
 */
import t from 'tap';
import type { SendMethod } from '../../src/methods/methods.js';
import type { BlockDescription } from '../../src/ram/block.js';
import { Compressing } from '../../src/send/compressing.js';
import { Outgoing } from '../../src/send/outgoing.js';
import { PagePackets, STAGINGS_COMPRESSED, WRITES_STAGED } from '../../src/send/page-packets.js';
import { PageSource } from '../../src/send/page-source.js';
import { Control, PAYLOAD_RAM } from '../../src/shared/control.js';
import { PacketHeader, packetHeaderBytes, unfillPacket } from '../../src/wire/packet.js';

const PAGE = 4096;
const PAGES = 1024;

interface Sent {
  normal: number[];
  zero: number[];
  payload: Buffer;
}

/**
 * @param released when the kernel has done with the pages of a write, where that is later than the write
 * @param method makes payloads when the test says so
 */
function setUp(kind: 'shared' | 'private', released?: () => Promise<void>, method?: SendMethod) {
  const ram = Buffer.from(new SharedArrayBuffer(PAGES * PAGE));
  const block: BlockDescription = { name: 'pc.ram', size: ram.length, kind, base: 0 };
  if (kind === 'shared') block.buffer = ram.buffer;
  const control = Control.create({
    channels: 1,
    clients: 1,
    pageSize: PAGE,
    dataBytes: 128 * PAGE,
    packets: PAGES / 128,
  });
  const compression = method === undefined ? 'none' : 'zstd';
  const outgoing = new Outgoing({ id: 0, pageSize: PAGE, blocks: [block], compression }, control);
  const sent: Sent[] = [];
  const expected = {
    pageSize: PAGE,
    methodFlag: method === undefined ? 0 : 0x04,
    findBlock: () => ({ index: 0, size: ram.length }),
  };
  const take = (bytes: Buffer): void => {
    for (let at = 0; at < bytes.length;) {
      const packet = new PacketHeader(PAGE);
      unfillPacket(bytes, expected, packet, at);
      at += packetHeaderBytes(PAGE);
      const { normalPages, zeroPages, nextPacketSize } = packet;
      const normal = [...packet.pages.subarray(0, normalPages)];
      const zero = [...packet.pages.subarray(normalPages, normalPages + zeroPages)];
      sent.push({ normal, zero, payload: bytes.subarray(at, at + nextPacketSize) });
      at += nextPacketSize;
    }
  };
  /** What the kernel has been given and still reads. */
  let pieces: Uint8Array[] = [];
  const kernelReads = (): void => take(Buffer.concat(pieces.splice(0)));
  const write = async (): Promise<void> => {
    outgoing.writeTo({ write: (given) => void (pieces = [...pieces, ...given]) });
    if (released === undefined) kernelReads();
  };
  const compressing = method && new Compressing(method, outgoing, write, () => {});
  const packets = new PagePackets({ id: 0, pageSize: PAGE, zeroPageDetection: 'multifd' }, control, {
    source: new PageSource([block], PAGE, method === undefined ? WRITES_STAGED : STAGINGS_COMPRESSED),
    compressing,
    outgoing,
    writesStaged: WRITES_STAGED,
    write,
    released: async () => {
      await released?.();
      kernelReads();
    },
  });
  const slot = control.slotOf(0);
  const done = control.done.bind(control);
  let returns = 0;
  control.done = (id) => {
    returns++;
    done(id);
    slot.pages.fill(PAGES - 1);
    slot.data.fill(0xee);
  };
  const queue = (pages: readonly number[], how: { range?: boolean; allZero?: boolean } = {}): void => {
    slot.type = PAYLOAD_RAM;
    slot.block = 0;
    slot.num = pages.length;
    slot.range = how.range === true;
    slot.allZero = how.allZero === true;
    slot.pages.set(pages);
  };
  return { ram, control, slot, queue, sent, packets, compressing, returns: () => returns };
}

t.test('the page list is copied before the slot is given back', async (t) => {
  const { ram, slot, queue, sent, packets, returns } = setUp('shared');
  const pages = [5, 3, 9, 700];
  for (const page of pages) ram.fill(page % 251, page * PAGE, (page + 1) * PAGE);
  queue(pages);
  await packets.send(slot);
  t.equal(returns(), 1);
  t.same(
    sent.map(({ normal, zero }) => [normal, zero]),
    [[pages, []]],
  );
});

t.test('a slot that holds the bytes is given back when the kernel does not read them any more', async (t) => {
  let release = (): void => {};
  const { slot, queue, sent, packets, returns } = setUp(
    'private',
    () => new Promise((resolve) => (release = resolve)),
  );
  queue([2, 4]);
  slot.data.fill(1, 0, PAGE).fill(2, PAGE, 2 * PAGE);
  const sending = packets.send(slot);
  await new Promise(setImmediate);
  t.equal(returns(), 0, 'the kernel reads them');
  release();
  await sending;
  t.equal(returns(), 1);
  t.same(sent[0].payload, Buffer.concat([Buffer.alloc(PAGE, 1), Buffer.alloc(PAGE, 2)]));
});

t.test('nothing overtakes a packet that the codec has', async (t) => {
  const zeroes: [string, number[], { range?: boolean; allZero?: boolean }][] = [
    ['pages that are zero', [600, 602, 604], {}],
    ['a run of them', Array.from({ length: 128 }, (_, i) => 600 + i), { range: true }],
    ['pages that are said to be zero', [600, 602], { allZero: true }],
    ['a run of those', [600, 601, 602], { range: true, allZero: true }],
  ];
  for (const [what, pages, how] of zeroes) {
    let make = (): void => {};
    const { ram, slot, queue, sent, packets, compressing } = setUp('shared', undefined, {
      compress: () => new Promise((resolve) => (make = () => resolve(Buffer.from('made')))),
      raw: (pieces) => [...pieces],
      close: () => {},
    });
    ram.fill(1, 10 * PAGE, 11 * PAGE);
    queue([10]);
    await packets.send(slot);
    t.same(sent, [], `${what}: the codec has it`);
    queue(pages, how);
    const sending = packets.send(slot);
    await new Promise(setImmediate);
    make();
    await sending;
    await compressing?.send();
    t.same(
      sent.map(({ normal, zero }) => [normal, zero]),
      [
        [[10], []],
        [[], pages],
      ],
      what,
    );
  }
});
