/** What this process holds: looked at before a run and after it, the difference is what the run has left behind. Linux. */
import fs from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import type { LeftBehind } from './messages.js';

/** Descriptors that are closed and threads that end do so a moment after who was waited for. */
const SETTLE_MS = 1500;
const LOOK_MS = 50;
/** The IPC channel. A unix socket that was left is seen among the descriptors. */
const OWN_RESOURCES = ['PipeWrap'];

export interface Held {
  descriptors: Map<string, string>;
  threads: number;
  resources: string[];
}

export function heldNow(): Held {
  return { descriptors: descriptors(), threads: threads(), resources: process.getActiveResourcesInfo() };
}

/** As soon as nothing is left; else what is left in the end. */
export async function leftSince(before: Held): Promise<LeftBehind> {
  for (let waited = 0; ; waited += LOOK_MS) {
    const left = difference(before, heldNow());
    const clean = left.descriptors.length === 0 && left.threads <= 0 && left.resources.length === 0;
    if (clean || waited >= SETTLE_MS) {
      const { gc } = globalThis as { gc?: () => void };
      gc?.();
      const { heapUsed, external, rss } = process.memoryUsage();
      return { ...left, heapBytes: heapUsed + external, residentBytes: rss };
    }
    await sleep(LOOK_MS);
  }
}

function difference(before: Held, now: Held): Omit<LeftBehind, 'heapBytes' | 'residentBytes'> {
  const descriptors = [...now.descriptors].filter(([fd, to]) => before.descriptors.get(fd) !== to);
  const resources = [...now.resources];
  for (const name of before.resources) {
    const at = resources.indexOf(name);
    if (at >= 0) resources.splice(at, 1);
  }
  return {
    descriptors: descriptors.map(([, to]) => to),
    threads: now.threads - before.threads,
    resources: resources.filter((name) => !OWN_RESOURCES.includes(name)),
  };
}

function descriptors(): Map<string, string> {
  const found = new Map<string, string>();
  let names: string[] = [];
  try {
    names = fs.readdirSync('/proc/self/fd');
  } catch {
    // No such system.
  }
  for (const fd of names) {
    try {
      found.set(fd, fs.readlinkSync(`/proc/self/fd/${fd}`));
    } catch {
      // That of the folder itself.
    }
  }
  return found;
}

function threads(): number {
  try {
    return fs.readdirSync('/proc/self/task').length;
  } catch {
    return 0;
  }
}
