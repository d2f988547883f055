/**
 * Private memory that moves under a session, at either end: it is asked for whenever it is touched. And what comes from
 * another realm, as everything does in a test of jest's.
 */
import { runInNewContext } from 'node:vm';
import t, { type Test } from 'tap';
import {
  createReceiver,
  createSender,
  type RAMBlockOptions,
  type Receiver,
  type ReceiverOptions,
  type Sender,
  type SenderOptions,
} from '../../src/index.js';
import { PAGE, TCP, failure, hold } from '../support/raw-channel.js';

/** More than one packet's. */
const PAGES = 300;
const BYTES = PAGES * PAGE;
const WASM_PAGE = 65536;

interface WasmMemory {
  buffer: ArrayBuffer | SharedArrayBuffer;
  grow(pages: number): number;
}
const { Memory } = (
  globalThis as unknown as {
    WebAssembly: {
      Memory: new (pages: { initial: number; maximum?: number; shared?: boolean }) => WasmMemory;
    };
  }
).WebAssembly;

/** A memory with room for the block at `OFFSET`, and to grow. */
const OFFSET = 3 * PAGE;
const wasmMemory = (shared = false): WasmMemory =>
  new Memory({ initial: Math.ceil((OFFSET + BYTES) / WASM_PAGE), maximum: 100, shared });
const bytesOf = (wasm: WasmMemory): Buffer => Buffer.from(wasm.buffer, OFFSET, BYTES);

async function pair(
  t: Test,
  from: RAMBlockOptions,
  to: RAMBlockOptions,
  options: { sender?: Partial<SenderOptions>; receiver?: Partial<ReceiverOptions> } = {},
): Promise<{ sender: Sender; receiver: Receiver }> {
  const receiver = await createReceiver({ address: TCP, blocks: [to], ...options.receiver });
  t.teardown(() => receiver.close());
  const sender = await createSender({ address: receiver.address, blocks: [from], ...options.sender });
  t.teardown(() => sender.close());
  return { sender, receiver };
}

async function sync(sender: Sender, receiver: Receiver): Promise<void> {
  await Promise.all([sender.sync(), receiver.sync()]);
}

/** Bytes of each phase; every third page is zero. */
function write(bytes: Buffer, phase: number): void {
  for (let page = 0; page < PAGES; page++) {
    bytes.fill(page % 3 === phase % 3 ? 0 : 1 + ((page + phase) % 255), page * PAGE, (page + 1) * PAGE);
  }
}

for (const shared of [false, true]) {
  const kind = shared ? 'shared' : 'private';
  for (const mode of ['multifd', 'legacy'] as const) {
    t.test(`${kind} memories of WebAssembly grow at both ends, zero pages in mode ${mode}`, async (t) => {
      const [source, destination] = [wasmMemory(shared), wasmMemory(shared)];
      const zeroed: Promise<void>[] = [];
      const { sender, receiver } = await pair(
        t,
        { name: 'ram', memory: { wasm: source, offset: OFFSET, size: BYTES } },
        { name: 'ram', memory: { wasm: destination, offset: OFFSET, size: BYTES } },
        {
          sender: {
            zeroPageDetection: mode,
            onZeroPages: ({ name }, offset, length) => {
              zeroed.push(receiver.zeroRange(name, offset, length));
            },
          },
        },
      );
      t.equal(sender.blocks[0].kind, kind);
      for (let phase = 0; phase < 3; phase++) {
        source.grow(1);
        write(bytesOf(source), phase);
        await sender.queueRange('ram', 0, BYTES / 2);
        // With pages in slots and on the way.
        source.grow(1);
        destination.grow(1);
        await sender.queueRange('ram', 0, BYTES);
        destination.grow(1);
        const syncing = sync(sender, receiver);
        source.grow(1);
        await syncing;
        await Promise.all(zeroed);
        t.ok(bytesOf(source).equals(bytesOf(destination)), `phase ${phase}`);
      }
      await Promise.all([sender.end(), receiver.end()]);
      // Nothing beside the block was touched.
      t.ok(Buffer.from(destination.buffer, 0, OFFSET).every((byte) => byte === 0));
      t.ok(Buffer.from(destination.buffer, OFFSET + BYTES).every((byte) => byte === 0));
    });
  }
}

t.test('a function says where the memory is, at both ends', async (t) => {
  let source = Buffer.alloc(BYTES);
  let destination = Buffer.alloc(BYTES);
  const { sender, receiver } = await pair(
    t,
    { name: 'ram', memory: () => source },
    { name: 'ram', memory: () => destination },
  );
  for (let phase = 0; phase < 3; phase++) {
    // To another place, and out of the old one.
    const [from, to] = [source, destination];
    source = Buffer.from(from);
    destination = Buffer.concat([to, Buffer.alloc(100)]);
    from.fill(0xee);
    to.fill(0xee);
    write(source, phase);
    await sender.queueRange('ram', 0, BYTES);
    await sync(sender, receiver);
    t.ok(destination.subarray(0, BYTES).equals(source), `phase ${phase}`);
  }
  await Promise.all([sender.end(), receiver.end()]);
});

t.test('buffers that grow are blocks of the size that they had', async (t) => {
  for (const make of [
    (size: number) => new ArrayBuffer(size, { maxByteLength: 2 * size }),
    (size: number) => new SharedArrayBuffer(size, { maxByteLength: 2 * size }),
  ]) {
    const grow = (memory: ArrayBuffer | SharedArrayBuffer): void => {
      if (memory instanceof ArrayBuffer) memory.resize(2 * BYTES);
      else memory.grow(2 * BYTES);
    };
    const [source, destination] = [make(BYTES), make(BYTES)];
    const { sender, receiver } = await pair(
      t,
      { name: 'ram', memory: source },
      // Its length follows that of its buffer.
      { name: 'ram', memory: new Uint8Array(destination) },
    );
    grow(source);
    write(Buffer.from(source, 0, BYTES), 1);
    await sender.queueRange('ram', 0, BYTES);
    grow(destination);
    await sync(sender, receiver);
    t.equal(sender.blocks[0].size, BYTES);
    t.ok(Buffer.from(source).equals(Buffer.from(destination)));
    await Promise.all([sender.end(), receiver.end()]);
  }
});

t.test('calls that a memory function makes have to wait for their turn', async (t) => {
  const source = Buffer.alloc(BYTES);
  const destination = Buffer.alloc(BYTES);
  write(source, 1);
  let made = false;
  const calls: Promise<void>[] = [];
  const { sender, receiver } = await pair(
    t,
    {
      name: 'ram',
      memory: () => {
        // In the middle of the packet that is being filled.
        if (made) calls.push(sender.queuePage('ram', BYTES - PAGE), sender.queueZeroRange('ram', 0, PAGE));
        made = false;
        return source;
      },
    },
    { name: 'ram', memory: destination },
  );
  made = true;
  await sender.queueRange('ram', PAGE, 10 * PAGE);
  t.equal(calls.length, 2);
  await Promise.all(calls);
  await sync(sender, receiver);
  for (const page of [...Array.from({ length: 10 }, (_, i) => 1 + i), PAGES - 1]) {
    const [at, end] = [page * PAGE, (page + 1) * PAGE];
    t.ok(destination.subarray(at, end).equals(source.subarray(at, end)), `page ${page}`);
  }
  t.ok(receiver.received('ram').has(0));
  t.equal(receiver.received('ram').count(), 12);
  await Promise.all([sender.end(), receiver.end()]);
});

t.test('memory that breaks ends the session of a receiver, and the error names the block', async (t) => {
  const source = new SharedArrayBuffer(BYTES);
  write(Buffer.from(source), 1);
  const wasm = wasmMemory();
  const shrinks = new ArrayBuffer(BYTES, { maxByteLength: BYTES });
  let broken = false;
  const broke = (how: () => ArrayBuffer) => () => (broken ? how() : new ArrayBuffer(BYTES));
  const cases: [memory: RAMBlockOptions['memory'], code: string, spoil?: () => void][] = [
    [new Uint8Array(wasm.buffer, OFFSET, BYTES), 'ERR_MULTIFD_BLOCK', () => wasm.grow(1)],
    [shrinks, 'ERR_MULTIFD_BLOCK', () => shrinks.resize(PAGE)],
    [broke(() => new ArrayBuffer(PAGE)), 'ERR_MULTIFD_BLOCK'],
    [
      broke(() => {
        throw new Error('no memory today');
      }),
      'ERR_MULTIFD_HOOK',
    ],
  ];
  for (const [memory, code, spoil] of cases) {
    broken = false;
    const to = { name: 'ram', memory } as RAMBlockOptions;
    const { sender, receiver } = await pair(t, { name: 'ram', memory: source }, to);
    const syncing = hold(receiver.sync());
    broken = true;
    spoil?.();
    hold(sender.queueRange('ram', 0, BYTES));
    hold(sender.sync());
    const error = await failure(syncing, 'sync()');
    t.match(error, { code, message: /^RAM block "ram": memory/ });
    t.equal(await failure(receiver.done, 'done'), error);
    await sender.close();
  }
});

t.test(
  'memory that breaks ends the session of a sender, and a function that fails at once opens none',
  async (t) => {
    let memory: unknown = new ArrayBuffer(BYTES);
    const { sender } = await pair(
      t,
      { name: 'ram', memory: () => memory as ArrayBuffer },
      { name: 'ram', memory: new SharedArrayBuffer(BYTES) },
    );
    memory = undefined;
    const error = await failure(sender.queuePage('ram', 0), 'queuePage()');
    t.match(error, { code: 'ERR_MULTIFD_BLOCK', message: /^RAM block "ram": memory\(\) must return/ });
    t.equal(await failure(sender.done, 'done'), error);
    const cause = new Error('no memory today');
    const throws = (): ArrayBuffer => {
      throw cause;
    };
    const refused = await failure(
      createReceiver({ address: TCP, blocks: [{ name: 'ram', memory: throws }] }),
      'createReceiver()',
    );
    t.match(refused, {
      code: 'ERR_MULTIFD_HOOK',
      message: 'RAM block "ram": memory() threw: no memory today',
    });
    t.equal(refused.cause, cause);
  },
);

t.test('memory, functions, signals, bytes and errors may be of another realm', async (t) => {
  const foreign = <T>(code: string): T => runInNewContext(code, { EventTarget }) as T;
  interface Foreign {
    shared: SharedArrayBuffer;
    owned: Uint8Array;
    state: Uint8Array;
    signal: AbortSignal;
    load(data: Uint8Array): Promise<void>;
  }
  const it = foreign<Foreign>(`
    const owned = new Uint8Array(${BYTES});
    const signal = Object.assign(new EventTarget(), { aborted: false, reason: undefined });
    ({
      shared: new SharedArrayBuffer(${BYTES}),
      owned,
      memory: () => owned,
      state: Uint8Array.of(1, 2, 3),
      signal,
      async load(data) {
        if (data.length !== 3) throw new TypeError('of another length');
      },
    })`);
  const { sender, receiver } = await pair(
    t,
    { name: 'ram', memory: it.shared },
    { name: 'ram', memory: () => it.owned },
    {
      sender: { signal: it.signal },
      receiver: { devices: [{ idstr: 'dev', instanceId: 0, load: (data) => it.load(data) }] },
    },
  );
  write(Buffer.from(it.shared), 2);
  await sender.queueRange('ram', 0, BYTES);
  await sender.queueDeviceState('dev', 0, it.state);
  await sync(sender, receiver);
  t.ok(Buffer.from(it.shared).equals(it.owned));
  await sender.queueDeviceState('dev', 0, Buffer.alloc(5));
  hold(sender.sync());
  const failed = await failure(receiver.sync(), 'sync()');
  t.match(failed, { code: 'ERR_MULTIFD_HOOK', cause: { name: 'TypeError' } });
});

t.test('an abort of another realm ends the session with its reason', async (t) => {
  const reason = runInNewContext("new Error('enough')") as Error;
  const signal = Object.assign(new EventTarget(), { aborted: false, reason });
  const receiver = await createReceiver({
    address: TCP,
    blocks: [{ name: 'ram', memory: new SharedArrayBuffer(PAGE) }],
    signal: signal as unknown as AbortSignal,
  });
  t.teardown(() => receiver.close());
  signal.dispatchEvent(new Event('abort'));
  t.match(await failure(receiver.done, 'done'), {
    code: 'ERR_MULTIFD_ABORTED',
    message: 'aborted: enough',
    cause: reason,
  });
});
