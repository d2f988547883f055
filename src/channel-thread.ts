/**
 * What the threads of send and receive channels have in common: their start, the frame around a channel's life, and how
 * its end is told.
 *
 *     thread starts -> its modules are loaded (workers/bundle.js), its method's too -> BOOTED + 1   loadThread(), once
 *     task          -> method made -> channel: run() -> outcome; close() -> ENDED   runChannel(), a piscina task
 */
import { parentPort, workerData } from 'node:worker_threads';
import { MultifdError, type PlainError } from './errors.js';
import type { AddonGate } from './native/addon-gate.js';
import type { KoffiThreads } from './native/koffi-threads.js';
import { METHODS, type Codec } from './methods/methods.js';
import type { Compression } from './options.js';
import { CHANNEL_ENDED, Control, STOP_FAIL, markBooted, type SharedControl } from './shared/control.js';
import type { TraceMessage, TracePoint } from './trace.js';

/** What a channel's thread is told at its start. */
export interface ChannelThread extends AddonGate, KoffiThreads {
  /** makeBooted() */
  booted: SharedArrayBuffer;
  compression: Compression;
}

/** What both kinds of task have. */
export interface ChannelTask {
  shared: SharedControl;
  id: number;
  compression: Compression;
}

/** How a channel ended; `error` is set if it was not by STOP, and `first` if it is the session's first. */
export interface ChannelOutcome {
  error?: PlainError;
  first?: boolean;
}

/** One connection's whole life. */
export interface Channel {
  /** Of the packet in hand, for errors. */
  readonly packetNum?: number | undefined;
  run(): Promise<void>;
  /** Frees everything, after a failure as well; waits until the descriptor is closed. */
  close(): Promise<void>;
}

/** The last of what a thread loads; until then it counts among those that the session keeps few at a time. */
export async function loadThread(): Promise<void> {
  const { booted, compression } = workerData as ChannelThread;
  await METHODS[compression].load?.();
  markBooted(booted);
}

/**
 * @param what for errors that have no code
 * @param makeMethod makes the channel's half of its method; not called for method none
 * @param open makes the channel
 */
export async function runChannel<M extends { close(): void }>(
  { shared, id, compression }: ChannelTask,
  what: string,
  makeMethod: (codec: Codec) => M,
  open: (control: Control, method: M | undefined) => Channel,
): Promise<ChannelOutcome> {
  const control = Control.attach(shared);
  let method: M | undefined;
  let channel: Channel | undefined;
  try {
    const codec = await METHODS[compression].load?.();
    if (codec !== undefined) method = makeMethod(codec);
    channel = open(control, method);
    await channel.run();
    return {};
  } catch (thrown) {
    // After STOP whatever breaks is a consequence: the reason is with whoever said STOP.
    if (control.stopped === STOP_FAIL) return {};
    const error = MultifdError.wrap(thrown, 'ERR_MULTIFD_WORKER', what).onChannel(id, channel?.packetNum);
    const first = control.claimFirstError(id);
    control.stop(STOP_FAIL);
    return { error: error.toPlain(), first };
  } finally {
    try {
      await channel?.close();
    } finally {
      method?.close();
      control.setChannelState(id, CHANNEL_ENDED);
    }
  }
}

/** Posts an event to the calling thread; for who has seen that somebody listens (Control.trace). */
export function report(point: TracePoint, data: Record<string, unknown>): void {
  parentPort?.postMessage({ multifd: point, data } satisfies TraceMessage);
}
