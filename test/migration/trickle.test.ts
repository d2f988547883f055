/** A main stream that ends too early, while a channel goes on: what cannot succeed any more ends, however slowly bytes come. */
import { once } from 'node:events';
import net from 'node:net';
import path from 'node:path';
import t, { type Test } from 'tap';
import {
  type Address,
  createMigrationDestination,
  receiveMigration,
  relayMigration,
} from '../../src/index.js';
import { encodeConfiguration, encodeFileHeader } from '../../src/stream/configuration.js';
import {
  encodeCommand,
  encodeEos,
  encodeFlush,
  encodeFooter,
  encodeMemSize,
  encodeSection,
} from '../../src/stream/main-writer.js';
import { COMMAND_OPEN_RETURN_PATH } from '../../src/stream/records.js';
import { helloBytes, packetBytes, syncBytes, temporaryDirectory } from '../support/raw-channel.js';
import { within } from '../support/within.js';
import { HandDestination } from './peers.js';

const WAIT_MS = 20_000;
const MACHINE = 'pc-i440fx-10.0';
const SIZE = 2 ** 20;
/** Far below the time-out of a stall. */
const TRICKLE_MS = 100;

type Start = (t: Test) => Promise<{ address: Address; result: Promise<unknown> }>;

const STARTS: Record<string, Start> = {
  receive: async (t) => {
    const out = path.join(temporaryDirectory(t), 'vm.mig');
    return listening((onListening) => receiveMigration({ address: { port: 0 }, out, onListening }));
  },
  relay: async (t) => {
    const destination = await HandDestination.listen(t);
    return listening((onListening) =>
      relayMigration({ listen: { port: 0 }, to: destination.address, onListening }),
    );
  },
  destination: async (t) => {
    const destination = await createMigrationDestination({
      listen: { port: 0 },
      machine: MACHINE,
      blocks: [{ name: 'pc.ram', memory: new SharedArrayBuffer(SIZE) }],
      devices: [],
      start: () => {},
    });
    t.teardown(() => destination.cancel());
    return { address: destination.address, result: destination.done };
  },
};

async function listening(
  begin: (onListening: (address: Address) => void) => Promise<unknown>,
): Promise<{ address: Address; result: Promise<unknown> }> {
  let result!: Promise<unknown>;
  const address = await new Promise<Address>((resolve, reject) => {
    result = begin(resolve);
    result.catch(reject);
  });
  return { address, result };
}

/** Up to a sync point that the channels do not reach, and what there is behind it. */
function cutMain(rest: Buffer[]): Buffer {
  const marker = [encodeFlush(), encodeEos(), encodeFooter(2)];
  return Buffer.concat([
    encodeFileHeader(),
    encodeConfiguration({ machine: MACHINE }),
    encodeCommand(COMMAND_OPEN_RETURN_PATH),
    ...[encodeSection('start', 2), encodeMemSize([{ name: 'pc.ram', usedLength: SIZE }]), ...marker],
    ...[encodeSection('part', 2), ...marker],
    ...rest,
  ]);
}

const FURTHER = [encodeSection('part', 2), encodeFlush(), encodeEos(), encodeFooter(2)];
const CUTS: Record<string, Buffer[]> = {
  'behind a round': [],
  'some rounds further on': Array.from({ length: 20 }, () => FURTHER).flat(),
};

t.test('a main stream that ends too early ends all, whatever trickles on a channel', async (t) => {
  const ends = Object.entries(CUTS).flatMap(([cut, rest]) =>
    Object.entries(STARTS).map(async ([way, start]) => {
      const name = `${way}, ${cut}`;
      const { address, result } = await start(t);
      result.catch(() => {});
      const connect = async (bytes: Buffer): Promise<net.Socket> => {
        const socket = net.connect(address as net.NetConnectOpts);
        t.teardown(() => socket.destroy());
        await once(socket, 'connect');
        socket.on('error', () => {}).resume();
        socket.write(bytes);
        return socket;
      };
      const main = await connect(cutMain(rest));
      const trickling = await connect(Buffer.concat([helloBytes({ id: 0 }), syncBytes()]));
      await connect(Buffer.concat([helloBytes({ id: 1 }), syncBytes()]));
      main.end();
      const trickle = setInterval(() => trickling.write(packetBytes({ zero: [0] })), TRICKLE_MS);
      t.teardown(() => clearInterval(trickle));
      const message = /main stream ended at byte .*broke the migration off/;
      await t.rejects(within(result, WAIT_MS, name), { code: 'ERR_MULTIFD_EOF', message }, name);
      clearInterval(trickle);
    }),
  );
  await Promise.all(ends);
});
