import t from 'tap';
import {
  ERROR_CODES,
  type ErrorCode,
  MultifdError,
  type PlainError,
  hex32,
  receivedExpected,
} from '../src/errors.js';

/** As an error crosses to another thread. */
function acrossThreads(error: MultifdError): MultifdError {
  return MultifdError.fromPlain(structuredClone(error.toPlain()));
}

t.test('every code has the prefix and one line of meaning', async (t) => {
  const codes = Object.entries(ERROR_CODES);
  t.ok(codes.length > 0);
  for (const [code, meaning] of codes) {
    t.match(code, /^ERR_MULTIFD_[A-Z]+(_[A-Z]+)*$/);
    t.ok(meaning.length > 10 && !meaning.includes('\n'), code);
  }
  t.equal(new Set(codes.map(([, meaning]) => meaning)).size, codes.length, 'no meaning is there twice');
});

t.test('an error has its name, code, message, and what is known of the channel and the packet', async (t) => {
  const cause = new Error('why');
  const error = new MultifdError('ERR_MULTIFD_OFFSET', 'text', { channel: 0, packetNum: 0, cause });
  t.ok(error instanceof Error);
  t.equal(error.name, 'MultifdError');
  t.equal(String(error), 'MultifdError: text');
  t.equal(error.code, 'ERR_MULTIFD_OFFSET');
  t.equal(error.channel, 0);
  t.equal(error.packetNum, 0);
  t.equal(error.cause, cause);
  t.strictSame(error.suppressed, []);
  t.match(error.stack, /errors\.test/);

  const bare = new MultifdError('ERR_MULTIFD_STATE', 'text');
  t.equal(bare.channel, undefined);
  t.equal(bare.packetNum, undefined);
  t.equal(bare.cause, undefined);
  t.notOk('cause' in bare, 'no cause rather than an undefined one');
});

t.test('each error has its own list of suppressed ones', async (t) => {
  const one = new MultifdError('ERR_MULTIFD_EOF', 'one');
  const two = new MultifdError('ERR_MULTIFD_EOF', 'two');
  one.suppressed.push(two);
  t.strictSame(two.suppressed, []);
});

t.test('onChannel fills in the channel, once', async (t) => {
  const cause = new Error('why');
  const error = new MultifdError('ERR_MULTIFD_OFFSET', 'text', { packetNum: 9, cause });
  const known = error.onChannel(3);
  t.match(known, { code: 'ERR_MULTIFD_OFFSET', message: 'channel 3: text', channel: 3, packetNum: 9 });
  t.equal(known.cause, cause);
  t.equal(known.stack, error.stack, 'the stack still says where it was thrown');
  t.equal(known.onChannel(4), known, 'the first channel stays');
  t.equal(error.channel, undefined, 'the original is as it was');
});

t.test('onChannel takes channel 0 for a channel', async (t) => {
  const error = new MultifdError('ERR_MULTIFD_EOF', 'text').onChannel(0);
  t.equal(error.channel, 0);
  t.equal(error.onChannel(1).channel, 0);
});

t.test("onChannel fills in the packet's number only where it is not known", async (t) => {
  t.equal(new MultifdError('ERR_MULTIFD_EOF', 'text').onChannel(1, 5).packetNum, 5);
  t.equal(new MultifdError('ERR_MULTIFD_EOF', 'text', { packetNum: 0 }).onChannel(1, 5).packetNum, 0);
  t.equal(new MultifdError('ERR_MULTIFD_EOF', 'text').onChannel(1).packetNum, undefined);
});

t.test('an error of every code crosses to another thread', async (t) => {
  for (const code of Object.keys(ERROR_CODES) as ErrorCode[]) {
    const error = acrossThreads(
      new MultifdError(code, `text of ${code}`, { channel: 254, packetNum: 2 ** 52 }),
    );
    t.ok(error instanceof MultifdError);
    t.match(error, {
      name: 'MultifdError',
      code,
      message: `text of ${code}`,
      channel: 254,
      packetNum: 2 ** 52,
    });
    t.equal(error.cause, undefined);
  }
});

t.test('what is not known stays unknown on the other side, and 0 stays 0', async (t) => {
  const bare = acrossThreads(new MultifdError('ERR_MULTIFD_EOF', 'text'));
  t.equal(bare.channel, undefined);
  t.equal(bare.packetNum, undefined);
  t.notOk('cause' in bare);
  const zero = acrossThreads(new MultifdError('ERR_MULTIFD_EOF', 'text', { channel: 0, packetNum: 0 }));
  t.equal(zero.channel, 0);
  t.equal(zero.packetNum, 0);
});

t.test('a cause crosses with its name, message and code', async (t) => {
  const cause = Object.assign(new TypeError('read ECONNRESET'), { code: 'ECONNRESET' });
  const error = acrossThreads(new MultifdError('ERR_MULTIFD_CONNECTION', 'text', { cause }));
  t.ok(error.cause instanceof Error);
  t.match(error.cause, { name: 'TypeError', message: 'read ECONNRESET', code: 'ECONNRESET' });

  const inner = new MultifdError('ERR_MULTIFD_EOF', 'inner', { channel: 1 });
  const outer = acrossThreads(new MultifdError('ERR_MULTIFD_CLOSED', 'outer', { cause: inner }));
  t.match(outer.cause, { name: 'MultifdError', message: 'inner', code: 'ERR_MULTIFD_EOF' });

  const plain = acrossThreads(new MultifdError('ERR_MULTIFD_IO', 'text', { cause: new Error('no code') }));
  t.match(plain.cause, { name: 'Error', message: 'no code', code: undefined });
});

t.test("an AbortSignal's reason crosses too", async (t) => {
  const controller = new AbortController();
  controller.abort();
  const error = acrossThreads(
    new MultifdError('ERR_MULTIFD_ABORTED', 'text', { cause: controller.signal.reason }),
  );
  t.match(error.cause, { name: 'AbortError', message: 'This operation was aborted' });
});

t.test('a plain error is plain: no class, no stack, nothing that cannot be cloned', async (t) => {
  const error = new MultifdError('ERR_MULTIFD_IO', 'text', {
    channel: 1,
    packetNum: 2,
    cause: new Error('why'),
  });
  error.suppressed.push(new MultifdError('ERR_MULTIFD_EOF', 'later'));
  const plain: PlainError = error.toPlain();
  t.equal(Object.getPrototypeOf(plain), Object.prototype);
  t.strictSame(plain, {
    code: 'ERR_MULTIFD_IO',
    message: 'text',
    channel: 1,
    packetNum: 2,
    cause: { name: 'Error', message: 'why', code: undefined },
  });
  t.strictSame(structuredClone(plain), plain);
});

t.test('wrap lets a MultifdError pass and wraps all else with what was being done', async (t) => {
  const own = new MultifdError('ERR_MULTIFD_EOF', 'text');
  t.equal(MultifdError.wrap(own, 'ERR_MULTIFD_WORKER', 'reading'), own);

  const thrown = new RangeError('out of it');
  const wrapped = MultifdError.wrap(thrown, 'ERR_MULTIFD_IO', 'reading /x');
  t.match(wrapped, { code: 'ERR_MULTIFD_IO', message: 'reading /x: out of it', channel: undefined });
  t.equal(wrapped.cause, thrown);

  for (const [value, text] of [
    ['a string', 'a string'],
    [42, '42'],
    [null, 'null'],
    [undefined, 'undefined'],
    [Symbol('s'), 'Symbol(s)'],
  ] as const) {
    const error = MultifdError.wrap(value, 'ERR_MULTIFD_HOOK', 'load()');
    t.match(error, { code: 'ERR_MULTIFD_HOOK', message: `load(): ${text}` });
    t.equal(error.cause, value);
  }
});

t.test('a refusal says what was received and what was expected', async (t) => {
  t.equal(receivedExpected('version', 2, 1), 'version: received 2, expected 1');
  t.equal(receivedExpected('size', 0n, 'more than 0'), 'size: received 0, expected more than 0');
  t.equal(receivedExpected('x', undefined, null), 'x: received undefined, expected null');
});

t.test('a 32-bit word in hex has eight digits, also with the sign bit', async (t) => {
  t.equal(hex32(0), '0x00000000');
  t.equal(hex32(0x11223344), '0x11223344');
  t.equal(hex32(0xffffffff), '0xffffffff');
  t.equal(hex32(0x80000000 | 0), '0x80000000');
  t.equal(hex32(0xab), '0x000000ab');
});

t.test('what is told beside an error goes round in no circle', (t) => {
  const first = new MultifdError('ERR_MULTIFD_EOF', 'first');
  const error = new MultifdError('ERR_MULTIFD_STREAM', 'of another session');
  first.suppressed.push(error, new MultifdError('ERR_MULTIFD_WORKER', 'died', { channel: 1 }));
  error.suppress(first);
  error.suppress(first);
  error.suppress(error);
  error.suppress(undefined);
  t.match(error.suppressed, [{ message: 'first' }, { message: 'died', channel: 1 }]);
  t.equal(error.suppressed.length, 2);
  t.doesNotThrow(() => JSON.stringify(error));
  t.end();
});
