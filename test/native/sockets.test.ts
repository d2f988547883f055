/**
 * The calls of src/native/sockets.ts: what is handed to the C library, what its answers mean, and each of its refusals as a
 * typed error. A stub stands in for the library; where there is one, the real socket is asked as well.
 */
import { once } from 'node:events';
import net from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { MultifdError } from '../../src/errors.js';
import { whyNoKoffi } from '../../src/native/koffi.js';
import { ZeroCopySocket } from '../../src/native/sockets.js';
import {
  addressOf,
  findSystemCalls,
  requireSystemCalls,
  type CallName,
  type SystemCalls,
} from '../../src/native/system-calls.js';

const EINTR = 4;
const EAGAIN = 11;
const ENOMEM = 12;
const EPIPE = 32;
const ENOPROTOOPT = 92;
const ECONNRESET = 104;
const ENOBUFS = 105;
const ENOTSUPP = 524;

const MSG_DONTWAIT_NOSIGNAL = 0x4040;
const MSG_MORE = 0x8000;
const MSG_ZEROCOPY = 0x4000000;
/** As far apart that pieces of two buffers are never side by side. */
const APART = 2n ** 32n;

/** Of memory of its own: what a stub says of a pool's address is kept. */
const ABC = Buffer.alloc(3, 'abc');

type Answer = (...args: unknown[]) => number;

/** Calls that answer as they are told, and keep what they were given; addresses are made up. */
function stub(answers: Partial<Record<CallName, Answer>>, errno = 0) {
  const made: { name: string; args: unknown[] }[] = [];
  const buffers: ArrayBufferLike[] = [];
  const call =
    (name: CallName) =>
    (...args: unknown[]): number => {
      made.push({ name, args });
      return answers[name]?.(...args) ?? -1;
    };
  const names: CallName[] = ['sendmsg', 'recvmsg', 'setsockopt', 'poll', 'madvise'];
  const calls = {
    ...Object.fromEntries(names.map((name) => [name, call(name)])),
    errno: () => errno,
    address: (view: Uint8Array) => {
      if (!buffers.includes(view.buffer)) buffers.push(view.buffer);
      return APART * BigInt(1 + buffers.indexOf(view.buffer)) + BigInt(view.byteOffset);
    },
  } as SystemCalls;
  /** What lies at an address. */
  const at = (address: bigint, length: number): Uint8Array =>
    new Uint8Array(buffers[Number(address / APART) - 1], Number(address % APART), length);
  return { calls, made, at };
}

/** The message of sendmsg() and recvmsg(): struct msghdr. */
function words(message: unknown): bigint[] {
  const { buffer } = message as Uint8Array;
  return [...new BigUint64Array(buffer)];
}

function wrong(t: Test, call: () => unknown, code: string, message: RegExp, system: string): void {
  const error = t.throws(call, MultifdError) as MultifdError;
  t.equal(error.code, code);
  t.match(error.message, message);
  t.match(error.cause, { code: system }, "its cause is the system's error");
}

t.test('pages are handed over as they lie, in one call that does not wait', async (t) => {
  const { calls, made, at } = stub({ sendmsg: () => 5 });
  const memory = new SharedArrayBuffer(8192);
  new Uint8Array(memory).fill(7, 4096);
  const pieces = [new Uint8Array(memory, 4096, 4096), ABC];
  t.equal(new ZeroCopySocket(calls, 9).sendInPlace(pieces), 5, 'bytes taken');
  const [fd, message, flags] = made[0].args;
  t.equal(fd, 9);
  t.equal(flags, MSG_DONTWAIT_NOSIGNAL | MSG_ZEROCOPY);
  const [name, nameLength, iov, count, control, controlLength] = words(message);
  t.same([name, nameLength, count, control, controlLength], [0n, 0n, 2n, 0n, 0n]);
  const pairs = new BigUint64Array(at(iov, 32).slice().buffer);
  t.equal(Number(pairs[1]), 4096);
  t.same(at(pairs[0], 4), Buffer.alloc(4, 7));
  t.equal(Number(pairs[3]), 3);
  t.same(Buffer.from(at(pairs[2], 3)), ABC);
});

t.test('what is no page is copied, and says whether more follows', async (t) => {
  const { calls, made } = stub({ sendmsg: () => 3 });
  const socket = new ZeroCopySocket(calls, 9);
  t.equal(socket.sendCopy([ABC], true), 3);
  t.equal(socket.sendCopy([ABC], false), 3);
  t.same(
    made.map(({ args }) => args[2]),
    [MSG_DONTWAIT_NOSIGNAL | MSG_MORE, MSG_DONTWAIT_NOSIGNAL],
  );
});

t.test('no room, a signal and a limit of locked memory are answers, not errors', async (t) => {
  const pieces = [ABC];
  for (const errno of [EAGAIN, EINTR]) {
    const socket = new ZeroCopySocket(stub({}, errno).calls, 9);
    t.equal(socket.sendInPlace(pieces), 'again');
    t.equal(socket.sendCopy(pieces, false), 'again');
    t.same(socket.reap(), []);
  }
  t.equal(new ZeroCopySocket(stub({}, ENOBUFS).calls, 9).sendInPlace(pieces), 'locked-memory');
  const interrupted = new ZeroCopySocket(stub({}, EINTR).calls, 9);
  interrupted.wait(5);
  interrupted.waitForCompletion(5);
});

t.test("each call that is refused is a typed error with the system's as its cause", async (t) => {
  const pieces = [ABC];
  const refused = (errno: number) => new ZeroCopySocket(stub({}, errno).calls, 9);
  const cannot =
    /^zeroCopySend: this system sends nothing without a copy, setsockopt E\w+: .*; leave it off$/;
  wrong(t, () => refused(ENOPROTOOPT).enable(), 'ERR_MULTIFD_RUNTIME', cannot, 'ENOPROTOOPT');
  t.throws(() => refused(ENOTSUPP).enable(), {
    code: 'ERR_MULTIFD_RUNTIME',
    message: /setsockopt errno 524/,
  });
  const broken = 'ERR_MULTIFD_CONNECTION';
  wrong(t, () => refused(EPIPE).sendInPlace(pieces), broken, /^sendmsg EPIPE: broken pipe$/, 'EPIPE');
  wrong(t, () => refused(ENOMEM).sendInPlace(pieces), broken, /^sendmsg ENOMEM: /, 'ENOMEM');
  wrong(t, () => refused(ENOBUFS).sendCopy(pieces, true), broken, /^sendmsg ENOBUFS: /, 'ENOBUFS');
  wrong(t, () => refused(ECONNRESET).reap(), broken, /^recvmsg ECONNRESET: /, 'ECONNRESET');
  wrong(t, () => refused(ENOMEM).wait(5), broken, /^poll ENOMEM: /, 'ENOMEM');
  wrong(t, () => refused(ENOMEM).waitForCompletion(5), broken, /^poll ENOMEM: /, 'ENOMEM');
});

// ---- the error queue ----

interface Control {
  origin?: number;
  code?: number;
  info: number;
  data: number;
  /** struct cmsghdr's own; default: that of sock_extended_err and an address. */
  length?: number;
}

/** What recvmsg() leaves in the control buffer: cmsghdr, sock_extended_err, and the address behind it. */
function controlBytes({ origin = 5, code = 0, info, data, length = 48 }: Control): Buffer {
  const bytes = Buffer.alloc(48);
  bytes.writeBigUInt64LE(BigInt(length), 0);
  bytes[16 + 4] = origin;
  bytes[16 + 6] = code;
  bytes.writeUInt32LE(info, 16 + 8);
  bytes.writeUInt32LE(data, 16 + 12);
  return bytes;
}

function queueOf(messages: readonly Buffer[]): ZeroCopySocket {
  let next = 0;
  const made = stub(
    {
      recvmsg: (_fd, message) => {
        if (next === messages.length) return -1;
        const all = new BigUint64Array((message as Uint8Array).buffer);
        made.at(all[4], Number(all[5])).set(messages[next]);
        all[5] = BigInt(messages[next++].length);
        return 0;
      },
    },
    EAGAIN,
  );
  return new ZeroCopySocket(made.calls, 9);
}

t.test('completions are ranges of numbers, copied or not, several at a time', async (t) => {
  const socket = queueOf([
    controlBytes({ info: 0, data: 3 }),
    Buffer.concat([
      controlBytes({ info: 4, data: 4, code: 1 }),
      controlBytes({ info: 0xffffffff, data: 2, code: 1 }),
    ]),
  ]);
  t.same(socket.reap(), [
    { from: 0, to: 3, copied: false },
    { from: 4, to: 4, copied: true },
    { from: 0xffffffff, to: 2, copied: true },
  ]);
  t.same(socket.reap(), [], 'each once');
});

t.test('what else lies in the error queue, or is cut off, is passed over', async (t) => {
  const socket = queueOf([
    controlBytes({ info: 1, data: 1, origin: 2 }),
    controlBytes({ info: 1, data: 1, length: 17 }),
    controlBytes({ info: 1, data: 1, length: 0 }),
    controlBytes({ info: 1, data: 1, length: 4096 }),
    Buffer.alloc(7),
    Buffer.alloc(0),
    controlBytes({ info: 8, data: 9 }),
  ]);
  t.same(socket.reap(), [{ from: 8, to: 9, copied: false }]);
});

// ---- addresses ----

t.test('where a view lies is asked once a buffer, and its offset is added', async (t) => {
  let asked = 0;
  const calls = { address: () => (asked++, 4096n) } as unknown as SystemCalls;
  const memory = new SharedArrayBuffer(65536);
  t.equal(addressOf(calls, new Uint8Array(memory, 100, 5)), 4196n);
  t.equal(addressOf(calls, new Uint8Array(memory)), 4096n);
  t.equal(asked, 1);
});

t.test('memory above the largest view that this Node has can be addressed as well', async (t) => {
  const seen: number[] = [];
  const calls = { address: (view: Uint8Array) => (seen.push(view.length), 0n) } as unknown as SystemCalls;
  const memory = new SharedArrayBuffer(2 ** 32 + 4096);
  t.equal(addressOf(calls, new Uint8Array(memory, 2 ** 32, 8)), 2n ** 32n);
  t.same(seen, [1], 'a view of all of it is none on Node 20');
});

// ---- the real one ----

const real = findSystemCalls();

t.test('a real socket: pages in place arrive, and each call is completed', async (t) => {
  if (real === undefined) {
    t.throws(() => requireSystemCalls('zeroCopySend'), {
      code: 'ERR_MULTIFD_RUNTIME',
      message: `zeroCopySend: ${whyNoKoffi()}`,
    });
    return;
  }
  const { socket, received } = await connected(t);
  const { fd } = (socket as unknown as { _handle: { fd: number } })._handle;
  const native = new ZeroCopySocket(real, fd);
  native.enable();
  const pages = new Uint8Array(new SharedArrayBuffer(65536)).fill(3);
  t.equal(native.sendCopy([Buffer.alloc(4, 'head')], true), 4);
  t.equal(native.sendInPlace([pages.subarray(0, 4096), pages.subarray(8192)]), 4096 + 65536 - 8192);
  const completions = native.reap();
  for (let i = 0; i < 400 && completions.length === 0; i++) {
    await sleep(5);
    native.waitForCompletion(5);
    completions.push(...native.reap());
  }
  t.match(completions, [{ from: 0, to: 0 }]);
  native.wait(5);
  socket.end();
  const bytes = await received;
  t.equal(bytes.length, 4 + 4096 + 65536 - 8192);
  t.ok(bytes.subarray(4).equals(Buffer.alloc(bytes.length - 4, 3)));
});

t.test('a descriptor that is no socket is refused', async (t) => {
  if (real === undefined) return t.equal(typeof whyNoKoffi(), 'string');
  t.throws(() => new ZeroCopySocket(real, 2 ** 30).enable(), {
    code: 'ERR_MULTIFD_RUNTIME',
    message: /setsockopt EBADF: bad file descriptor; leave it off$/,
  });
  const pieces = [ABC];
  t.throws(() => new ZeroCopySocket(real, 2 ** 30).sendInPlace(pieces), {
    code: 'ERR_MULTIFD_CONNECTION',
    message: /^sendmsg EBADF: /,
  });
});

async function connected(t: Test): Promise<{ socket: net.Socket; received: Promise<Buffer> }> {
  const server = net.createServer();
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const received = new Promise<Buffer>((resolve) => {
    server.once('connection', (peer) => {
      const chunks: Buffer[] = [];
      peer.on('data', (chunk) => chunks.push(chunk));
      peer.on('end', () => resolve(Buffer.concat(chunks)));
    });
  });
  const socket = net.connect({ port: (server.address() as net.AddressInfo).port, host: '127.0.0.1' });
  t.teardown(() => {
    socket.destroy();
    server.close();
  });
  await once(socket, 'connect');
  return { socket, received };
}
