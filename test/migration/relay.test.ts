/** What a relay leaves behind, tells and says when something goes wrong, at each step; both peers are made by hand. */
import net from 'node:net';
import t, { type Test } from 'tap';
import { type Address, type MultifdError, type RelayedMigration, relayMigration } from '../../src/index.js';
import type { RelayMigrationOptions } from '../../src/migration/relay.js';
import { eventually } from '../support/raw-channel.js';
import { within } from '../support/within.js';
import { CAPTURES, streamsOf } from './captures.js';
import { HandDestination, HandSource, SHUT_0, SHUT_1, askingMain, beforeEnd, tailAt } from './peers.js';

const WAIT_MS = 20_000;
const { main, channels } = streamsOf(CAPTURES[0]);
const asking = askingMain(main);
const TAIL = tailAt(asking);
const GARBAGE = Buffer.alloc(64, 0xff);

interface Scene {
  source: HandSource;
  destination: HandDestination;
  result: Promise<RelayedMigration>;
  abort: AbortController;
}

async function scene(t: Test, options: Partial<RelayMigrationOptions> = {}): Promise<Scene> {
  const destination = await HandDestination.listen(t);
  const abort = new AbortController();
  let result!: Promise<RelayedMigration>;
  const address = await new Promise<Address>((resolve, reject) => {
    result = relayMigration({
      listen: { port: 0 },
      to: destination.address,
      signal: abort.signal,
      onListening: resolve,
      ...options,
    });
    result.catch(reject);
  });
  return { source: new HandSource(t, address, 2), destination, result, abort };
}

function failure(result: Promise<unknown>): Promise<MultifdError> {
  const failed = result.then(
    () => {
      throw new Error('it succeeded');
    },
    (error: unknown) => error as MultifdError,
  );
  return within(failed, WAIT_MS, 'relayMigration()');
}

t.test(
  "the source fails while the destination's channels connect: nothing is left at the destination",
  async (t) => {
    const { source, destination, result } = await scene(t, { out: { channels: 8 } });
    destination.onChannel = () => {
      // A second connection of a channel that is there already is refused, and ends all.
      const twin = net.connect(source.channels[0].remotePort as number).on('error', () => {});
      t.teardown(() => twin.destroy());
      twin.write(channels[0].subarray(0, 64));
      destination.onChannel = () => {};
    };
    source.channels[0].write(channels[0].subarray(0, 64));
    source.main.write(asking.subarray(0, 300));
    await failure(result);
    await eventually(() => destination.open === 0, 'every connection to the destination is closed');
  },
);

t.test('an abort while the destination has not accepted yet ends the call and the attempt', async (t) => {
  const { source, destination, result, abort } = await scene(t, { out: { channels: 4 } });
  destination.onChannel = () => abort.abort(new Error('enough'));
  source.channels[0].write(channels[0].subarray(0, 64));
  source.main.write(asking.subarray(0, 300));
  t.equal((await failure(result)).code, 'ERR_MULTIFD_ABORTED');
  await eventually(() => destination.open === 0, 'every connection to the destination is closed');
  await source.broken();
});

/** How far the source has come, in bytes of its main stream; its channels have sent all. */
const STEPS: Record<string, number> = {
  'in the block list': 150,
  'at the end of RAM': TAIL - 5,
  "in the devices' state": TAIL + 2000,
  'before SHUT 0': asking.length,
};

const FAULTS: Record<string, { act: (scene: Scene) => void; code: RegExp; message: RegExp }> = {
  'an abort': {
    act: ({ abort }) => abort.abort(new Error('enough')),
    code: /^ERR_MULTIFD_ABORTED$/,
    message: /abort/,
  },
  'a garbage byte on a channel of the source': {
    act: ({ source }) => source.channels[0].write(GARBAGE),
    code: /^ERR_MULTIFD_MAGIC$/,
    message: /^source: channel 0/,
  },
  'a garbage byte on the return path': {
    act: ({ destination }) => destination.main.write(GARBAGE),
    code: /^ERR_MULTIFD_PROTOCOL$/,
    message: /^destination: main stream at byte/,
  },
  'a closed connection at the destination': {
    act: ({ destination }) => destination.main.end(),
    code: /^ERR_MULTIFD_CONNECTION$/,
    message: /^the destination closed the main stream before .* may have refused/,
  },
  'a main stream that the source ends': {
    act: ({ source }) => source.main.end(),
    code: /^ERR_MULTIFD_(CONNECTION|EOF)$/,
    message: /^(source: |the source closed its main stream before it was told)/,
  },
  'SHUT 1': {
    act: ({ destination }) => destination.main.write(SHUT_1),
    code: /^ERR_MULTIFD_STREAM$/,
    message: /^the destination's SHUT: received 1, expected 0/,
  },
};

for (const [step, length] of Object.entries(STEPS)) {
  for (const [fault, { act, code, message }] of Object.entries(FAULTS)) {
    // Before the blocks are named nobody reads the channels.
    if (length < 200 && fault.includes('channel')) continue;
    t.test(`${fault}, ${step}: the call fails, the source is not told that it went well`, async (t) => {
      const all = await scene(t);
      const { source, destination, result } = all;
      for (const [id, socket] of source.channels.entries()) socket.write(channels[id]);
      source.main.write(asking.subarray(0, length));
      await destination.has(length < 200 ? 40 : length);
      act(all);
      const error = await failure(result);
      t.match(error.code, code);
      t.match(error.message, message);
      await source.broken();
      // Too late: it is not passed on.
      destination.main?.write(SHUT_0);
      t.equal(source.told, false);
      await eventually(() => destination.open === 0, 'every connection to the destination is closed');
    });
  }
}

const LATE: Record<string, (scene: Scene) => void> = {
  'an abort': ({ abort }) => abort.abort(new Error('enough')),
  'a garbage byte on a channel of the source': ({ source }) => source.channels[0].write(GARBAGE),
  'a garbage byte on the return path': ({ destination }) => destination.main.write(GARBAGE),
  'a garbage byte on a channel of the destination': ({ destination }) =>
    destination.sockets[1].write(GARBAGE),
  'connections that break at the destination': ({ destination }) => {
    for (const socket of destination.sockets) socket.resetAndDestroy();
  },
  'connections that break at the source': ({ source }) => source.destroy(),
};

for (const [fault, act] of Object.entries(LATE)) {
  t.test(`${fault}, after SHUT 0: the call succeeds, and the source was told`, async (t) => {
    let ended = false;
    // The first that is done when SHUT 0 has been read and passed on.
    beforeEnd(t, () => {
      ended = true;
      act(all);
    });
    const all: Scene = await scene(t);
    const { source, destination, result } = all;
    for (const [id, socket] of source.channels.entries()) socket.write(channels[id]);
    source.main.write(asking);
    await destination.has(asking.length);
    t.equal(source.told, false);
    destination.main.write(SHUT_0);
    const relayed = await within(result, WAIT_MS, 'relayMigration()');
    t.equal(ended, true);
    const isGone = fault === 'connections that break at the source';
    // A source that is gone has closed its connections with the SHUT unread, and the reset says so.
    t.equal(relayed.sourceTold, !isGone);
    if (!isGone) await eventually(() => source.told, 'the source is told');
    await eventually(() => destination.open === 0, 'every connection to the destination is closed');
  });
}

t.test('a SHUT 0 in the moment of an abort is not passed on', async (t) => {
  const { source, destination, result, abort } = await scene(t);
  for (const [id, socket] of source.channels.entries()) socket.write(channels[id]);
  source.main.write(asking);
  await destination.has(asking.length);
  abort.abort(new Error('enough'));
  destination.main.write(SHUT_0);
  t.equal((await failure(result)).code, 'ERR_MULTIFD_ABORTED');
  await source.broken();
  t.equal(source.told, false);
});

t.test("a SHUT 0 before the devices' state is refused, and not passed on", async (t) => {
  const { source, destination, result } = await scene(t);
  for (const [id, socket] of source.channels.entries()) socket.write(channels[id]);
  source.main.write(asking.subarray(0, TAIL - 5));
  await destination.has(TAIL - 5);
  destination.main.write(SHUT_0);
  const error = await failure(result);
  t.match(error.message, /SHUT 0: received before the devices' state, expected after it/);
  await source.broken();
  t.equal(source.told, false);
});

t.test('what the source did is not blamed on the destination', async (t) => {
  const cases: [what: string, main: Buffer, channel: Buffer, RegExp][] = [
    ['ends in RAM', asking.subarray(0, TAIL - 30), channels[0], /^source: main stream ended at byte/],
    [
      'ends in the devices',
      asking.subarray(0, -100),
      channels[0],
      /^source: main stream ended inside the devices'/,
    ],
    ['a channel is cut', asking, channels[0].subarray(0, 5000), /^source: channel 0/],
  ];
  for (const [what, bytes, channel, message] of cases) {
    const { source, destination, result } = await scene(t);
    // As a QEMU: it ends when its source does, and says SHUT 1.
    void eventually(() => destination.sockets.length > 0, what).then(() => {
      destination.main.on('end', () => destination.main.end(SHUT_1));
    });
    source.channels[0].end(channel);
    source.channels[1].end(channels[1]);
    source.main.end(bytes);
    const error = await failure(result);
    t.match(error.message, message, what);
    t.match(error.code, /^ERR_MULTIFD_EOF$/, what);
    t.notMatch(error.message, /destination/, what);
    t.equal(source.told, false);
  }
});
