/**
 * However a live migration ends, the guest runs on exactly one side: cancelled, broken, refused or thrown out of a hook, at
 * each step of either end.
 */
import t from 'tap';
import type { MigrationSourceOptions, SourceState } from '../../src/index.js';
import { HandDestination, SHUT_0 } from '../migration/peers.js';
import { eventually } from '../support/raw-channel.js';
import { within } from '../support/within.js';
import {
  WAIT_MS,
  Wire,
  bothFail,
  deferred,
  failure,
  runsOnHere,
  runsThere,
  scene,
  type SceneOptions,
} from './scene.js';
import { IN_LOAD, STEPS, endless } from './steps.js';

function inSource(state: SourceState, act: () => void): Partial<MigrationSourceOptions> {
  return {
    onState: (now) => {
      if (now === state) act();
    },
  };
}

for (const [when, step] of Object.entries({ ...STEPS, 'in load()': IN_LOAD })) {
  t.test(`cancel() ${when}: the guest runs on, and the destination starts nothing`, async (t) => {
    const acted = deferred();
    const it = await scene(t, step(acted.resolve));
    await within(acted.promise, WAIT_MS, when);
    const cancelled = it.source.cancel();
    t.equal(it.source.state, 'cancelling');
    await within(cancelled, WAIT_MS, 'cancel()');
    const [code] = await bothFail(t, it);
    t.equal(code, 'ERR_MULTIFD_CLOSED');
    t.equal(it.source.state, 'cancelled');
    t.equal(it.destination.state, 'failed');
    const last = it.notes.filter((note) => note.startsWith('source'));
    t.same(last.slice(-2), ['source cancelling', 'source cancelled']);
  });

  t.test(`the destination is cancelled ${when}: the source fails, and its guest runs on`, async (t) => {
    const acted = deferred();
    const it = await scene(t, step(acted.resolve));
    await within(acted.promise, WAIT_MS, when);
    await within(it.destination.cancel(), WAIT_MS, 'cancel()');
    const [, code] = await bothFail(t, it);
    t.equal(code, 'ERR_MULTIFD_CLOSED');
    t.equal(it.destination.state, 'cancelled');
    t.equal(it.source.state, 'failed');
  });

  t.test(`all connections end ${when}: both fail, and the guest runs on`, async (t) => {
    const acted = deferred();
    let wire: Wire | undefined;
    const it = await scene(t, {
      ...step(acted.resolve),
      through: (address) => {
        wire = new Wire(t, address);
        return wire.listen();
      },
    });
    await within(acted.promise, WAIT_MS, when);
    wire?.cut();
    await bothFail(t, it);
    t.equal(it.source.state, 'failed');
    t.equal(it.destination.state, 'failed');
  });
}

t.test('an abort ends both sides as cancel() does, with its reason', async (t) => {
  const abort = new AbortController();
  const it = await scene(t, {
    source: {
      ...endless,
      signal: abort.signal,
      ...inSource('active', () => abort.abort(new Error('enough'))),
    },
  });
  const [code] = await bothFail(t, it);
  t.equal(code, 'ERR_MULTIFD_ABORTED');
  t.equal(it.source.state, 'cancelled');
  const late = new AbortController();
  const other = await scene(t, { ...endless, destination: { signal: late.signal } });
  late.abort(new Error('enough'));
  const codes = await bothFail(t, other);
  t.equal(codes[1], 'ERR_MULTIFD_ABORTED');
});

t.test('cancel() in state setup, while nobody answers', async (t) => {
  const silent = await HandDestination.listen(t);
  const it = await scene(t, { through: async () => silent.address });
  await eventually(() => silent.open > 0, 'the source is connected');
  t.equal(it.source.state, 'setup');
  await within(it.source.cancel(), WAIT_MS, 'cancel()');
  t.equal(it.source.state, 'cancelled');
  await eventually(() => silent.open === 0, 'every connection is closed');
  runsOnHere(t, it);
  t.equal(it.destination.state, 'setup');
  await it.destination.cancel();
  t.equal(it.destination.state, 'cancelled');
});

t.test('a cancel() while the answer is on its way finds the guest there', async (t) => {
  let wire!: Wire;
  const started = deferred();
  const it = await scene(t, {
    through: (address) => {
      wire = new Wire(t, address);
      return wire.listen();
    },
    destination: {
      devices: [{ idstr: 'cpu', load: () => wire.hold() }],
      start: () => {
        it.notes.push('start');
        started.resolve();
      },
    },
  });
  await within(started.promise, WAIT_MS, 'start()');
  t.equal(it.source.state, 'device');
  const cancelled = it.source.cancel();
  t.equal(it.source.state, 'cancelling');
  setTimeout(() => wire.release(), 100);
  await within(cancelled, WAIT_MS, 'cancel()');
  t.equal((await within(it.source.done, WAIT_MS, 'done')).status, 'completed');
  await it.destination.done;
  t.equal(it.source.state, 'completed');
  runsThere(t, it);
  await it.source.cancel();
  t.equal(it.source.state, 'completed', 'and then it is too late for good');
});

t.test('channels that break when all has gone over are of no account', async (t) => {
  let wire!: Wire;
  const it = await scene(t, {
    through: (address) => {
      wire = new Wire(t, address);
      return wire.listen();
    },
    destination: {
      devices: [
        {
          idstr: 'cpu',
          load: async () => {
            wire.resetChannels();
            await new Promise((resolve) => setTimeout(resolve, 100));
          },
        },
      ],
    },
  });
  await within(it.source.done, WAIT_MS, 'done');
  await within(it.destination.done, WAIT_MS, 'done');
  runsThere(t, it);
});

t.test('a SHUT 0 before the last bytes have gone out is refused', async (t) => {
  const hasty = await HandDestination.listen(t);
  const it = await scene(t, {
    through: async () => hasty.address,
    source: {
      devices: [
        {
          idstr: 'cpu',
          save: async () => {
            hasty.main.write(SHUT_0);
            await new Promise((resolve) => setTimeout(resolve, 30));
            return Buffer.from('state');
          },
        },
      ],
    },
  });
  const error = await failure(it.source.done);
  t.match(error, { code: 'ERR_MULTIFD_STREAM', message: /SHUT 0: received before the devices' state/ });
  runsOnHere(t, it);
});

const boom = (): never => {
  throw new Error('boom');
};
const rejected = async (): Promise<never> => boom();

const HOOKS: Record<string, [SceneOptions, string, string]> = {
  'pause() throws': [{ source: { pause: boom } }, 'ERR_MULTIFD_HOOK', 'pause() failed: boom'],
  'pause() rejects': [{ source: { pause: rejected } }, 'ERR_MULTIFD_HOOK', 'pause() failed: boom'],
  'save() rejects': [
    { source: { devices: [{ idstr: 'cpu', save: rejected }] } },
    'ERR_MULTIFD_HOOK',
    'device "cpu" 0: save() failed: boom',
  ],
  'save() gives no bytes': [
    { source: { devices: [{ idstr: 'cpu', save: (() => 'text') as never }] } },
    'ERR_MULTIFD_HOOK',
    'device "cpu" 0: save(): received string, expected a Uint8Array, or an iterable of them',
  ],
  'dirty() throws': [{ source: { dirty: boom } }, 'ERR_MULTIFD_HOOK', 'dirty() failed: boom'],
  'notConverging() rejects': [
    { source: { ...endless, notConverging: rejected } },
    'ERR_MULTIFD_HOOK',
    'notConverging() failed: boom',
  ],
  'onState() throws': [{ source: inSource('device', boom) }, 'ERR_MULTIFD_HOOK', 'onState() failed: boom'],
};

for (const [name, [options, code, message]] of Object.entries(HOOKS)) {
  t.test(`${name}: the source fails with it, and its guest runs on`, async (t) => {
    const it = await scene(t, options);
    const error = await failure(it.source.done);
    t.equal(error.code, code);
    t.equal(error.message, message);
    await bothFail(t, it);
    t.equal(it.source.state, 'failed');
    if (name.startsWith('pause')) t.ok(it.notes.includes('resume'), 'it may have stopped half of the guest');
  });
}

t.test('what is thrown again and again is told once', async (t) => {
  let thrown = 0;
  const onState = (state: string): void => {
    if (state !== 'device' && state !== 'failed') return;
    thrown++;
    boom();
  };
  const it = await scene(t, { source: { onState } });
  const error = await failure(it.source.done);
  t.equal(thrown, 2);
  t.equal(error.message, 'onState() failed: boom');
  t.same(error.suppressed, []);
  await failure(it.destination.done);
});

t.test('resume() that throws is told beside what it was called for', async (t) => {
  const it = await scene(t, { source: { resume: boom, devices: [{ idstr: 'cpu', save: rejected }] } });
  const error = await failure(it.source.done);
  t.match(error.message, /save\(\) failed: boom/);
  t.match(error.suppressed[0], { code: 'ERR_MULTIFD_HOOK', message: 'resume() failed: boom' });
  await failure(it.destination.done);
});

t.test('resume() comes when pause() has returned, however early it was cancelled', async (t) => {
  const [pausing, paused] = [deferred(), deferred()];
  const it = await scene(t, {
    source: {
      pause: async () => {
        pausing.resolve();
        await paused.promise;
        it.notes.push('paused');
      },
    },
  });
  await within(pausing.promise, WAIT_MS, 'pause()');
  const cancelled = it.source.cancel();
  await failure(it.destination.done);
  t.notOk(it.notes.includes('resume'));
  t.equal(it.source.state, 'cancelling');
  paused.resolve();
  await within(cancelled, WAIT_MS, 'cancel()');
  t.same(
    it.notes.filter((note) => /pause|resume/.test(note)),
    ['pause', 'paused', 'resume'],
  );
});

t.test('load() that rejects: the source is told, and its guest runs on', async (t) => {
  const it = await scene(t, { destination: { devices: [{ idstr: 'cpu', load: rejected }] } });
  const error = await failure(it.source.done);
  t.equal(error.code, 'ERR_MULTIFD_STREAM');
  t.match(error.message, /^the destination's SHUT: received 1, expected 0/);
  const theirs = await failure(it.destination.done);
  t.match(theirs, { code: 'ERR_MULTIFD_HOOK', message: 'device "cpu" 0: load() failed: boom' });
  await bothFail(t, it);
});

t.test("start() that throws is the destination's own: the guest is there", async (t) => {
  const it = await scene(t, { destination: { start: boom } });
  await within(it.source.done, WAIT_MS, 'done');
  const error = await failure(it.destination.done);
  t.match(error, { code: 'ERR_MULTIFD_HOOK', message: 'start() failed: boom' });
  t.equal(it.source.state, 'completed');
  t.equal(it.destination.state, 'completed');
  t.notOk(it.notes.includes('resume'));
});

t.test('nobody listens: the source fails in state setup', async (t) => {
  const it = await scene(t, { through: async () => ({ host: '127.0.0.1', port: 1 }) });
  t.equal((await failure(it.source.done)).code, 'ERR_MULTIFD_CONNECT');
  t.equal(it.source.state, 'failed');
  runsOnHere(t, it);
});
