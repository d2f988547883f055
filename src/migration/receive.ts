/**
 * Takes in a live migration from QEMU and keeps it as a mapped-ram file.
 *
 *     here                             session (recv/receiver.ts)       the migration (incoming-migration.ts)
 *     OUT.part, or nothing (discard)
 *                                      listens, lets connections in --> main stream, any time
 *                                      channels                    <--> blocks, syncs
 *                                                                       all on disk, OUT has its name, the source is told
 *     end of the session
 *     the descriptor is closed
 *
 * What decides, and what is told by what fails at the end, is in whole-file.ts: the file has its name only when it is whole
 * and on disk. With option discard there is no file, and the source is told that it failed (discard.ts).
 */
import { MultifdError } from '../errors.js';
import { publicReceiver } from '../public-session.js';
import { Receiver } from '../recv/receiver.js';
import { brokenOff } from './blame.js';
import { DiscardedFile } from './discard.js';
import { IncomingMigration } from './incoming-migration.js';
import { settles } from './limits.js';
import { callHook } from './options.js';
import { OutputFile } from './output-file.js';
import { PackedOutput } from './packed-output.js';
import {
  checkReceive,
  type CheckedOutput,
  type ReceiveMigrationOptions,
  type ReceivedMigration,
} from './receive-options.js';
import { AckOwed } from './switchover-ack.js';

/**
 * @throws MultifdError with all codes of a receiver, and ERR_MULTIFD_STREAM for a main stream that is refused
 */
export async function receiveMigration(options: ReceiveMigrationOptions): Promise<ReceivedMigration> {
  const { session, output, discard, bounds, switchoverAck, pageSize, anyUuid } = await checkReceive(options);
  const { onPacking, onListening, onStart, onSession } = options;
  // Before anybody is told to connect: a folder that is not there shall not cost a guest its migration.
  const file =
    discard === undefined ? await makeOutput(output, onPacking) : await DiscardedFile.make(discard);
  const ack = new AckOwed(switchoverAck);
  const incoming = new IncomingMigration(file, { onStart, ack, pageSize, bounds });
  let receiver: Receiver | undefined;
  try {
    const opened = (receiver = new Receiver(session, {
      present: true,
      anyUuid,
      main: (connection, begun) => incoming.takeMain(connection, begun),
      deviceState: (...packet) => incoming.devices.keep(...packet),
    }));
    await opened.open();
    callHook('onListening', () => onListening?.(opened.address));
    callHook('onSession', () => onSession?.(publicReceiver(opened)));
    const result = await incoming.run(opened, session.stallTimeoutMs);
    // It has its name and its source knows it: what breaks now is nobody's loss.
    await receiver.end().catch(() => {});
    await incoming.devices.close();
    await file.close();
    return { ...result, ...(discard && { discarded: discard }), stats: receiver.stats() };
  } catch (thrown) {
    const error = MultifdError.wrap(thrown, 'ERR_MULTIFD_IO', output.out || 'discard');
    // Before the threads are waited for: meanwhile a source without return path could complete.
    incoming.breakOff();
    // A source that gives up ends its channels itself; a QEMU before 9.0 hangs for good if they break while it waits for them.
    let first = receiver?.error;
    if (receiver !== undefined && first === undefined && incoming.mainEnded) {
      // What the session makes of it meanwhile is a consequence.
      first = error;
      await settles(receiver.channelsEnded());
    }
    await receiver?.abandon(error);
    await incoming.giveUp(output.keepPartial);
    first ??= receiver?.error ?? error;
    first.suppress(receiver?.error);
    const refused = receiver?.refused;
    if (first.code === 'ERR_MULTIFD_ABORTED' && refused !== undefined) first.suppressed.push(refused);
    throw incoming.kept ?? (incoming.inTail ? first : brokenOff(first));
  }
}

async function makeOutput(
  { out, overwrite, directIo, isPacked, level }: CheckedOutput,
  onPacking: ReceiveMigrationOptions['onPacking'],
): Promise<OutputFile | PackedOutput> {
  if (!isPacked) return OutputFile.make(out, overwrite, directIo);
  const told =
    onPacking && ((...bytes: [number, number]) => callHook('onPacking', () => onPacking(...bytes)));
  return PackedOutput.make(out, { overwrite, directIo, level, onPacking: told });
}
