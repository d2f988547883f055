/**
 * A side's process: one run after the other, each as its plan says. It lives as long as its IPC channel. What strikes it is the
 * stressing process's doing, but for a thread that ends: `process` tells of each thread that is started here.
 */
import fs from 'node:fs';
import type { Worker } from 'node:worker_threads';
import { fileDestination, liveDestination, liveSource } from './live-way.js';
import { heldNow, leftSince } from './left-behind.js';
import type { FromSide, Outcome, Strike, ToSide } from './messages.js';
import type { GuestMemory } from './guest-memory.js';
import { sessionDestination, sessionSource } from './session-way.js';
import { Side } from './side.js';

export interface SideHooks {
  /** Between the end of the migration and the digest at the destination; for tests, that spoil what has come. */
  spoil?: (memory: GuestMemory) => void;
}

export function serveRuns(hooks: SideHooks = {}): void {
  const threads = new Set<Worker>();
  process.on('worker', (worker) => {
    threads.add(worker);
    worker.once('exit', () => threads.delete(worker));
  });
  let side: Side | undefined;
  let folder: string | undefined;

  const send = (message: FromSide): void => void process.send?.(message, undefined, undefined, () => {});

  async function run(begun: Side): Promise<void> {
    const before = heldNow();
    let outcome: Outcome;
    try {
      outcome = await wayOf(begun, hooks);
    } catch (thrown) {
      outcome = begun.failed(thrown);
    }
    begun.send({ type: 'outcome', outcome });
    begun.cancel = undefined;
    // A word that is still waited for has a timer, which is not the engine's.
    begun.onPeerGone();
    const left = await leftSince(before);
    side = undefined;
    begun.send({ type: 'left', left });
  }

  process.on('message', (message: ToSide) => {
    switch (message.type) {
      case 'begin':
        folder = message.folder;
        side = new Side(message, send);
        void run(side);
        break;
      case 'connect':
        side?.onConnect(message.to);
        break;
      case 'peer':
        side?.onWord(message.said);
        break;
      case 'peer-gone':
        side?.log('the other side has failed');
        side?.onPeerGone();
        break;
      case 'strike':
        send({ type: 'struck', id: message.id, hit: strike(side, message.what, threads) });
    }
  });
  process.on('disconnect', () => {
    // Whoever would have removed it is gone.
    if (folder !== undefined) fs.rmSync(folder, { recursive: true, force: true });
    process.exit();
  });
  // Ctrl-C on a terminal reaches all of them: the stressing process ends these in order.
  for (const signal of ['SIGINT', 'SIGHUP', 'SIGTERM'] as const) process.on(signal, () => {});
  send({ type: 'ready' });
}

function wayOf(side: Side, { spoil }: SideHooks): Promise<Outcome> {
  const { side: name, plan } = side.begin;
  if (plan.way === 'session')
    return name === 'source' ? sessionSource(side) : sessionDestination(side, spoil);
  if (name === 'source') return liveSource(side);
  return plan.way === 'file' ? fileDestination(side) : liveDestination(side, spoil);
}

/** @returns whether there was something to strike */
function strike(side: Side | undefined, what: Strike, threads: ReadonlySet<Worker>): boolean {
  if (side === undefined) return false;
  if (what === 'thread') {
    const [worker] = threads;
    if (worker === undefined) return false;
    side.log(`strike: thread ${worker.threadId} is ended`);
    void worker.terminate();
    return true;
  }
  if (what === 'cancel') {
    if (side.cancel === undefined) return false;
    side.log('strike: cancel');
    void side.cancel();
    return true;
  }
  side.log('strike: abort');
  side.abort.abort(new Error('the stress aborts it'));
  return true;
}
