/** What a source may claim, and what it costs when it is only claimed: RAM, blocks, the VM description. */
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import t, { type Test } from 'tap';
import {
  type Address,
  type ReceiveMigrationOptions,
  type ReceivedMigration,
  describeMigrationFile,
  readMappedRam,
  receiveMigration,
  relayMigration,
  sendMigration,
} from '../../src/index.js';
import { BOUND_RANGES, type BoundOptions, DEFAULT_BOUNDS, checkBounds } from '../../src/stream/bounds.js';
import { encodeConfiguration, encodeFileHeader } from '../../src/stream/configuration.js';
import {
  encodeEos,
  encodeFlush,
  encodeFooter,
  encodeMemSize,
  encodeSection,
} from '../../src/stream/main-writer.js';
import {
  eventually,
  failure,
  helloBytes,
  packetBytes,
  syncBytes,
  temporaryDirectory,
} from '../support/raw-channel.js';
import { within } from '../support/within.js';
import { play } from './captures.js';
import { HandDestination } from './peers.js';

const WAIT_MS = 20_000;
/** The main stream last: when it is refused all others have connected. */
const ORDER: ('main' | number)[] = [0, 1, 'main'];
const TIB = 2 ** 40;
/** A device's section, and EOF. */
const TAIL = Buffer.from('04000000000178000000000000000' + '17e0000000000', 'hex');

interface Claims {
  /** So many pages with data of the first block, as far apart as they can be. */
  pages?: number;
  blocks?: number;
  /** Of each block. */
  size?: number;
  description?: string;
}

/** A source that claims, and sends no page. */
function claiming({ pages = 0, blocks = 1, size = 4096, description }: Claims): {
  main: Buffer;
  channels: Buffer[];
} {
  const list = Array.from({ length: blocks }, (_, i) => ({ name: `b${i}`, usedLength: size }));
  const end = [encodeFlush(), encodeEos(), encodeFooter(2)];
  const json = Buffer.from(description ?? '');
  const head = Buffer.from('0600000000', 'hex');
  head.writeUInt32BE(json.length, 1);
  const main = Buffer.concat([
    encodeFileHeader(),
    encodeConfiguration({ machine: 'pc-i440fx-10.0' }),
    ...[encodeSection('start', 2), encodeMemSize(list), ...end],
    ...[encodeSection('end', 2), ...end],
    TAIL,
    ...(description === undefined ? [] : [head, json]),
  ]);
  const packets = Array.from({ length: pages }, (_, i) =>
    packetBytes({ ramblock: 'b0', normal: [(i * size) / pages], payload: Buffer.alloc(4096, 1) }),
  );
  const channels = [packets, []].map((before, id) =>
    Buffer.concat([helloBytes({ id }), syncBytes(), ...before, syncBytes()]),
  );
  return { main, channels };
}

/** One device that has not the section's bytes, and many blanks. */
function descriptionOf(bytes: number): string {
  const json = '{"devices": [{"name": "x", "instance_id": 0, "fields": []}]';
  return `${json}${' '.repeat(bytes - json.length - 1)}}`;
}

async function receive(
  t: Test,
  claims: Claims,
  options: Partial<ReceiveMigrationOptions> = {},
): Promise<ReceivedMigration> {
  const out = path.join(temporaryDirectory(t), 'vm.mig');
  let result!: Promise<ReceivedMigration>;
  const address = await new Promise<Address>((resolve, reject) => {
    result = receiveMigration({ address: { port: 0 }, out, onListening: resolve, ...options });
    result.catch(reject);
  });
  const { sockets } = await play(address, claiming(claims), ORDER);
  t.teardown(() => sockets.forEach((socket) => socket.destroy()));
  return within(result, WAIT_MS, 'receiveMigration()');
}

const TOO_MUCH: [option: keyof BoundOptions, bound: number, claims: Claims, received: string][] = [
  ['maxRam', 8192, { blocks: 3 }, 'bytes of RAM in all: received 12288'],
  ['maxBlocks', 2, { blocks: 3 }, 'RAM blocks: received more than 2'],
  [
    'maxDescription',
    1000,
    { blocks: 3, description: descriptionOf(1001) },
    'bytes of the VM description: received 1001',
  ],
];

for (const [option, bound, claims, received] of TOO_MUCH) {
  const flag = `--${option.replaceAll(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`;
  const message = `${received}, expected at most ${bound} (option ${option}, ${flag})`;
  // The description in a file says what its configuration holds, and so is longer.
  const inFile = `expected at most ${bound} (option ${option}, ${flag})`;

  t.test(
    `${option}: a source that claims more is refused by receive, and told by which option`,
    async (t) => {
      const error = await failure(receive(t, claims, { [option]: bound }), 'ERR_MULTIFD_STREAM');
      t.match(error.message, message);
    },
  );

  t.test(`${option}: as much as it says is received`, async (t) => {
    const most = {
      ...claims,
      blocks: 2,
      ...(option === 'maxDescription' && { description: descriptionOf(1000) }),
    };
    t.equal((await receive(t, most, { [option]: bound })).blocks.length, 2);
  });

  t.test(`${option}: so it is by relay, which says that it is the source's`, async (t) => {
    const destination = await HandDestination.listen(t);
    let result!: Promise<unknown>;
    const address = await new Promise<Address>((resolve, reject) => {
      const common = { listen: { port: 0 }, to: destination.address, onListening: resolve };
      result = relayMigration({ ...common, [option]: bound });
      result.catch(reject);
    });
    const { sockets } = await play(address, claiming(claims), ORDER);
    t.teardown(() => sockets.forEach((socket) => socket.destroy()));
    const error = await failure(result, 'ERR_MULTIFD_STREAM');
    t.match(error.message, `source: main stream`);
    t.match(error.message, message);
    await eventually(() => destination.open === 0, 'the destination has no connection left');
  });

  t.test(`${option}: a file that claims more is described as far as it goes`, async (t) => {
    const { out } = await receive(t, claims);
    const file = await readMappedRam(out, { [option]: bound });
    t.match(file.problems[0], { fatal: option !== 'maxDescription', message: inFile });
    t.equal(file.vmDescription, undefined);
    if (claims.description !== undefined)
      t.equal((await readMappedRam(out)).vmDescription?.devices.length, 1, 'by default it is listed');
    const described = await describeMigrationFile(out, { [option]: bound });
    t.match(described, { kind: 'mapped-ram', problems: [{ message: inFile }] });
    const capture = path.join(path.dirname(out), 'main.bin');
    fs.writeFileSync(capture, claiming(claims).main);
    const main = await describeMigrationFile(capture, { [option]: bound });
    t.match(main, { kind: 'main-stream', problem: { code: 'ERR_MULTIFD_STREAM', message } });
    if (option === 'maxDescription') return;
    const sending = sendMigration({ file: out, to: 'tcp:127.0.0.1:1', [option]: bound });
    t.match((await failure(sending, 'ERR_MULTIFD_STREAM')).message, message);
  });

  t.test(`${option}: given wrongly it is refused by each call, before anything is opened`, async (t) => {
    const { min, max } = BOUND_RANGES[option];
    t.same(checkBounds({}), DEFAULT_BOUNDS);
    t.equal(checkBounds({ [option]: min })[option], min);
    t.equal(checkBounds({ [option]: max })[option], max);
    for (const value of [min - 1, max + 1, 1.5, '1', null, NaN]) {
      const wrong = { [option]: value } as unknown as BoundOptions;
      const refused = { code: 'ERR_MULTIFD_OPTION', message: new RegExp(`^option ${option}: given`) };
      t.throws(() => checkBounds(wrong), refused);
      const missing = path.join(temporaryDirectory(t), 'none', 'vm.mig');
      await t.rejects(receiveMigration({ address: { port: 0 }, out: missing, ...wrong }), refused);
      await t.rejects(relayMigration({ listen: { port: 0 }, to: 'tcp:127.0.0.1:1', ...wrong }), refused);
      await t.rejects(sendMigration({ file: missing, to: 'tcp:127.0.0.1:1', ...wrong }), refused);
      await t.rejects(describeMigrationFile(missing, wrong), refused);
    }
  });
}

/** KiB that a process gets for reading memory that it has never written. Of a child's own: the most that it had is its parent's as well. */
function costOfReading(bytes: number): number {
  const script = `
    const words = new Int32Array(new SharedArrayBuffer(${bytes}));
    const before = process.memoryUsage.rss();
    let sum = 0;
    for (let i = 0; i < words.length; i += 1024) sum += words[i];
    console.log(sum + Math.max(0, process.memoryUsage.rss() - before) / 1024);`;
  return Number(execFileSync(process.execPath, ['-e', script], { encoding: 'utf8' }));
}

t.test('4 TiB that are only claimed are neither memory nor disk', async (t) => {
  const before = process.resourceUsage().maxRSS;
  const { out, blocks, fileBytes } = await receive(t, { size: 4 * TIB });
  t.match(blocks, [{ size: 4 * TIB, presentPages: 0 }]);
  t.ok(fileBytes > 4 * TIB);
  t.ok(fs.statSync(out).blocks * 512 < 2 ** 20, 'the file is a hole');
  // Its bitmaps: two of 128 MiB, of which one is read. Memory that is only read is none, but for kernels that give each page.
  t.ok(process.resourceUsage().maxRSS - before < 96 * 1024 + costOfReading(2 ** 27), 'KiB');
});

t.test('pages that are far apart take twice their room on disk, and no more', async (t) => {
  const pages = 128;
  const { out, blocks } = await receive(t, { size: 4 * TIB, pages });
  t.match(blocks, [{ presentPages: pages }]);
  t.ok(fs.statSync(out).blocks * 512 < pages * 8192 + 2 ** 20);
});

t.test('descriptors do not grow with the blocks: one of the file is there for all of them', async (t) => {
  const most: number[] = [];
  for (const blocks of [1, 1000]) {
    let peak = 0;
    await receive(
      t,
      { blocks },
      {
        onSession: (receiver) => {
          const look = (): void => void (peak = Math.max(peak, fs.readdirSync('/proc/self/fd').length));
          // All threads are there, and each has what it has.
          void receiver.ready.then(look, () => {});
        },
      },
    );
    most.push(peak);
  }
  t.ok(most[0] > 0);
  // The first call's libraries and pipes stay open.
  t.ok(Math.abs(most[1] - most[0]) < 10, most.join(' '));
});

t.test('maxStrays: so many connections may be there that say nothing, then the oldest goes', async (t) => {
  let strays!: () => number;
  let result!: Promise<ReceivedMigration>;
  const out = path.join(temporaryDirectory(t), 'vm.mig');
  const address = await new Promise<Address>((resolve, reject) => {
    result = receiveMigration({
      address: { port: 0 },
      out,
      maxStrays: 4,
      onListening: resolve,
      onSession: (receiver) => (strays = () => receiver.stats().strays),
    });
    result.catch(reject);
  });
  const silent: net.Socket[] = [];
  t.teardown(() => silent.forEach((socket) => socket.destroy()));
  for (let i = 0; i < 10; i++) {
    silent.push(
      net
        .connect(address as net.NetConnectOpts)
        .on('error', () => {})
        .resume(),
    );
  }
  await eventually(() => strays() === 6, 'the oldest are dropped');
  const { sockets } = await play(address, claiming({}), ORDER);
  t.teardown(() => sockets.forEach((socket) => socket.destroy()));
  await within(result, WAIT_MS, 'receiveMigration()');
});
