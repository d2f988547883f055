/**
 * Which pages have changed, and what is sent of them, with a guest that writes at the worst moment: between the look at a page and
 * the kernel's read of what is sent.
 */
import fs from 'node:fs';
import path from 'node:path';
import t, { type Test } from 'tap';
import type { BlockDescription } from '../../src/ram/block.js';
import { digestTables, viewDigests } from '../../src/ram/page-digest.js';
import { ChangedPages } from '../../src/send/changed-pages.js';
import { Outgoing } from '../../src/send/outgoing.js';
import { PagePackets, WRITES_STAGED } from '../../src/send/page-packets.js';
import { Control, PAYLOAD_RAM } from '../../src/shared/control.js';
import { PacketHeader, packetHeaderBytes, unfillPacket } from '../../src/wire/packet.js';
import { temporaryDirectory } from '../support/raw-channel.js';
import { Random } from '../support/random.js';

const PAGE = 4096;
const PACKETS = 4;
const PAGES = PACKETS * 128;
const KINDS = ['shared', 'file', 'private'] as const;
type Kind = (typeof KINDS)[number];

/** A channel's way of a page, and a destination that takes the bytes when the kernel does. */
class Model {
  readonly ram = Buffer.from(new SharedArrayBuffer(PAGES * PAGE));
  readonly there = Buffer.alloc(PAGES * PAGE);
  /** Pages that were sent in this round. */
  sent: number[] = [];
  packets = 0;
  /** What the guest does before the kernel reads. */
  meanwhile = (): void => {};
  readonly #kind: Kind;
  readonly #fd: number | undefined;
  readonly #control: Control;
  readonly #pages: PagePackets;

  constructor(t: Test, kind: Kind, zeroPageDetection: 'multifd' | 'none' = 'multifd') {
    this.#kind = kind;
    const block: BlockDescription = { name: 'pc.ram', size: this.ram.length, kind, base: 0 };
    if (kind === 'shared') block.buffer = this.ram.buffer;
    if (kind === 'file') {
      const file = path.join(temporaryDirectory(t), 'ram');
      fs.writeFileSync(file, this.ram);
      const fd = (this.#fd = block.fd = fs.openSync(file, 'r+'));
      t.teardown(() => fs.closeSync(fd));
    }
    const control = (this.#control = Control.create({
      channels: 1,
      clients: 1,
      pageSize: PAGE,
      dataBytes: PAGES * PAGE,
      packets: PACKETS,
    }));
    const outgoing = new Outgoing({ id: 0, pageSize: PAGE, blocks: [block], compression: 'none' }, control);
    const changed = new ChangedPages([block], PAGE, WRITES_STAGED, digestTables([PAGES]));
    this.#pages = new PagePackets({ id: 0, pageSize: PAGE, zeroPageDetection }, control, {
      source: changed,
      changed,
      compressing: undefined,
      outgoing,
      writesStaged: WRITES_STAGED,
      released: () => Promise.resolve(),
      write: async () => {
        this.meanwhile();
        outgoing.writeTo({ write: (pieces) => this.#take(Buffer.concat(pieces)) });
      },
    });
  }

  /** All pages, or those that are listed. */
  async round(pages?: readonly number[]): Promise<void> {
    this.sent = [];
    this.packets = 0;
    const slot = this.#control.slotOf(0);
    const listed = pages ?? Array.from({ length: PAGES }, (_, page) => page);
    slot.type = PAYLOAD_RAM;
    slot.block = 0;
    slot.num = listed.length;
    slot.range = pages === undefined;
    slot.pages.set(listed);
    if (this.#kind === 'private')
      for (const [i, page] of listed.entries())
        this.ram.copy(slot.data, i * PAGE, page * PAGE, (page + 1) * PAGE);
    await this.#pages.send(slot);
  }

  fill(page: number, value: number): void {
    this.ram.fill(value, page * PAGE, (page + 1) * PAGE);
    if (this.#fd !== undefined) fs.writeSync(this.#fd, this.ram, page * PAGE, PAGE, page * PAGE);
  }

  #take(bytes: Buffer): void {
    const header = new PacketHeader(PAGE);
    const expected = {
      pageSize: PAGE,
      methodFlag: 0,
      findBlock: () => ({ index: 0, size: PAGES * PAGE }),
    };
    for (let at = 0; at < bytes.length;) {
      const length = packetHeaderBytes(PAGE);
      unfillPacket(bytes.subarray(at, at + length), expected, header);
      at += length;
      for (let i = 0; i < header.normalPages; i++, at += PAGE)
        bytes.copy(this.there, header.pages[i] * PAGE, at, at + PAGE);
      for (let i = 0; i < header.zeroPages; i++) {
        const page = header.pages[header.normalPages + i];
        this.there.fill(0, page * PAGE, (page + 1) * PAGE);
      }
      this.sent.push(...header.pages.subarray(0, header.normalPages + header.zeroPages));
      this.packets++;
    }
  }
}

for (const kind of KINDS) {
  t.test(`${kind} memory: what has changed is sent, and nothing else`, async (t) => {
    const model = new Model(t, kind);
    for (let page = 0; page < PAGES; page += 3) model.fill(page, 1 + (page % 255));
    await model.round();
    t.equal(model.sent.length, PAGES, 'at first all, also those that are zero');
    t.ok(model.there.equals(model.ram));
    await model.round();
    t.same(model.sent, []);
    t.equal(model.packets, 0);
    const touched = [0, 1, 2, 130, 131, 300, PAGES - 1];
    for (const page of touched) model.fill(page, page === 131 ? 0 : 200);
    model.fill(3, 0);
    await model.round();
    t.same(
      model.sent.sort((a, b) => a - b),
      [0, 1, 2, 3, 130, 131, 300, PAGES - 1].filter((page) => page !== 131),
    );
    t.equal(model.packets, 1, 'side by side in one packet');
    t.ok(model.there.equals(model.ram));
    model.fill(400, 9);
    await model.round([500, 400, 7]);
    t.same(model.sent, [400], 'of a list of pages');
    t.ok(model.there.equals(model.ram));
  });

  t.test(
    `${kind} memory: a page that is A when it is hashed, B when it is sent and A again, is A there`,
    async (t) => {
      const model = new Model(t, kind);
      model.fill(5, 0xaa);
      model.fill(6, 0xaa);
      model.meanwhile = () => {
        model.fill(5, 0xbb);
        model.fill(6, 0);
      };
      await model.round();
      model.meanwhile = () => {};
      model.fill(5, 0xaa);
      model.fill(6, 0xaa);
      await model.round();
      t.same(model.sent, [], 'nothing has changed');
      t.ok(model.there.equals(model.ram));
    },
  );

  t.test(
    `${kind} memory: a zero page that is B when the packet is sent and zero again, is zero there`,
    async (t) => {
      for (const detection of ['multifd', 'none'] as const) {
        const model = new Model(t, kind, detection);
        model.fill(5, 0xaa);
        await model.round();
        model.fill(5, 0);
        model.meanwhile = () => model.fill(5, 0xbb);
        await model.round();
        model.meanwhile = () => {};
        t.same(model.sent, [5]);
        model.fill(5, 0);
        await model.round();
        t.same(model.sent, []);
        t.ok(model.there.equals(model.ram));
      }
    },
  );
}

t.test(
  'a guest that writes all the time, seeded: after a round that it has waited for, every byte is there',
  async (t) => {
    for (const kind of KINDS) {
      const random = new Random(3);
      const model = new Model(t, kind);
      model.meanwhile = () => {
        for (let i = 0; i < 40; i++) model.fill(random.below(PAGES), random.below(3));
      };
      for (let round = 0; round < 30; round++) await model.round();
      model.meanwhile = () => {};
      await model.round();
      t.ok(model.there.equals(model.ram), kind);
    }
  },
);

t.test('a digest of which only a half is the same is another one', async (t) => {
  const buffer = new SharedArrayBuffer(PAGE);
  Buffer.from(buffer).fill(1);
  const tables = digestTables([1]);
  const block: BlockDescription = { name: 'pc.ram', size: PAGE, kind: 'shared', base: 0, buffer };
  const changed = new ChangedPages([block], PAGE, WRITES_STAGED, tables);
  const take = (): number => changed.take(0, Uint32Array.of(0), 0, undefined);
  t.equal(take(), 1);
  t.equal(take(), 0);
  const digest = viewDigests(tables[0]);
  for (const half of [0, 1]) {
    digest[half] ^= 1;
    t.equal(take(), 1, `half ${half}`);
    t.equal(take(), 0);
  }
});
