/** Postcopy with real QEMUs: destinations that are set up for it, and what is sent into them. */
import path from 'node:path';
import type { Test } from 'tap';
import {
  sendMigration,
  type PostcopyOptions,
  type PostcopyResult,
  type PostcopySession,
} from '../../src/index.js';
import type { AddressText } from '../../src/transport/address.js';
import { within } from '../support/within.js';
import type { Program } from './programs.js';
import { Qemu } from './qemu.js';

export const MIGRATION_MS = 60_000;
let sockets = 0;

/** A QEMU that waits for a guest which is to run at once; paused for one that is to be compared. */
export async function destinationOf(
  t: Test,
  program: Program,
  folder: string,
  machine: string,
  { paused = false, extra = [] as string[] } = {},
): Promise<{ destination: Qemu; to: AddressText }> {
  const destination = await Qemu.start(t, program, folder, {
    machine,
    extra: [...(paused ? ['-S'] : []), '-incoming', 'defer', ...extra],
  });
  await destination.setCapabilities({ 'postcopy-ram': true, 'return-path': true });
  const to = nextSocket(folder);
  await destination.execute('migrate-incoming', { uri: to });
  return { destination, to };
}

export function nextSocket(folder: string): AddressText {
  return `unix:${path.join(folder, `pc${sockets++}.sock`)}`;
}

/** What is under way: `running` resolves when the guest runs. */
export interface Postcopy {
  result: Promise<PostcopyResult>;
  running: Promise<number>;
  session: Promise<PostcopySession>;
}

export function begin(options: Omit<PostcopyOptions, 'mode' | 'onRunning' | 'onSession'>): Postcopy {
  let runs!: (afterMs: number) => void;
  let has!: (session: PostcopySession) => void;
  const session = new Promise<PostcopySession>((resolve) => (has = resolve));
  const runningAlone = new Promise<number>((resolve) => (runs = resolve));
  const result = sendMigration({ ...options, mode: 'postcopy', onRunning: runs, onSession: has });
  result.catch(() => {});
  const running = Promise.race([runningAlone, result.then(() => runningAlone)]);
  running.catch(() => {});
  return { result, running, session };
}

export async function done({ result }: Postcopy): Promise<PostcopyResult> {
  return within(result, MIGRATION_MS, "sendMigration({ mode: 'postcopy' })");
}
