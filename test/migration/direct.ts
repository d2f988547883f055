/** What the tests of option directIo have in common. */
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import type { Test } from 'tap';
import {
  receiveMigration,
  type Address,
  type ReceiveMigrationOptions,
  type ReceivedMigration,
} from '../../src/index.js';
import { checkDirectIo } from '../../src/ram/direct-io.js';
import { within } from '../support/within.js';

const WAIT_MS = 60_000;
/** Of statfs(2): a file system whose pages are the page cache itself. */
const TMPFS = 0x01021994;

/** A folder on a disk, if there is one. */
export function folder(t: Pick<Test, 'teardown'>): string {
  const roots = [os.tmpdir(), '/var/tmp', process.cwd()].filter((root) => fs.existsSync(root));
  const root = roots.find((root) => fs.statfsSync(root).type !== TMPFS) ?? roots[0];
  const directory = fs.mkdtempSync(path.join(root, 'multifd-direct-'));
  t.teardown(() => fs.rmSync(directory, { recursive: true, force: true }));
  return directory;
}

function hasDirectIo(directory: string): boolean {
  try {
    checkDirectIo(true);
    const { O_RDWR, O_CREAT, O_DIRECT } = fs.constants;
    fs.closeSync(fs.openSync(path.join(directory, 'try'), O_RDWR | O_CREAT | O_DIRECT));
    return true;
  } catch {
    return false;
  }
}

/** Where O_DIRECT is not to be had the option is refused, and that is the test. */
export async function refusedHere(t: Test): Promise<boolean> {
  const directory = folder(t);
  if (hasDirectIo(directory)) return false;
  const out = path.join(directory, 'vm.mig');
  const receiving = receiveMigration({ address: { port: 0 }, out, directIo: true });
  await t.rejects(receiving, { message: /directIo/ }, 'O_DIRECT is not to be had here');
  return true;
}

/** @param source plays into the address */
export async function receive(
  out: string,
  source: (address: Address) => Promise<unknown>,
  more: Partial<ReceiveMigrationOptions> = {},
  waitMs = WAIT_MS,
): Promise<ReceivedMigration> {
  let result!: Promise<ReceivedMigration>;
  const address = await new Promise<Address>((resolve, reject) => {
    const onListening = resolve;
    result = receiveMigration({ address: { port: 0 }, out, onListening, ...more });
    result.catch(reject);
  });
  const [received] = await within(Promise.all([result, source(address)]), waitMs, 'the migration');
  return received;
}

/** Bytes of the file in the page cache; undefined without fincore (util-linux), or without a disk. */
export function cached(file: string): number | undefined {
  if (fs.statfsSync(file).type === TMPFS) return undefined;
  const args = ['-b', '-n', '-o', 'RES', file];
  const { status, stdout } = spawnSync('fincore', args, { encoding: 'utf8', timeout: WAIT_MS });
  return status === 0 ? Number(stdout) : undefined;
}
