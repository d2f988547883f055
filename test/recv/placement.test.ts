/** Where a packet's pages go, and which bitmaps tell of them (src/recv/placement.ts, payload.ts), in one thread. */
import t from 'tap';
import type { ReceiveMethod } from '../../src/methods/methods.js';
import { sharedBitmaps, viewBitmaps } from '../../src/ram/bitmap.js';
import type { BlockDescription } from '../../src/ram/block.js';
import { Payload } from '../../src/recv/payload.js';
import { Control } from '../../src/shared/control.js';
import { PacketHeader } from '../../src/wire/packet.js';

const PAGE = 4096;
const PAGES = 256;

function setUp(kind: 'shared' | 'private', method?: ReceiveMethod) {
  const ram = Buffer.from(new SharedArrayBuffer(PAGES * PAGE)).fill(0xaa);
  const block: BlockDescription = { name: 'pc.ram', size: ram.length, kind, base: 0 };
  if (kind === 'shared') block.buffer = ram.buffer;
  const control = Control.create({ channels: 1, clients: 0, pageSize: PAGE, dataBytes: 128 * PAGE });
  const bitmaps = {
    received: sharedBitmaps([PAGES]),
    present: sharedBitmaps([PAGES]),
    arrived: sharedBitmaps([PAGES]),
  };
  const payload = new Payload({ id: 0, pageSize: PAGE, blocks: [block], ...bitmaps }, control, method);
  payload.openFiles();
  const packet = new PacketHeader(PAGE);
  const begin = (
    normal: readonly number[],
    zero: readonly number[],
    bytes = normal.length * PAGE,
  ): Uint8Array => {
    packet.block = 0;
    packet.normalPages = normal.length;
    packet.zeroPages = zero.length;
    packet.nextPacketSize = bytes;
    packet.pages.set([...normal, ...zero]);
    return normal.length > 0 ? payload.begin(packet) : Buffer.alloc(0);
  };
  const setIn = (bitmap: SharedArrayBuffer): number[] => {
    const [words] = viewBitmaps(bitmap, [PAGES]);
    return Array.from({ length: PAGES }, (_, page) => page).filter(
      (page) => (words[page >>> 5] >>> (page & 31)) & 1,
    );
  };
  const marks = () => ({
    received: setIn(bitmaps.received),
    present: setIn(bitmaps.present),
    arrived: setIn(bitmaps.arrived),
  });
  return { ram, control, payload, packet, begin, marks };
}

t.test(
  'a page is present while it has data: one that becomes zero is no longer, and is not written',
  async (t) => {
    const { ram, payload, packet, begin, marks } = setUp('shared');
    let want: Uint8Array | undefined = begin([3, 4, 40], [7]);
    for (; want !== undefined; want = payload.next(packet)) want.fill(0x11);
    t.ok(payload.place(packet));
    t.same(marks(), { received: [3, 4, 7, 40], present: [3, 4, 40], arrived: [3, 4, 7, 40] });
    begin([], [40, 4]);
    t.ok(payload.place(packet));
    t.same(marks(), { received: [3, 4, 7, 40], present: [3], arrived: [3, 4, 7, 40] });
    t.ok(ram.subarray(4 * PAGE, 5 * PAGE).every((byte) => byte === 0x11));
    t.ok(ram.subarray(7 * PAGE, 8 * PAGE).every((byte) => byte === 0xaa));
  },
);

t.test(
  'what a codec has decoded into a buffer of its own comes to where the pages are taken from',
  async (t) => {
    for (const kind of ['shared', 'private'] as const) {
      const own = Buffer.alloc(2 * PAGE)
        .fill(1, 0, PAGE)
        .fill(2, PAGE);
      const { ram, control, payload, packet, begin } = setUp(kind, {
        decompress: () => Promise.resolve(own),
        close: () => {},
      });
      begin([9, 5], [], 100).fill(0x77);
      payload.takeDecoded(packet, await payload.decode(packet));
      const isPlaced = payload.place(packet);
      t.equal(isPlaced, kind === 'shared');
      // The calling thread takes them from the slot.
      const { data } = control.slotOf(0);
      const [page9, page5] = isPlaced
        ? [9, 5].map((page) => ram.subarray(page * PAGE, (page + 1) * PAGE))
        : [data.subarray(0, PAGE), data.subarray(PAGE, 2 * PAGE)];
      t.ok(
        page9.every((byte) => byte === 1),
        `${kind}: the first page`,
      );
      t.ok(
        page5.every((byte) => byte === 2),
        `${kind}: the second`,
      );
    }
  },
);
