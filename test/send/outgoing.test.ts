/** What is held back for one write: pieces in order, headers side by side as one, and no header over one on its way. */
import t from 'tap';
import { Control } from '../../src/shared/control.js';
import { MAX_HELD, Outgoing } from '../../src/send/outgoing.js';
import { PacketHeader, packetHeaderBytes, unfillPacket } from '../../src/wire/packet.js';

const PAGE = 4096;
const HEADER = packetHeaderBytes(PAGE);

function setUp() {
  const control = Control.create({ channels: 1, clients: 1, pageSize: PAGE, dataBytes: PAGE });
  const blocks = [{ name: 'pc.ram', size: 64 * PAGE, kind: 'shared' as const, base: 0 }];
  const outgoing = new Outgoing({ id: 0, pageSize: PAGE, blocks, compression: 'none' }, control);
  const writes: Uint8Array[][] = [];
  const write = (): void => outgoing.writeTo({ write: (pieces) => void writes.push([...pieces]) });
  return { outgoing, writes, write };
}

function packetNum(bytes: Buffer, begin: number): number {
  const header = new PacketHeader(PAGE);
  const findBlock = () => ({ index: 0, size: 64 * PAGE });
  unfillPacket(bytes, { pageSize: PAGE, methodFlag: 0, findBlock }, header, begin);
  return header.packetNum;
}

t.test('headers without payload go out as one piece, a payload behind its header', (t) => {
  const { outgoing, writes, write } = setUp();
  const payload = Buffer.alloc(2 * PAGE, 7);
  for (let i = 0; i < 3; i++) outgoing.holdPages(0, 0, 1, i, []);
  outgoing.holdPages(0, 2, 0, 3, [payload]);
  outgoing.holdSync();
  t.equal(outgoing.packets, 5);
  write();
  t.same(
    writes[0].map((piece) => piece.length),
    [4 * HEADER, 2 * PAGE, HEADER],
  );
  t.equal(writes[0][1], payload, 'the payload itself, not a copy');
  t.equal(outgoing.packets, 0);
  t.end();
});

t.test('what is written is held no more, and nothing held is no write', (t) => {
  const { outgoing, writes, write } = setUp();
  write();
  t.equal(writes.length, 0);
  outgoing.holdPages(0, 0, 1, 0, []);
  outgoing.weigh(100);
  t.equal(outgoing.weight, 100);
  write();
  t.equal(outgoing.weight, 0);
  write();
  t.equal(writes.length, 1);
  t.end();
});

t.test('the headers of a write stay as they are while as many again are made', (t) => {
  const { outgoing, writes, write } = setUp();
  const copies: Buffer[] = [];
  for (let round = 0; round < 20; round++) {
    for (let i = 0; i < MAX_HELD; i++) outgoing.holdPages(0, 0, 1, i, []);
    if (round > 0) t.same(Buffer.concat(writes[round - 1]), copies[round - 1], `write ${round - 1}`);
    write();
    copies.push(Buffer.concat(writes[round]));
    t.equal(copies[round].length, MAX_HELD * HEADER);
  }
  const numbers = copies.flatMap((bytes) =>
    Array.from({ length: MAX_HELD }, (_, i) => packetNum(bytes, i * HEADER)),
  );
  t.same(
    numbers,
    numbers.map((_, i) => numbers[0] + i),
    'packets in order',
  );
  t.end();
});
