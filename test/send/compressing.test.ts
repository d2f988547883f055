/** Packets under way with a codec that has threads of its own: their order, and whose the bytes are meanwhile. */
import t from 'tap';
import type { SendMethod } from '../../src/methods/methods.js';
import { Compressing } from '../../src/send/compressing.js';

const PAGE = 4096;

/** A codec whose payloads are made when the test says so. */
function setUp() {
  const inputs: Buffer[] = [];
  const make: (() => void)[] = [];
  const fail: ((error: Error) => void)[] = [];
  const method: SendMethod = {
    compress: (pages) => {
      const number = inputs.push(pages);
      return new Promise<Buffer>((resolve, reject) => {
        make.push(() => resolve(Buffer.from(`payload ${number}`)));
        fail.push(reject);
      });
    },
    raw: (pieces) => [...pieces],
    close: () => {},
  };
  const sent: string[] = [];
  const outgoing = {
    holdPages: (
      block: number,
      normal: number,
      zero: number,
      pages: Uint32Array | number,
      payload: readonly Uint8Array[],
    ): void => {
      const listed = (pages as Uint32Array).join();
      sent.push(`${block}: ${normal}+${zero} [${listed}] ${Buffer.concat(payload).toString()}`);
    },
  };
  let writes = 0;
  let settled = 0;
  const write = (): Promise<void> => Promise.resolve(void writes++);
  const compressing = new Compressing(method, outgoing, write, () => void settled++);
  const aside = (page: number, raw = ''): Promise<void> => {
    const input = compressing.fill([Buffer.alloc(PAGE, page)]);
    const made = compressing.compress(input, raw !== '') as Promise<Buffer>;
    const pages = Uint32Array.of(page, page + 1);
    return compressing.aside({ block: 3, normal: 1, zero: 1, pages, made, raw: [Buffer.from(raw)] });
  };
  return { compressing, aside, inputs, make, fail, sent, counts: () => ({ writes, settled }) };
}

t.test('the first packet stays with the codec, the second sends the first', async (t) => {
  const { compressing, aside, make, sent, counts } = setUp();
  t.notOk(compressing.any);
  await aside(10);
  t.ok(compressing.any);
  t.same(sent, []);
  const second = aside(20, ' and raw');
  make[0]();
  await second;
  t.same(sent, ['3: 1+1 [10,11] payload 1']);
  make[1]();
  await compressing.send();
  t.same(sent, ['3: 1+1 [10,11] payload 1', '3: 1+1 [20,21] payload 2 and raw']);
  t.notOk(compressing.any);
  t.same(counts(), { writes: 2, settled: 2 });
});

t.test('a payload that is made first does not overtake the one before it', async (t) => {
  const { compressing, aside, make, sent } = setUp();
  await aside(1);
  const second = aside(2);
  make[1]();
  await new Promise(setImmediate);
  t.same(sent, []);
  t.ok(compressing.settled, 'the last one could go out');
  make[0]();
  await second;
  await compressing.send();
  t.match(sent, [/payload 1$/, /payload 2$/]);
});

t.test('settled is what the last packet is, not the one before', async (t) => {
  const { compressing, aside, make, counts } = setUp();
  await aside(1);
  t.notOk(compressing.settled);
  make[0]();
  await new Promise(setImmediate);
  t.ok(compressing.settled);
  await aside(2);
  t.same(counts(), { writes: 1, settled: 1 });
  t.notOk(compressing.settled);
  make[1]();
  await new Promise(setImmediate);
  t.ok(compressing.settled);
});

t.test('a packet that settles when another is the last says nothing of that one', async (t) => {
  const { compressing, aside, make } = setUp();
  await aside(1);
  const second = aside(2);
  make[0]();
  await second;
  await new Promise(setImmediate);
  t.notOk(compressing.settled);
});

t.test('the input that the codec has is not filled anew', async (t) => {
  const { aside, inputs } = setUp();
  await aside(1);
  void aside(2);
  t.equal(inputs[0].length, PAGE);
  t.ok(inputs[0].every((byte) => byte === 1));
  t.ok(inputs[1].every((byte) => byte === 2));
  t.end();
});

t.test('a payload that fails is told to whoever sends it, and to the loop', async (t) => {
  const { compressing, aside, fail, sent, counts } = setUp();
  await aside(1);
  fail[0](new Error('out of memory'));
  await new Promise(setImmediate);
  t.ok(compressing.settled);
  await t.rejects(compressing.send(), { message: 'out of memory' });
  t.same(sent, []);
  t.same(counts(), { writes: 0, settled: 1 });
});
