/** A VM of the tests' own in a file: pages of every kind, in more than one frame, and a hole of several. */
import path from 'node:path';
import type { Test } from 'tap';
import {
  createMigrationSource,
  receiveMigration,
  type Address,
  type MigrationSource,
  type ReceiveMigrationOptions,
  type ReceivedMigration,
} from '../../src/index.js';
import { Random } from '../support/random.js';
import { within } from '../support/within.js';

export const PAGE = 4096;
export const MIB = 2 ** 20;
export const RAM_BYTES = 12 * MIB;
export const WAIT_MS = 60_000;

/** Random pages, text, a hole of 4 MiB, single pages in between. */
export function makeRam(): Uint8Array {
  const ram = new Uint8Array(new SharedArrayBuffer(RAM_BYTES));
  const random = new Random(7);
  random.bytes(ram.subarray(0, MIB + 3 * PAGE));
  ram.subarray(2 * MIB, 3 * MIB).fill(0x61);
  for (let at = 7 * MIB; at < 8 * MIB; at += 5 * PAGE) random.bytes(ram.subarray(at, at + PAGE));
  random.bytes(ram.subarray(9 * MIB));
  return ram;
}

export async function sourceTo(t: Test, to: Address, ram = makeRam()): Promise<MigrationSource> {
  const source = await createMigrationSource({
    to,
    machine: 'packed-1.0',
    channels: 2,
    blocks: [{ name: 'ram', memory: ram }],
    dirty: () => [],
    devices: [{ idstr: 'clock', save: () => Buffer.from('ticks') }],
    pause: () => {},
    resume: () => {},
  });
  t.teardown(() => source.cancel());
  return source;
}

export interface Receiving {
  address: Address;
  result: Promise<ReceivedMigration>;
}

export async function receiving(
  out: string,
  more: Partial<ReceiveMigrationOptions> = {},
): Promise<Receiving> {
  let result!: Promise<ReceivedMigration>;
  const address = await new Promise<Address>((resolve, reject) => {
    result = receiveMigration({ address: { port: 0 }, channels: 2, out, onListening: resolve, ...more });
    result.catch(reject);
  });
  return { address, result };
}

/** Parks that VM. */
export async function park(
  t: Test,
  out: string,
  more: Partial<ReceiveMigrationOptions> = {},
): Promise<ReceivedMigration> {
  const { address, result } = await receiving(out, more);
  const source = await sourceTo(t, address);
  const [received] = await within(Promise.all([result, source.done]), WAIT_MS, 'the migration');
  return received;
}

export function folderOf(t: Pick<Test, 'testdir'>): (name: string) => string {
  const folder = t.testdir({});
  return (name) => path.join(folder, name);
}
