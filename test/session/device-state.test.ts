/** Device state at the receiver: whose the bytes are that load() gets, and what sync() waits for. */
import { setTimeout as sleep } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { createReceiver, createSender, type Receiver, type Sender } from '../../src/index.js';
import { PAGE, TCP, failure, hold, isPending } from '../support/raw-channel.js';

const CHANNELS = 3;
/** Shorter than what load() takes, longer than a machine under load takes for anything else. */
const STALL_MS = 500;

async function pair(
  t: Test,
  load: (data: Buffer) => void | Promise<void>,
): Promise<{ sender: Sender; receiver: Receiver }> {
  const blocks = [{ name: 'ram', memory: new SharedArrayBuffer(PAGE) }];
  const receiver = await createReceiver({
    address: TCP,
    channels: CHANNELS,
    blocks,
    stallTimeoutMs: STALL_MS,
    devices: [{ idstr: 'dev', instanceId: 0, load }],
  });
  t.teardown(() => receiver.close());
  const sender = await createSender({ address: receiver.address, channels: CHANNELS, blocks });
  t.teardown(() => sender.close());
  return { sender, receiver };
}

t.test("the bytes are the device's to keep, to change and to transfer", async (t) => {
  const kept: Buffer[] = [];
  const { sender, receiver } = await pair(t, (data) => void kept.push(data));
  for (let i = 0; i < 20; i++) await sender.queueDeviceState('dev', 0, Buffer.alloc(1 + i * 500, i + 1));
  await Promise.all([sender.sync(), receiver.sync()]);
  await Promise.all([sender.end(), receiver.end()]);
  kept.sort((a, b) => a.length - b.length);
  t.strictSame(
    kept,
    Array.from({ length: 20 }, (_, i) => Buffer.alloc(1 + i * 500, i + 1)),
  );
  for (const data of kept) {
    t.equal(data.buffer.byteLength, data.length, 'nobody else has bytes in its memory');
    const { buffer } = data;
    t.ok(buffer instanceof ArrayBuffer, 'and no other thread has it');
    t.doesNotThrow(() => structuredClone(buffer, { transfer: [buffer as ArrayBuffer] }));
  }
});

t.test('sync() waits for each load() of what came before it, however long it takes', async (t) => {
  const loads: { data: Buffer; done: () => void }[] = [];
  let loaded = 0;
  let started!: () => void;
  const all = new Promise<void>((resolve) => (started = resolve));
  const { sender, receiver } = await pair(t, async (data) => {
    await new Promise<void>((done) => {
      loads.push({ data, done });
      if (loads.length === CHANNELS) started();
    });
    loaded++;
  });
  for (let i = 0; i < CHANNELS; i++) await sender.queueDeviceState('dev', 0, Buffer.of(i));
  const syncing = hold(receiver.sync());
  await sender.sync();
  await all;
  await sleep(2 * STALL_MS);
  for (const { done } of loads) {
    t.ok(await isPending(syncing), `with ${loaded} loaded`);
    done();
  }
  await syncing;
  t.equal(loaded, CHANNELS);
  await Promise.all([sender.end(), receiver.end()]);
});

t.test('a load() that fails late is what sync() rejects with', async (t) => {
  const cause = new Error('no such register');
  let fail!: () => void;
  let started!: () => void;
  const loading = new Promise<void>((resolve) => (started = resolve));
  const { sender, receiver } = await pair(t, async () => {
    started();
    await new Promise<void>((_, reject) => (fail = () => reject(cause)));
  });
  await sender.queueDeviceState('dev', 0, Buffer.of(1));
  const syncing = hold(receiver.sync());
  hold(sender.sync());
  await loading;
  t.ok(await isPending(syncing));
  fail();
  const error = await failure(syncing, 'sync()');
  t.match(error, { code: 'ERR_MULTIFD_HOOK', message: 'load() of device dev instance 0 failed' });
  t.equal(error.cause, cause);
  t.equal(await failure(receiver.done, 'done'), error);
});
