/**
 * Ours against QEMU's: one migration between two fresh processes, each with one end and its guest's RAM.
 *
 *     bench               ends-source                          ends-destination
 *     fork, Plan  ----->  reads the image, forks, Plan  ---->  makes its RAM, listens
 *                         connects                      <----  Listening
 *                         clock on; queue, sync()       ---->  sync()
 *                         clock off                     <----  Synced
 *                         end()                         ---->  end(), compares its RAM with the image
 *                 <-----  Moved                         <----  Compared
 *
 * Everything that goes wrong ends the process where it does, with its reason on stderr; the others follow.
 */
import { fork, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { within } from '../../src/cli/qemu/within.js';
import type { Address, Compression } from '../../src/index.js';

const LIMIT_MS = 60_000;

export interface Plan {
  /** The guest's RAM at the source. */
  image: string;
  bytes: number;
  channels: number;
  compression: Compression;
  /** Is the destination's memory there, as zeros, before the clock starts? */
  prefault: boolean;
}

export interface Listening {
  address: Address;
}
export interface Synced {
  synced: true;
}
export interface Compared {
  equal: boolean;
}

/** From just before the first page is queued until both ends' sync() are done. */
export interface Moved {
  seconds: number;
  wireBytes: number;
}

export async function move(plan: Plan): Promise<Moved> {
  const source = fork(new URL('./ends-source.js', import.meta.url));
  try {
    source.send(plan);
    return await within(nextMessage<Moved>(source), LIMIT_MS, 'migration between our own ends');
  } finally {
    await stop(source);
  }
}

export async function nextMessage<T>(child: ChildProcess): Promise<T> {
  const done = new AbortController();
  const { signal } = done;
  try {
    return await Promise.race([
      once(child, 'message', { signal }).then(([message]) => message as T),
      once(child, 'exit', { signal }).then(([code]) => {
        throw new Error(`${child.spawnargs.at(-1)} exited with ${String(code)}`);
      }),
    ]);
  } finally {
    done.abort();
  }
}

/** An end that loses its parent exits; one that does not is killed. */
export async function stop(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const exit = once(child, 'exit');
  if (child.connected) child.disconnect();
  const timer = setTimeout(() => child.kill('SIGKILL'), 2000);
  await exit;
  clearTimeout(timer);
}
