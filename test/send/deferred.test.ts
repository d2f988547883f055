/** The second copies of a phase, with a slot that writes down what it is given. */
import t from 'tap';
import { makeBlocks, type RAMBlock } from '../../src/ram/block.js';
import { Deferred } from '../../src/send/deferred.js';

const PAGE = 4096;
const CHANNELS = 3;
const PACKET_PAGES = 2;
const noTurns = { isDue: () => false, take: () => Promise.resolve() };

/** Packets by channel, each page as block:index. */
class NotedSlot {
  readonly sent = Array.from({ length: CHANNELS }, (): string[] => []);
  #pages: string[] = [];

  get num(): number {
    return this.#pages.length;
  }

  put(block: RAMBlock, page: number, count: number): void {
    for (let i = 0; i < count; i++) this.#pages.push(`${block.name}:${page + i}`);
  }

  flush(target: number): Promise<void> {
    if (this.#pages.length > 0) this.sent[target].push(this.#pages.join(' '));
    this.#pages = [];
    return Promise.resolve();
  }
}

function blocks(...names: string[]): RAMBlock[] {
  return makeBlocks(
    names.map((name) => ({ name, memory: new SharedArrayBuffer(64 * PAGE) })),
    PAGE,
  );
}

t.test('every channel gets every page that is noted, once, in packets of one block', async (t) => {
  const [a, b, c] = blocks('a', 'b', 'c');
  const deferred = new Deferred([a, b, c]);
  t.notOk(deferred.any);
  for (const page of [40, 3, 4, 3, 5]) deferred.note(a, page);
  deferred.note(c, 63);
  t.ok(deferred.any);
  const slot = new NotedSlot();
  await deferred.send(slot, CHANNELS, PACKET_PAGES, noTurns);
  const each = ['a:3 a:4', 'a:5 a:40', 'c:63'];
  t.same(slot.sent, [each, each, each]);
  t.equal(slot.num, 0, 'nothing stays in the slot');
});

t.test('what has been sent is noted no more, and may be noted anew', async (t) => {
  const [a] = blocks('a');
  const deferred = new Deferred([a]);
  deferred.note(a, 1);
  await deferred.send(new NotedSlot(), CHANNELS, PACKET_PAGES, noTurns);
  t.notOk(deferred.any);
  deferred.note(a, 2);
  const slot = new NotedSlot();
  await deferred.send(slot, CHANNELS, PACKET_PAGES, noTurns);
  t.same(slot.sent, [['a:2'], ['a:2'], ['a:2']]);
});

t.test('a channel that fails leaves the pages noted', async (t) => {
  const [a] = blocks('a');
  const deferred = new Deferred([a]);
  deferred.note(a, 1);
  const slot = new NotedSlot();
  slot.flush = () => Promise.reject(new Error('channel 0 has failed'));
  await t.rejects(deferred.send(slot, CHANNELS, PACKET_PAGES, noTurns), { message: 'channel 0 has failed' });
  t.ok(deferred.any);
});

t.test('clearing takes turns of the event loop where they are due', async (t) => {
  const [a, b] = blocks('a', 'b');
  const deferred = new Deferred([a, b]);
  deferred.note(a, 1);
  deferred.note(b, 1);
  let turns = 0;
  const due = { isDue: () => true, take: () => Promise.resolve(void turns++) };
  await deferred.send(new NotedSlot(), CHANNELS, PACKET_PAGES, due);
  t.equal(turns, 2, 'one for each part of a bitmap');
});
