/** Where the main thread's time goes: V8's own sampling profiler, around one call. */
import inspector from 'node:inspector/promises';

/** Samples so far apart, in microseconds. */
const INTERVAL_US = 100;

export interface SelfTime {
  /** Of the function; `(idle)`, `(program)` and `(garbage collector)` are V8's. */
  name: string;
  url: string;
  /** In the function itself. */
  ms: number;
}

export async function profileSelfTimes(call: () => Promise<void>): Promise<SelfTime[]> {
  const session = new inspector.Session();
  session.connect();
  try {
    await session.post('Profiler.enable');
    await session.post('Profiler.setSamplingInterval', { interval: INTERVAL_US });
    await session.post('Profiler.start');
    await call();
    const { profile } = await session.post('Profiler.stop');
    const times = new Map<number, SelfTime>();
    for (const { id, callFrame } of profile.nodes)
      times.set(id, { name: callFrame.functionName, url: callFrame.url, ms: 0 });
    for (const [i, id] of (profile.samples ?? []).entries()) {
      const time = times.get(id);
      if (time !== undefined) time.ms += (profile.timeDeltas?.[i] ?? 0) / 1000;
    }
    return [...times.values()];
  } finally {
    session.disconnect();
  }
}
