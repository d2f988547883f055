/**
 * A process with a PC of v86 in it, or room for one: forked by the demo, spoken to as pc-messages.ts says.
 *
 * It lives exactly as long as its IPC channel: when the demo disconnects, or dies in whatever way, it exits. Ctrl-C on a
 * terminal reaches it too and is left to the demo.
 */
import type { V86Options } from 'v86';
import {
  createMigrationDestination,
  createMigrationSource,
  type Address,
  type MigrationDestination,
  type MigrationProgress,
} from '../../../index.js';
import { printableLines } from '../../../printable.js';
import { CliError, describeFailure } from '../../cli-error.js';
import { checkRegion } from './check-region.js';
import { guestProgram } from './guest-program.js';
import { linuxOptions } from './linux-guest.js';
import { Pc } from './pc.js';
import { pcOptions } from './pc-options.js';
import type { PcReplies, PcRequest, PcSays, SessionSettings, SourceSettings } from './pc-messages.js';

let pc: Pc;
let destination: MigrationDestination;
let failed = false;
/** Of the guest's console: what it writes in one turn is said at once. */
let written = '';

async function make(options: V86Options): Promise<void> {
  pc = await Pc.boot(options);
  pc.emulator.add_listener('serial0-output-byte', (byte) => {
    if (written === '') setImmediate(sayWritten);
    written += String.fromCharCode(byte);
  });
}

function sayWritten(): void {
  if (written !== '') send({ type: 'console', text: written });
  written = '';
}

async function boot(options: V86Options): Promise<null> {
  await make(options);
  pc.start();
  return null;
}

async function listen(settings: SessionSettings, ramBytes?: number): Promise<Address> {
  await make(pcOptions(undefined, ramBytes));
  destination = await createMigrationDestination({
    listen: { host: '127.0.0.1', port: 0 },
    ...settings,
    ...pc.destination,
  });
  destination.done.catch(fail);
  return destination.address;
}

async function migrate(to: Address, settings: SourceSettings): Promise<MigrationProgress> {
  const source = await createMigrationSource({ to, ...settings, ...pc.source });
  for await (const progress of source.progress()) send({ type: 'progress', progress });
  const last = await source.done;
  // Before the reply: who hears that it is there has heard all that it has written here.
  sayWritten();
  await pc.emulator.destroy();
  return last;
}

async function answer(request: PcRequest): Promise<PcReplies[keyof PcReplies]> {
  switch (request.type) {
    case 'boot':
      return boot(pcOptions(guestProgram(request.guest)));
    case 'bootLinux':
      return boot(linuxOptions(request.files, request.guest, request.ramBytes));
    case 'listen':
      return listen(request.settings, request.ramBytes);
    case 'arrived':
      await destination.done;
      return null;
    case 'migrate':
      return migrate(request.to, request.settings);
    case 'finish':
      await pc.pause();
      sayWritten();
      if (request.regionBytes === null) return { steps: null, differsAt: null };
      return checkRegion(pc, request.regionBytes);
  }
}

function fail(thrown: unknown): void {
  if (failed) return;
  failed = true;
  send({ type: 'failed', failure: describeFailure(thrown) });
}

/** A demo that is gone is noticed by 'disconnect'. */
function send(message: PcSays | { type: string; [key: string]: unknown }): void {
  process.send?.(message, undefined, undefined, () => {});
}

process.on('message', (request: PcRequest & { id: number }) => {
  answer(request).then((value) => send({ type: 'reply', id: request.id, value }), fail);
});
process.on('disconnect', () => process.exit());
for (const signal of ['SIGINT', 'SIGHUP'] as const) process.on(signal, () => {});
process.on('uncaughtException', fail);

if (process.send === undefined) {
  const error = new CliError('ERR_CLI_DESTINATION', 'this file is started by `multifd demo`, not by hand');
  console.error(printableLines(`multifd: ${error.code}: ${error.message}`));
  process.exitCode = 1;
}
