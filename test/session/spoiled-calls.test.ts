/**
 * A call that breaks after it has begun ends its session: what it leaves is half done. Each of these once rejected and
 * left the session as it was, to end "well", with a peer that waited for its time-out.
 */
import t, { type Test } from 'tap';
import {
  type RAMBlockOptions,
  type Receiver,
  type Sender,
  type SenderOptions,
  createReceiver,
  createSender,
} from '../../src/index.js';
import { PAGE, TCP, failure, hold } from '../support/raw-channel.js';

const PAGES = 8;
const BYTES = PAGES * PAGE;

const unhandled: unknown[] = [];
process.on('unhandledRejection', (reason) => unhandled.push(reason));

function takeAway(memory: ArrayBuffer): void {
  structuredClone(null, { transfer: [memory] });
}

async function pair(
  t: Test,
  source: ArrayBuffer | SharedArrayBuffer,
  destination: RAMBlockOptions,
  options: Partial<SenderOptions> = {},
): Promise<{ sender: Sender; receiver: Receiver }> {
  const receiver = await createReceiver({
    address: TCP,
    channels: 2,
    blocks: [destination],
    devices: [{ idstr: 'dev', instanceId: 0, load: () => undefined }],
  });
  t.teardown(() => receiver.close());
  const sender = await createSender({
    address: receiver.address,
    channels: 2,
    blocks: [{ name: 'pc.ram', memory: source }],
    ...options,
  });
  t.teardown(() => sender.close());
  return { sender, receiver };
}

const shared = (): RAMBlockOptions => ({ name: 'pc.ram', memory: new SharedArrayBuffer(BYTES) });

/** The call's error is that of the session, of `done`, of end() and of every later call. */
async function endsWith(t: Test, session: Sender | Receiver, call: Promise<unknown>): Promise<void> {
  const error = await failure(call, 'the call');
  t.equal(session.error, error, 'it is the error of the session');
  t.equal(await failure(session.done, 'done'), error, 'of done');
  t.equal(await failure(session.end(), 'end()'), error, 'of end()');
  t.equal(await failure(session.sync(), 'sync()'), error, 'and of every later call');
  t.same(unhandled.splice(0), [], 'no rejection was left unhandled');
}

for (const [name, spoiled] of [
  ['queuePage()', (sender: Sender) => sender.queuePage('pc.ram', PAGE)],
  ['queueRange()', (sender: Sender) => sender.queueRange('pc.ram', 0, BYTES)],
  [
    'a queuePage() that waits in line',
    (sender: Sender) => {
      hold(sender.flush());
      return sender.queuePage('pc.ram', PAGE);
    },
  ],
] as const) {
  t.test(`${name} ends the session of a sender whose memory was taken away`, async (t) => {
    const memory = new ArrayBuffer(BYTES);
    const { sender, receiver } = await pair(t, memory, shared());
    const receiving = hold(receiver.sync());
    takeAway(memory);
    await endsWith(t, sender, spoiled(sender));
    t.match(sender.error, { code: 'ERR_MULTIFD_BLOCK', message: /detached/ });
    // It has no reason to wait for its stall time-out.
    t.match(await failure(receiving, 'the receiver'), { code: /EOF|IO/ });
  });
}

t.test('a sync() that cannot send a page once more ends the session', async (t) => {
  const memory = new ArrayBuffer(BYTES);
  const { sender, receiver } = await pair(t, memory, shared());
  const receiving = hold(receiver.sync());
  await sender.queuePage('pc.ram', 0);
  await sender.queuePage('pc.ram', 0);
  takeAway(memory);
  await endsWith(t, sender, sender.sync());
  t.match(sender.error, { code: 'ERR_MULTIFD_BLOCK', message: /detached/ });
  t.match(await failure(receiving, 'the receiver'), { code: /EOF|IO/ });
});

t.test('device state that changes its size before its turn ends the session', async (t) => {
  const { sender } = await pair(t, new SharedArrayBuffer(BYTES), shared());
  const data = new Uint8Array(100);
  const queueing = hold(sender.queueDeviceState('dev', 0, data));
  const syncing = hold(sender.sync());
  takeAway(data.buffer);
  await endsWith(t, sender, queueing);
  t.match(sender.error, {
    code: 'ERR_MULTIFD_OPTION',
    message: /data: given 100 bytes, 0 when its turn came/,
  });
  t.equal(await failure(syncing, 'a sync() behind it'), sender.error);
});

t.test('nor may it have grown', async (t) => {
  const { sender } = await pair(t, new SharedArrayBuffer(BYTES), shared());
  const buffer = new ArrayBuffer(100, { maxByteLength: 200 });
  const queueing = hold(sender.queueDeviceState('dev', 0, new Uint8Array(buffer)));
  buffer.resize(200);
  await endsWith(t, sender, queueing);
  t.match(sender.error, { message: /data: given 100 bytes, 200 when its turn came/ });
});

t.test('zeroRange() ends the session of a receiver whose memory was taken away', async (t) => {
  const memory = new ArrayBuffer(BYTES);
  const { receiver } = await pair(t, new SharedArrayBuffer(BYTES), { name: 'pc.ram', memory });
  takeAway(memory);
  await endsWith(t, receiver, receiver.zeroRange('pc.ram', 0, BYTES));
  t.match(receiver.error, { code: 'ERR_MULTIFD_BLOCK', message: /detached/ });
});

t.test('wrong arguments are refused and leave the session as it was', async (t) => {
  const { sender, receiver } = await pair(t, new SharedArrayBuffer(BYTES), shared());
  await failure(sender.queuePage('pc.ram', 1), 'queuePage()');
  await failure(sender.queueRange('no', 0, PAGE), 'queueRange()');
  await failure(sender.queueZeroRange('pc.ram', 0, 2 * BYTES), 'queueZeroRange()');
  await failure(sender.queueDeviceState('', 0, Buffer.of(1)), 'queueDeviceState()');
  await failure(receiver.zeroRange('pc.ram', BYTES, PAGE), 'zeroRange()');
  await sender.queueRange('pc.ram', 0, BYTES);
  await Promise.all([sender.sync(), receiver.sync()]);
  await Promise.all([sender.end(), receiver.end()]);
  t.equal(sender.error ?? receiver.error, undefined);
});
