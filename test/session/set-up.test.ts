/** Two ends that are not set up alike: both errors name what to change, in the library, on the command line and in QEMU. */
import { once } from 'node:events';
import net from 'node:net';
import t, { type Test } from 'tap';
import {
  createReceiver,
  createSender,
  type MultifdError,
  type Receiver,
  type ReceiverOptions,
  type SenderOptions,
} from '../../src/index.js';
import { PAGE, SYNC, TCP, failure, helloBytes, packetBytes } from '../support/raw-channel.js';

const PAGES = 64;
const BYTES = PAGES * PAGE;
const UUID = '00112233-4455-6677-8899-aabbccddeeff';

const ram = (name = 'ram', bytes = BYTES): SenderOptions['blocks'] => {
  const memory = new SharedArrayBuffer(bytes);
  new Uint8Array(memory).fill(7);
  return [{ name, memory }];
};

/** The error of each end. */
async function mismatch(
  t: Test,
  of: { sender?: Partial<SenderOptions>; receiver?: Partial<ReceiverOptions> },
): Promise<{ atReceiver: MultifdError; atSender: MultifdError }> {
  const blocks = ram();
  const receiver = await createReceiver({
    address: TCP,
    blocks,
    connectTimeoutMs: 500,
    stallTimeoutMs: 500,
    ...of.receiver,
  });
  t.teardown(() => receiver.close());
  const sending = (async () => {
    const sender = await createSender({ address: receiver.address, blocks, ...of.sender });
    t.teardown(() => sender.close());
    const [{ name, size }] = sender.blocks;
    // A channel that was closed is noticed by what is sent on it.
    for (;;) {
      await sender.queueRange(name, 0, size);
      await sender.sync();
    }
  })();
  const [atReceiver, atSender] = await Promise.all([
    failure(receiver.sync(), 'the receiver'),
    failure(sending, 'the sender'),
  ]);
  return { atReceiver, atSender };
}

const CASES: Record<
  string,
  { of: Parameters<typeof mismatch>[1]; code: RegExp; received: RegExp; names: RegExp }
> = {
  'fewer channels at the sender': {
    of: { sender: { channels: 1 } },
    code: /TIMEOUT/,
    received: /received 1, expected 2/,
    names: /option channels, --channels, QEMU's multifd-channels/,
  },
  'another compression': {
    of: { sender: { compression: 'zlib' } },
    code: /METHOD/,
    received: /received zlib .*, expected none/,
    names: /option compression, --compression, QEMU's multifd-compression/,
  },
  'another uuid': {
    of: { sender: { uuid: UUID } },
    code: /UUID/,
    received: /received 00112233.*, expected none/,
    names: /option uuid, --uuid, QEMU's -uuid/,
  },
  'larger pages at the sender': {
    of: { sender: { pageSize: 16384 } },
    code: /MAGIC|EOF|STALL|CONNECTION/,
    received: /another size than 4096/,
    names: /option pageSize, --page-size; a QEMU has its target's/,
  },
  'smaller pages at the sender': {
    of: { receiver: { pageSize: 16384 } },
    code: /PAGES_ALLOC|MAGIC/,
    received: /another size than 16384/,
    names: /option pageSize, --page-size; a QEMU has its target's/,
  },
  'another name of a block': {
    of: { sender: { blocks: ram('rom') } },
    code: /RAMBLOCK/,
    received: /received "rom", expected a known RAM block/,
    names: /option blocks; a QEMU has its machine's, with its -m and devices/,
  },
  'a larger block at the sender': {
    of: { sender: { blocks: ram('ram', 2 * BYTES) } },
    code: /OFFSET/,
    received: new RegExp(`expected at most ${BYTES - PAGE}; is the size of the block the same`),
    names: /option blocks; a QEMU has its machine's, with its -m and devices/,
  },
};

for (const [name, { of, code, received, names }] of Object.entries(CASES)) {
  t.test(name, async (t) => {
    const { atReceiver, atSender } = await mismatch(t, of);
    t.match(atReceiver.code, code);
    t.match(atReceiver.message, received);
    t.match(atReceiver.message, names);
    t.match(atSender.code, /^ERR_MULTIFD_CONNECT(ION)?$/);
    t.match(atSender.message, names, 'the sender can only guess, and does');
  });
}

/** A source by hand: a connection for each. */
async function connect(t: Test, receiver: Receiver, ...channels: Buffer[]): Promise<net.Socket[]> {
  const sockets: net.Socket[] = [];
  for (const bytes of channels) {
    const socket = net.connect(receiver.address as net.NetConnectOpts);
    t.teardown(() => socket.destroy());
    socket.on('error', () => {});
    await once(socket, 'connect');
    socket.write(bytes);
    sockets.push(socket);
  }
  return sockets;
}

const CHANNELS = /option channels, --channels, QEMU's multifd-channels/;

t.test('more channels at the sender', async (t) => {
  const open = async (): Promise<Receiver> => {
    const receiver = await createReceiver({ address: TCP, blocks: ram() });
    t.teardown(() => receiver.close());
    return receiver;
  };
  const named = await open();
  await connect(t, named, helloBytes({ id: 2 }));
  t.match(await failure(named.ready, 'ready'), { code: 'ERR_MULTIFD_CHANNEL_ID', message: CHANNELS });
  // Where the one too many is the last, nobody listens any more, and the source gives up.
  const left = await open();
  const sockets = await connect(t, left, helloBytes({ id: 0 }), helloBytes({ id: 1 }));
  await left.ready;
  for (const socket of sockets) socket.end();
  const error = await failure(left.sync(), 'sync()');
  t.match(error, { code: 'ERR_MULTIFD_EOF', message: /has the source more channels than here/ });
  t.match(error.message, CHANNELS);
  const address = await open().then((receiver) => receiver.address);
  const sending = (async () => {
    const sender = await createSender({ address, blocks: ram(), channels: 3 });
    t.teardown(() => sender.close());
    // A channel that was closed is noticed by what is sent on it.
    for (;;) await sender.sync();
  })();
  const atSender = await failure(sending, 'the sender');
  t.match(atSender.code, /^ERR_MULTIFD_CONNECT(ION)?$/);
  t.match(atSender.message, CHANNELS);
});

t.test('larger pages, told by a header that is too short', async (t) => {
  const receiver = await createReceiver({ address: TCP, blocks: ram(), channels: 1 });
  t.teardown(() => receiver.close());
  const sync = packetBytes({ flags: SYNC, pageSize: 16384 });
  const [socket] = await connect(t, receiver, Buffer.concat([helloBytes({ id: 0 }), sync]));
  socket.end();
  t.match(await failure(receiver.sync(), 'sync()'), {
    code: 'ERR_MULTIFD_EOF',
    message: /another size than 4096 \(option pageSize, --page-size; a QEMU has its target's\)/,
  });
  // One that is cut off anywhere else is no sign of that.
  const other = await createReceiver({ address: TCP, blocks: ram(), channels: 1 });
  t.teardown(() => other.close());
  const [cut] = await connect(t, other, Buffer.concat([helloBytes({ id: 0 }), sync.subarray(0, 100)]));
  cut.end();
  t.notMatch((await failure(other.sync(), 'sync()')).message, /another size/);
});

t.test('device state of a device that is not there, or that is too large', async (t) => {
  for (const [idstr, bytes, message] of [
    ['dev', 10, /received 10, expected 1 to 5 \(option deviceStateBytes\)/],
    ['none', 1, /received "none" instance 0, expected one of dev\/0 \(option devices\)/],
  ] as const) {
    const blocks = ram();
    const devices = [{ idstr: 'dev', instanceId: 0, load: () => undefined }];
    const receiver = await createReceiver({ address: TCP, blocks, devices, deviceStateBytes: 5 });
    t.teardown(() => receiver.close());
    const sender = await createSender({ address: receiver.address, blocks });
    t.teardown(() => sender.close());
    await sender.queueDeviceState(idstr, 0, Buffer.alloc(bytes));
    t.match(await failure(receiver.sync(), 'sync()'), { code: 'ERR_MULTIFD_DEVICE_STATE', message });
    await sender.close();
  }
});

t.test('a source with TLS is told by the time-out, where nothing but channels is waited for', async (t) => {
  const receiver = await createReceiver({ address: TCP, blocks: ram(), acceptTimeoutMs: 500 });
  t.teardown(() => receiver.close());
  const socket = net.connect(receiver.address as net.NetConnectOpts);
  t.teardown(() => socket.destroy());
  socket.on('error', () => {});
  // The begin of a ClientHello.
  socket.write(Buffer.concat([Buffer.from('16030102000100', 'hex'), Buffer.alloc(510)]));
  t.match(await failure(receiver.ready, 'ready'), {
    code: 'ERR_MULTIFD_TIMEOUT',
    message:
      /received 0, expected 1; a connection came in with TLS: option tls, --tls-creds, QEMU's tls-creds/,
  });
});
