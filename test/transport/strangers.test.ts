/** What whoever can connect, and need not prove anything, makes a listener spend: descriptors, time, threads. */
import { readdirSync } from 'node:fs';
import net from 'node:net';
import { mock } from 'node:test';
import t, { type Test } from 'tap';
import { createReceiver, type Address } from '../../src/index.js';
import { Admission } from '../../src/transport/admission.js';
import { HELLO_MS, Listener } from '../../src/transport/listener.js';
import { RawSource, TCP, eventually, helloBytes } from '../support/raw-channel.js';
import { within } from '../support/within.js';

const WAIT_MS = 20_000;
const NEVER = (): void => {
  throw new Error('nobody is let in here');
};

async function listening(t: Test, maxStrays = 256): Promise<{ listener: Listener; address: Address }> {
  const options = { admission: new Admission(2, undefined), maxStrays, tls: undefined };
  const listener = new Listener(options, { channel: NEVER, refused: NEVER });
  t.teardown(() => listener.close());
  return { listener, address: await listener.listen(TCP) };
}

t.test('a hello that comes byte by byte has no more time than one that does not come', async (t) => {
  const { listener, address } = await listening(t);
  mock.timers.enable({ apis: ['setTimeout'] });
  t.teardown(() => mock.timers.reset());
  const source = await RawSource.connect(t, address);
  const hello = helloBytes({ id: 0 });
  const accepted = new Promise<void>((resolve) => setImmediate(resolve));
  await accepted;
  const bytes = 50;
  for (let at = 0; at < bytes; at++) {
    await source.send(hello.subarray(at, at + 1));
    // It has come in before the clock goes on.
    for (let turn = 0; turn < 3; turn++) await new Promise((resolve) => setImmediate(resolve));
    t.equal(listener.strays, 0, `byte ${at}`);
    mock.timers.tick(at < bytes - 1 ? HELLO_MS / bytes : HELLO_MS / bytes + 1);
  }
  mock.timers.reset();
  t.equal(listener.strays, 1);
  await within(source.gone, WAIT_MS, 'the connection is closed');
});

t.test('silent connections have a descriptor each up to maxStrays, and beyond it no more', async (t) => {
  const { listener, address } = await listening(t, 8);
  const descriptors = (): number => readdirSync('/proc/self/fd').length;
  const before = descriptors();
  const sockets: net.Socket[] = [];
  t.teardown(() => sockets.forEach((socket) => socket.destroy()));
  for (let i = 0; i < 40; i++) {
    const socket = net.connect(address as net.NetConnectOpts).on('error', () => {});
    // Both ends are this process's: once it is let go, so is this one.
    sockets.push(socket.resume().on('end', () => socket.destroy()));
  }
  await eventually(() => listener.strays === 32, 'the oldest are dropped');
  await eventually(() => descriptors() <= before + 2 * 8, 'eight are left');
});

t.test('strangers start no thread, however many come', async (t) => {
  const receiver = await createReceiver({
    address: TCP,
    blocks: [{ name: 'a', memory: new SharedArrayBuffer(4096) }],
  });
  t.teardown(() => receiver.close());
  const threads = (): number => readdirSync('/proc/self/task').length;
  // The channels' own start with the session; a stranger has come in when it is counted.
  const drop = async (count: number): Promise<void> => {
    const strays = receiver.stats().strays;
    for (let i = 0; i < count; i++)
      (await RawSource.connect(t, receiver.address)).end(Buffer.alloc(64, 0x2a));
    await eventually(() => receiver.stats().strays === strays + count, 'they are dropped');
  };
  await drop(1);
  const first = threads();
  await drop(100);
  t.ok(threads() <= first, `${threads()} threads, ${first} before`);
});
