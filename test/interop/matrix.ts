/**
 * Whole migrations in one process, sender to receiver, every byte compared after every sync: each method, and none without
 * copies, with each zero-page detection, every page size and number of channels somewhere (matrix.test.ts, in `npm test`); and
 * everything with everything, one file for each method, so that two run side by side (`npm run test:exhaustive`).
 */
import t, { type Test } from 'tap';
import {
  createReceiver,
  createSender,
  type Compression,
  type Receiver,
  type Sender,
  type ZeroPageDetection,
} from '../../src/index.js';
import { findKoffi } from '../../src/native/koffi.js';
import { CONTENTS, Guest, type GuestBlock } from '../support/guest.js';
import { Random } from '../support/random.js';
import { STORE_KINDS, type StoreKind } from '../support/store.js';
import { within } from '../support/within.js';

const COMPRESSIONS: Compression[] = ['none', 'zlib', 'zstd'];
const CHANNELS = [1, 2, 5, 16];
const PAGE_SIZES = [4096, 65536];
const DETECTIONS: ZeroPageDetection[] = ['none', 'legacy', 'multifd'];
const WAIT_MS = 30_000;

interface Case {
  channels: number;
  compression: Compression;
  zeroPageDetection: ZeroPageDetection;
  pageSize: number;
  zeroCopySend?: boolean;
}

interface Migration {
  sender: Sender;
  receiver: Receiver;
  /** A sync point on both sides; every byte must then be equal. */
  sync(what: string): Promise<void>;
  syncs: number;
}

async function open(t: Test, guest: Guest, options: Case): Promise<Migration> {
  const { channels, compression, pageSize, zeroPageDetection, zeroCopySend } = options;
  const receiver = await createReceiver({
    address: 'tcp:127.0.0.1:0',
    blocks: guest.blocks.map((block) => block.destination.options),
    channels,
    compression,
    pageSize,
  });
  t.teardown(() => receiver.close());
  const sender = await createSender({
    address: receiver.address,
    blocks: guest.blocks.map((block) => block.source.options),
    channels,
    compression,
    pageSize,
    zeroPageDetection,
    zeroCopySend,
    // A main stream is not here yet: what it would carry reaches the receiver directly.
    onZeroPages:
      zeroPageDetection === 'legacy'
        ? (block, offset, length) => receiver.zeroRange(block.name, offset, length)
        : undefined,
  });
  t.teardown(() => sender.close());
  const migration: Migration = {
    sender,
    receiver,
    syncs: 0,
    sync: async (what) => {
      await within(Promise.all([sender.sync(), receiver.sync()]), WAIT_MS, `sync: ${what}`);
      migration.syncs++;
      t.same(guest.differences(), [], what);
    },
  };
  return migration;
}

async function end(t: Test, { sender, receiver, syncs }: Migration, channels: number): Promise<void> {
  await within(Promise.all([sender.end(), receiver.end()]), WAIT_MS, 'the ends');
  await within(Promise.all([sender.done, receiver.done]), WAIT_MS, 'done');
  const sent = sender.stats();
  const came = receiver.stats();
  t.same(
    [came.packets, came.normalPages, came.zeroPages, came.syncs],
    [sent.packets, sent.normalPages, sent.zeroPages, sent.syncs],
    'both sides counted the same',
  );
  t.equal(sent.syncs, syncs * channels);
}

/** Queues each block whole: in ranges of any length and single pages, in any order, several calls at a time. */
async function queueAll(sender: Sender, guest: Guest, random: Random): Promise<void> {
  const pieces: [GuestBlock, number, number][] = [];
  for (const block of guest.blocks) {
    for (let page = 0; page < block.pageCount;) {
      const count = Math.min(block.pageCount - page, [1, 3, 20, 150][random.below(4)]);
      pieces.push([block, page, count]);
      page += count;
    }
  }
  const pending: Promise<void>[] = [];
  for (const [block, page, count] of random.shuffle(pieces)) {
    const offset = page * guest.pageSize;
    pending.push(
      count === 1
        ? sender.queuePage(block.name, offset)
        : sender.queueRange(block.name, offset, count * guest.pageSize),
    );
    if (random.below(3) > 0) await Promise.all(pending.splice(0));
  }
  await Promise.all(pending);
}

/** Blocks of all kinds, each kind of source with each kind of destination. */
function addBlocks(guest: Guest, random: Random): void {
  const base = (kind: StoreKind): string => kind.split('-')[0];
  const kinds = ['shared', 'private', 'file'];
  const pick = (kind: string): StoreKind =>
    random.shuffle(STORE_KINDS.filter((one) => base(one) === kind))[0];
  const small = guest.pageSize === 4096 ? 30 : 3;
  for (const source of kinds) {
    for (const destination of kinds) {
      guest.add(`${source}-to-${destination}`, pick(source), pick(destination), small + random.below(small));
    }
  }
  // More than one packet.
  const full = 524288 / guest.pageSize;
  guest.add('pc.ram', 'shared', 'shared', full + 1 + random.below(full));
}

async function migrate(t: Test, options: Case, seed: number): Promise<void> {
  const random = new Random(seed);
  const guest = new Guest(t, options.pageSize);
  addBlocks(guest, random);
  for (const block of guest.blocks) {
    for (let page = 0; page < block.pageCount; page++) {
      guest.writePage(block, page, CONTENTS[random.below(CONTENTS.length)], random);
    }
  }
  const migration = await open(t, guest, options);
  const { sender, receiver } = migration;
  // As QEMU's set-up section: a sync point before any page.
  await within(Promise.all([sender.sync(), receiver.sync()]), WAIT_MS, 'first sync');
  migration.syncs++;

  await queueAll(sender, guest, random);
  await migration.sync('all pages');
  for (const block of guest.blocks) t.equal(receiver.received(block.name).count(), block.pageCount);

  // Dirty pages: in each block one that becomes zero, one that stops being zero, and others; any order.
  const dirty: [GuestBlock, number][] = [];
  for (const block of guest.blocks) {
    const pages = random.shuffle(Array.from({ length: block.pageCount }, (_, page) => page));
    const wasZero = pages.find((page) => guest.isZeroPage(block, page));
    const wasNot = pages.find((page) => !guest.isZeroPage(block, page));
    for (const page of pages.slice(0, Math.ceil(pages.length / 5))) {
      guest.writePage(block, page, CONTENTS[random.below(CONTENTS.length)], random);
      dirty.push([block, page]);
    }
    if (wasNot !== undefined) {
      guest.writePage(block, wasNot, 'zero', random);
      dirty.push([block, wasNot]);
    }
    if (wasZero !== undefined) {
      guest.writePage(block, wasZero, 'middle', random);
      dirty.push([block, wasZero]);
    }
  }
  for (const [block, page] of random.shuffle(dirty)) {
    await sender.queuePage(block.name, page * options.pageSize);
  }
  await migration.sync('dirty pages');

  // The same few pages again and again within one phase, whatever they hold.
  for (let round = 0; round < 4; round++) {
    for (const block of guest.blocks) {
      for (let page = 0; page < Math.min(4, block.pageCount); page++) {
        guest.writePage(block, page, CONTENTS[random.below(CONTENTS.length)], random);
        await sender.queuePage(block.name, page * options.pageSize);
      }
    }
    if (round < 2) await sender.flush();
  }
  await migration.sync('pages queued again within a phase');

  await migration.sync('nothing');
  await end(t, migration, options.channels);
}

/**
 * Pages whose old content is in a large packet on one channel while newer contents go out in small ones on others:
 * only what was there at the last queueing may be left after the sync.
 */
async function hotPages(t: Test, options: Case, seed: number): Promise<void> {
  const random = new Random(seed);
  const guest = new Guest(t, options.pageSize);
  const full = 524288 / options.pageSize;
  guest.add('private', 'private', 'shared', full);
  guest.add('shared', 'shared-odd', 'private', full);
  guest.add('file', 'file', 'file-offset', full);
  for (const block of guest.blocks) {
    for (let page = 0; page < full; page++) guest.writePage(block, page, 'random', random);
  }
  const migration = await open(t, guest, options);
  const { sender } = migration;
  await queueAll(sender, guest, random);
  await migration.sync('all pages');
  const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));
  for (let phase = 0; phase < 6; phase++) {
    const block = guest.blocks[phase % 3];
    const hot = random.shuffle(Array.from({ length: full }, (_, page) => page)).slice(0, 6);
    for (const page of hot) {
      guest.writePage(block, page, random.below(3) === 0 ? 'zero' : 'random', random);
    }
    // The old contents, in one full packet.
    await sender.queueRange(block.name, 0, full * options.pageSize);
    await sender.flush();
    const rounds = 1 + random.below(4);
    for (let round = 0; round < rounds; round++) {
      // Shared memory and files are read when the channel gets there: let it.
      if (random.below(2) === 0) await turn();
      for (const page of hot) {
        guest.writePage(block, page, random.below(3) === 0 ? 'zero' : 'random', random);
        await sender.queuePage(block.name, page * options.pageSize);
        if (random.below(2) === 0) await sender.flush();
      }
      // Another block between, so that packets of this one do not wait for company.
      await sender.queuePage(guest.blocks[(phase + 1) % 3].name, random.below(full) * options.pageSize);
    }
    await migration.sync(`phase ${phase}`);
  }
  await end(t, migration, options.channels);
}

/** Channels and page size. */
const HOT: [number, number][] = [
  [2, 16384],
  [5, 4096],
];
const LIMIT = { timeout: 60_000 };

function wayOf({ compression, zeroCopySend }: Case): string {
  return zeroCopySend === true ? `${compression} without copies` : compression;
}

function testMigration(options: Case, seed: number): void {
  const { channels, pageSize, zeroPageDetection } = options;
  const name = `${wayOf(options)}/${zeroPageDetection}/pages of ${pageSize}/${channels} channels`;
  t.test(name, LIMIT, (t) => migrate(t, options, seed));
}

function testHotPages(options: Case, seed: number): void {
  const { channels, zeroPageDetection } = options;
  const name = `${wayOf(options)}/${zeroPageDetection}/${channels} channels/pages queued again: the last content wins`;
  t.test(name, LIMIT, (t) => hotPages(t, options, seed));
}

/** Everything with everything. */
export function testMatrix(compression: Compression, zeroCopySend = false): void {
  let seed = 1;
  for (const zeroPageDetection of DETECTIONS) {
    for (const pageSize of PAGE_SIZES) {
      for (const channels of CHANNELS) {
        testMigration({ channels, compression, zeroPageDetection, pageSize, zeroCopySend }, seed++);
      }
    }
    for (const [channels, pageSize] of HOT) {
      testHotPages({ channels, compression, zeroPageDetection, pageSize, zeroCopySend }, seed++);
    }
  }
}

/** Each method with each detection; the rest in turn. */
export function testSome(): void {
  let turn = 0;
  // What is said where there is no koffi is test/send/zero-copy.test.ts's.
  const copies: [Compression, boolean][] = findKoffi() === undefined ? [] : [['none', true]];
  const plain = COMPRESSIONS.map((compression): [Compression, boolean] => [compression, false]);
  for (const [compression, zeroCopySend] of [...plain, ...copies]) {
    for (const zeroPageDetection of DETECTIONS) {
      const channels = CHANNELS[turn % CHANNELS.length];
      const pageSize = PAGE_SIZES[turn % PAGE_SIZES.length];
      testMigration({ channels, compression, zeroPageDetection, pageSize, zeroCopySend }, turn);
      const [hotChannels, hotPageSize] = HOT[turn % HOT.length];
      const hot = {
        channels: hotChannels,
        compression,
        zeroPageDetection,
        pageSize: hotPageSize,
        zeroCopySend,
      };
      testHotPages(hot, turn);
      turn++;
    }
  }
}
