/**
 * What the tests with real QEMUs do: park a running guest in a file, load the file with a stock QEMU, send it on. Each
 * compares all of the guest's RAM before the guest runs on.
 */
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Test } from 'tap';
import {
  type TlsVersion,
  type ReceivedMigration,
  type SentMigration,
  readMappedRam,
  receiveMigration,
  sendMigration,
} from '../../src/index.js';
import { type Compression } from '../../src/options.js';
import { formatAddress, type Address, type AddressText } from '../../src/transport/address.js';
import { within } from '../support/within.js';
import type { Program } from './programs.js';
import { type Outgoing, Qemu } from './qemu.js';
import { HOST, type Kind, ourTls, setTls } from './tls.js';
import { differingPages, pagesWithData } from '../../src/cli/demo/qemu/compare-ram.js';

const MIGRATION_MS = 60_000;
/**
 * Slow enough that the guest dirties its pages during a pass, and that these are too many for the last one. (It ends
 * all the same when a short pass falls into the guest's delay.)
 */
const SLOW = { 'max-bandwidth': 32 * 2 ** 20, 'downtime-limit': 1 };
const FAST = { 'max-bandwidth': 2 ** 40, 'downtime-limit': 2000 };
/** Reads of the dirty bitmap: at the start, after the first pass, after the second; QEMU goes on if it can. */
const PASSES = 4;
const LEAST_PASSES = 3;
/** That the guest writes all the while. */
const COUNTER_PAGES = 256;
/** Pages that the boot sector fills, of the 8192. */
const FILLED_PAGES = 6144;

export interface Parked {
  file: string;
  /** Where the stream begins in the file. */
  offset?: number;
  machine: string;
  /** The guest's RAM at the source, which is paused. */
  ram: Buffer;
  counter: number;
  received: ReceivedMigration;
}

export interface ParkOptions extends Outgoing {
  /** Over tcp instead of a unix socket. */
  tcp?: boolean;
  /** Is the guest paused before? */
  paused?: boolean;
  tls?: ParkTls;
  directIo?: boolean;
}

/** Credentials at both ends. */
export interface ParkTls {
  kind: Kind;
  dir: string;
  /** What QEMU speaks alone. */
  version?: TlsVersion;
}

/** Configures the source and lets it migrate to `address`, in several passes unless the guest is paused. */
export async function migrate(source: Qemu, to: string, options: ParkOptions): Promise<void> {
  await source.setMultifd(options);
  if (options.tls !== undefined) await setTls(source, { ...options.tls, endpoint: 'client', hostname: HOST });
  if (options.paused === true) {
    await source.execute('stop');
    await source.setParameters(FAST);
  } else await makeSlow(source);
  await source.execute('migrate', { uri: to });
  if (options.paused !== true) await makeFast(source);
}

/** Before a migration of a guest that runs. */
export async function makeSlow(source: Qemu): Promise<void> {
  await source.setParameters(SLOW);
}

/** When it has passed several times: now to the end. */
export async function makeFast(source: Qemu): Promise<void> {
  await source.dirtySyncs(PASSES);
  await source.setParameters(FAST);
}

/** The source has migrated and is paused. @returns its guest, to compare with */
export async function checkSource(
  t: Test,
  source: Qemu,
  paused: boolean,
): Promise<{ ram: Buffer; counter: number }> {
  const info = await source.migrationEnd();
  t.equal(info.status, 'completed', 'the source has migrated');
  t.equal(await source.status(), 'postmigrate', 'and is paused');
  const passes = info.ram?.['dirty-sync-count'] ?? 0;
  if (!paused) t.ok(passes >= LEAST_PASSES, `${passes} reads of the dirty bitmap`);
  const ram = await source.ram();
  t.ok(pagesWithData(ram) >= FILLED_PAGES, 'the source has RAM to compare');
  return { ram, counter: await source.counter() };
}

let files = 0;

/** Receives the guest into a file of its own and holds what the file says against the source. */
export async function park(t: Test, source: Qemu, options: ParkOptions): Promise<Parked> {
  const name = `vm${files++}`;
  const file = path.join(source.folder, `${name}.mig`);
  let listen!: (address: Address) => void;
  const listening = new Promise<Address>((resolve) => (listen = resolve));
  const result = receiveMigration({
    address: options.tcp === true ? 'tcp:127.0.0.1:0' : `unix:${path.join(source.folder, `${name}.sock`)}`,
    channels: options.channels,
    compression: options.compression,
    ...(options.tls && { tls: ourTls(options.tls.kind, options.tls.dir, 'server') }),
    out: file,
    directIo: options.directIo === true,
    onListening: listen,
  });
  result.catch(() => {});
  await Promise.race([listening, result]);
  const address = formatAddress(await listening);
  const [received] = await Promise.all([
    within(result, MIGRATION_MS, 'receiveMigration()'),
    migrate(source, address, options),
  ]);
  const { ram, counter } = await checkSource(t, source, options.paused === true);
  if (options.paused !== true) {
    const present = received.blocks.reduce((sum, block) => sum + block.presentPages, 0);
    t.ok(received.stats.normalPages >= present + COUNTER_PAGES, 'pages were sent again');
  }
  t.equal(received.returnPath, options.returnPath === true);
  const description = await readMappedRam(file);
  t.same(description.problems, [], 'readMappedRam() finds no problem');
  t.equal(description.machine, received.machine);
  return { file, machine: received.machine, ram, counter, received };
}

/** After a migration the source's guest may run on as if it had failed: one source serves many tests. */
export async function resume(source: Qemu): Promise<void> {
  if ((await source.status()) !== 'running') await source.execute('cont');
}

/** The guest that has come: RAM equal before it runs, and then it counts on. */
export async function checkGuest(
  t: Test,
  destination: Qemu,
  parked: Pick<Parked, 'ram' | 'counter'>,
): Promise<void> {
  const info = await destination.migrationEnd();
  t.equal(info.status, 'completed', `QEMU ${destination.program.version} has loaded it`);
  t.equal(await destination.status(), 'paused');
  t.same(differingPages(await destination.ram(), parked.ram), [], 'all guest RAM is equal');
  await destination.execute('cont');
  // A delay and a round at least.
  await destination.waitForSerial(/\.{2}/);
  t.equal(await destination.status(), 'running', 'the guest runs on');
  t.ok((await destination.counter()) > parked.counter, 'and counts on');
  await destination.kill();
}

/** Loads the file with a stock QEMU, `-incoming file:`. */
export async function load(
  t: Test,
  program: Program,
  parked: Pick<Parked, 'file' | 'machine' | 'ram' | 'counter'>,
  folder: string,
  { channels = 0, directIo = false }: { channels?: number; directIo?: boolean } = {},
): Promise<void> {
  const destination = await Qemu.start(t, program, folder, { machine: parked.machine, incoming: true });
  await destination.setCapabilities({ 'mapped-ram': true, multifd: channels > 0 });
  if (channels > 0) await destination.setParameters({ 'multifd-channels': channels, 'direct-io': directIo });
  await destination.execute('migrate-incoming', { uri: `file:${parked.file}` });
  await checkGuest(t, destination, parked);
}

export interface SendOptions {
  /** Over tcp instead of a unix socket. */
  tcp?: boolean;
  channels: number;
  compression: Compression;
  zeroCopySend?: boolean;
  /** Bytes a second. */
  maxBandwidth?: number;
  tls?: ParkTls;
  directIo?: boolean;
}

/** Sends the file into a fresh QEMU. */
export async function send(
  t: Test,
  program: Program,
  parked: Pick<Parked, 'file' | 'offset' | 'machine' | 'ram' | 'counter'>,
  folder: string,
  options: SendOptions,
): Promise<SentMigration> {
  const destination = await Qemu.start(t, program, folder, { machine: parked.machine, incoming: true });
  await destination.setMultifd(options);
  const { tcp, tls, ...sendOptions } = options;
  if (tls !== undefined) await setTls(destination, { ...tls, endpoint: 'server' });
  let to: AddressText = tcp === true ? 'tcp:127.0.0.1:0' : `unix:${path.join(folder, `vm${files++}.sock`)}`;
  await destination.execute('migrate-incoming', { uri: to });
  if (tcp === true) to = `tcp:127.0.0.1:${await destination.incomingPort()}`;
  const sending = sendMigration({
    file: parked.file,
    offset: parked.offset,
    to,
    ...sendOptions,
    ...(tls && { tls: ourTls(tls.kind, tls.dir, 'client') }),
  });
  const sent = await within(sending, MIGRATION_MS, 'sendMigration()');
  await checkGuest(t, destination, parked);
  return sent;
}

/** A little while for what ends asynchronously. */
export async function eventually(condition: () => boolean, limitMs: number): Promise<boolean> {
  const late = performance.now() + limitMs;
  while (!condition()) {
    if (performance.now() > late) return false;
    await sleep(10);
  }
  return true;
}
