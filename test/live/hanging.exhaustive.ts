/**
 * Hooks that never return: what waits for them is ended by cancel(), or by the other side's end, within a time, and the guest runs
 * on here where it can. And hooks that only take long, which are no stall.
 */
import t from 'tap';
import { HandDestination } from '../migration/peers.js';
import { eventually } from '../support/raw-channel.js';
import { within } from '../support/within.js';
import {
  WAIT_MS,
  bothFail,
  deferred,
  failure,
  runsOnHere,
  runsThere,
  scene,
  type SceneOptions,
} from './scene.js';
import { endless, type Step } from './steps.js';

const never = (): Promise<never> => new Promise(() => {});
/** The most that what hangs is waited for. Not shorter: threads that start on a busy machine must not be a stall. */
const stallTimeoutMs = 3000;
// They wait more than they work.
t.jobs = 8;

/** Hooks of the source: what hangs, and whether the guest was to be stopped by then. */
const HANGING: Record<string, Step> = {
  'dirty()': (act) => ({ source: { dirty: hang(act) } }),
  'an iterator of dirty()': (act) => ({
    source: {
      dirty: async function* () {
        act();
        await never();
        yield { block: 'ram', offset: 0, length: 4096 };
      },
    },
  }),
  'notConverging()': (act) => ({ source: { ...endless, notConverging: hang(act) } }),
  'pause()': (act) => ({ source: { pause: hang(act) } }),
  'save()': (act) => ({ source: { devices: [{ idstr: 'cpu', save: hang(act) }] } }),
  'acceptBlocks()': (act) => ({ destination: { blocks: undefined, acceptBlocks: hang(act) } }),
  'load()': (act) => ({ destination: { devices: [{ idstr: 'cpu', load: hang(act) }] } }),
};

function hang(act: () => void): () => Promise<never> {
  return () => {
    act();
    return never();
  };
}

function quick(options: SceneOptions): SceneOptions {
  return {
    source: { stallTimeoutMs, ...options.source },
    destination: { stallTimeoutMs, ...options.destination },
  };
}

for (const [hook, step] of Object.entries(HANGING)) {
  const isSources = !/acceptBlocks|load/.test(hook);

  t.test(`${hook} never returns, and is cancelled: the guest runs on`, async (t) => {
    const hanging = deferred();
    const it = await scene(t, quick(step(hanging.resolve)));
    await within(hanging.promise, WAIT_MS, hook);
    await within(it.source.cancel(), WAIT_MS, 'cancel()');
    const [code] = await bothFail(t, it);
    t.equal(code, 'ERR_MULTIFD_CLOSED');
    t.equal(it.source.state, 'cancelled');
    if (/pause|save/.test(hook)) t.ok(it.notes.includes('resume'));
    const { suppressed } = await failure(isSources ? it.source.done : it.destination.done);
    const name = /acceptBlocks/.test(hook)
      ? 'acceptBlocks'
      : hook.replace('an iterator of ', '').slice(0, -2);
    t.match(suppressed.at(-1), { code: 'ERR_MULTIFD_HOOK' });
    t.match(suppressed.at(-1)?.message ?? '', new RegExp(`${name}\\(\\) has not returned within 3000 ms`));
  });

  t.test(`${hook} never returns, and the other side is gone: the guest runs on`, async (t) => {
    const hanging = deferred();
    const it = await scene(t, quick(step(hanging.resolve)));
    await within(hanging.promise, WAIT_MS, hook);
    await within((isSources ? it.destination : it.source).cancel(), WAIT_MS, 'cancel()');
    await bothFail(t, it);
  });
}

t.test('a pause() that returns behind all that: the guest is let run once more', async (t) => {
  const [pausing, paused] = [deferred(), deferred()];
  const pause = (): Promise<void> => {
    pausing.resolve();
    return paused.promise;
  };
  const it = await scene(t, quick({ source: { pause } }));
  await within(pausing.promise, WAIT_MS, 'pause()');
  await within(it.source.cancel(), WAIT_MS, 'cancel()');
  await failure(it.destination.done);
  const resumes = (): number => it.notes.filter((note) => note === 'resume').length;
  t.equal(resumes(), 1);
  paused.resolve();
  await eventually(() => resumes() === 2, 'a second resume()');
});

t.test('resume() never returns: the migration ends all the same', async (t) => {
  const it = await scene(
    t,
    quick({ source: { resume: never, pause: () => Promise.reject(new Error('no')) } }),
  );
  const error = await failure(it.source.done);
  t.match(error.message, /pause\(\) failed: no/);
  t.match(error.suppressed.at(-1)?.message, /resume\(\) has not returned within 3000 ms/);
  await failure(it.destination.done);
});

t.test(
  'start() never returns: the source is done, and so is a destination that is cancelled then',
  async (t) => {
    const starting = deferred();
    const start = (): Promise<never> => {
      it.notes.push('start');
      starting.resolve();
      return never();
    };
    const it = await scene(t, quick({ destination: { start } }));
    await within(it.source.done, WAIT_MS, 'done');
    await within(starting.promise, WAIT_MS, 'start()');
    await within(it.destination.cancel(), WAIT_MS, 'cancel()');
    const error = await failure(it.destination.done);
    t.match(error, { code: 'ERR_MULTIFD_HOOK', message: /^start\(\) has not returned within 3000 ms/ });
    t.equal(it.destination.state, 'completed');
    runsThere(t, it);
  },
);

// ---- a destination that takes its time, and one that says nothing any more ----

t.test('a load() that takes longer than stallTimeoutMs of both ends is no stall', async (t) => {
  const load = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 1.5 * stallTimeoutMs));
  const it = await scene(t, quick({ destination: { devices: [{ idstr: 'cpu', load }] } }));
  await within(it.source.done, WAIT_MS, 'done');
  await within(it.destination.done, WAIT_MS, 'done');
  runsThere(t, it);
});

t.test(
  'a destination that has all and falls silent: the source gives up, and its guest runs on',
  async (t) => {
    const silent = await HandDestination.listen(t);
    const it = await scene(t, { through: async () => silent.address, source: { stallTimeoutMs } });
    const error = await failure(it.source.done);
    t.match(error, { code: 'ERR_MULTIFD_STALL', message: /has all, but has not said for 3000 ms/ });
    runsOnHere(t, it);
    t.ok(it.notes.includes('resume'));
    await it.destination.cancel();
  },
);
