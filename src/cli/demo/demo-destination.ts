/**
 * The demo's destination process: forked by the source (destination-process.ts), spoken to as messages.ts says.
 *
 * It lives exactly as long as its IPC channel: when the source disconnects, or dies in whatever way, it removes the
 * temporary directory, which nobody else may be left to do, and exits. Ctrl-C on a terminal reaches it too and is
 * left to the source, which ends both in order.
 */
import fs from 'node:fs';
import { createReceiver, type Receiver } from '../../recv/receiver.js';
import { printableLines } from '../../printable.js';
import { CliError, describeFailure } from '../cli-error.js';
import { digestBlocks } from './digest.js';
import { FileRam, SharedRam, type GuestRam } from './guest-ram.js';
import type { DestinationSetup, Replies, Request, ToDestination, ToSource } from './messages.js';

const never = new AbortController().signal;
let ram: GuestRam;
let receiver: Receiver;
let tempDirectory: string | undefined;
let failed = false;

async function listen(setup: DestinationSetup): Promise<Replies['listen']> {
  tempDirectory = setup.tempDirectory;
  ram =
    setup.file === undefined
      ? new SharedRam(setup.blocks, setup.hugePages)
      : new FileRam(setup.blocks, setup.file, 'w+');
  if (setup.prefault) await ram.prefault(never);
  receiver = await createReceiver({
    address: { host: '127.0.0.1', port: 0 },
    // Just made, and at most written with zeroes since.
    blocks: ram.engineBlocks.map((block) => ({ ...block, fresh: true })),
    channels: setup.channels,
    compression: setup.compression,
    pageSize: setup.pageSize,
    ...(setup.tls && { tls: setup.tls }),
  });
  receiver.done.catch(fail);
  return receiver.address;
}

async function answer(request: Request): Promise<Replies[keyof Replies]> {
  switch (request.type) {
    case 'listen':
      return listen(request.setup);
    case 'ready':
      await receiver.ready;
      return null;
    case 'zero':
      for (let i = 0; i < request.ranges.length; i += 2) {
        await receiver.zeroRange(request.block, request.ranges[i], request.ranges[i + 1]);
      }
      return null;
    case 'sync':
      await receiver.sync();
      return null;
    case 'end':
      await receiver.end();
      return null;
    case 'digest':
      return digestBlocks(ram, never);
  }
}

function fail(thrown: unknown): void {
  if (failed) return;
  failed = true;
  send({ type: 'failed', failure: describeFailure(thrown) });
}

/** A source that is gone is noticed by 'disconnect'. */
function send(message: ToSource): void {
  process.send?.(message, undefined, undefined, () => {});
}

process.on('message', (request: ToDestination) => {
  answer(request).then((value) => send({ type: 'reply', id: request.id, value }), fail);
});
process.on('disconnect', () => {
  if (tempDirectory !== undefined) fs.rmSync(tempDirectory, { recursive: true, force: true });
  process.exit();
});
// SIGHUP comes to the group when the source was killed; 'disconnect' does what is to be done.
for (const signal of ['SIGINT', 'SIGHUP'] as const) process.on(signal, () => {});
process.on('uncaughtException', fail);

if (process.send === undefined) {
  const error = new CliError('ERR_CLI_DESTINATION', 'this file is started by `multifd demo`, not by hand');
  console.error(printableLines(`multifd: ${error.code}: ${error.message}`));
  process.exitCode = 1;
}
