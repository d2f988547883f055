/** A PC of v86 whose migration ends early, in each state: cancelled, its destination killed, its source killed. */
import t, { type Test } from 'tap';
import { createMigrationDestination, type MigrationSource, type SourceState } from '../../src/index.js';
import type { PcHost } from '../../src/cli/demo/v86/pc-host.js';
import { RAM_BYTES } from '../../src/cli/demo/v86/pc-options.js';
import { within } from '../support/within.js';
import { WAIT_MS, deferred, failure } from './scene.js';
import { SLEEPER, failsAndRunsOn, makePc, pcHost, pcScene, runsHere, sourceOf } from './v86.js';

const STATES: SourceState[] = ['active', 'pre-switchover', 'device'];
const SETTINGS = { channels: 2, compression: 'none' as const };

for (const wanted of STATES) {
  t.test(`cancelled in state ${wanted}: the guest runs on here, and nothing there`, async (t) => {
    const it = await pcScene(t, {
      source: (source) => ({
        pauseBeforeSwitchover: true,
        onState: (state) => {
          if (state === wanted) void source().cancel();
          else if (state === 'pre-switchover') source().switchover();
        },
      }),
    });
    t.equal((await failsAndRunsOn(t, it)).code, 'ERR_MULTIFD_CLOSED');
    t.equal(it.source.state, 'cancelled');
    await failure(it.destination.done);
    t.notOk(it.there.emulator.is_running());
  });
}

t.test('cancelled in state setup: the guest has never been stopped', async (t) => {
  const it = await pcScene(t);
  await it.source.cancel();
  t.equal(it.source.state, 'cancelled');
  t.ok(it.here.emulator.is_running());
  await runsHere(t, it.here);
});

t.test('cancelled when it is there: too late, it runs there', async (t) => {
  const it = await pcScene(t);
  await within(it.source.done, WAIT_MS, 'the source');
  await it.source.cancel();
  t.equal(it.source.state, 'completed');
  await within(it.destination.done, WAIT_MS, 'the destination');
  t.notOk(it.here.emulator.is_running());
  await runsHere(t, it.there);
});

t.test('what was cancelled is moved by the next migration', async (t) => {
  const it = await pcScene(t, {
    source: (source) => ({ onState: (state) => void (state === 'device' && source().cancel()) }),
  });
  await failure(it.source.done);
  const there = await makePc(t);
  const destination = await createMigrationDestination({ listen: 'tcp:127.0.0.1:0', ...there.destination });
  t.teardown(() => destination.cancel());
  const again = await sourceOf(t, it.here, destination.address);
  await within(Promise.all([again.done, destination.done]), WAIT_MS, 'both ends');
  await runsHere(t, there);
});

/** A process that waits for a PC. */
async function waiting(t: Test): Promise<{ host: PcHost; to: { host: string; port: number } }> {
  const host = pcHost(t);
  const to = await within(host.ask({ type: 'listen', settings: SETTINGS }), WAIT_MS, 'the other process');
  return { host, to: to as { host: string; port: number } };
}

for (const wanted of ['setup', ...STATES]) {
  t.test(`the destination's process killed in state ${wanted}: the guest runs on here`, async (t) => {
    const here = await makePc(t, SLEEPER, RAM_BYTES);
    const { host, to } = await waiting(t);
    const kill = (): void => void process.kill(host.pid as number, 'SIGKILL');
    if (wanted === 'setup') kill();
    const source: MigrationSource = await sourceOf(t, here, to, () => ({
      pauseBeforeSwitchover: true,
      connectTimeoutMs: 1000,
      onState: (state) => {
        if (state === wanted) kill();
        else if (state === 'pre-switchover') source.switchover();
      },
    }));
    const error = await failsAndRunsOn(t, { here, source });
    t.match(error.code, /^ERR_MULTIFD_(CONNECT|CONNECTION|EOF|TIMEOUT)$/);
    t.equal(source.state, 'failed');
  });
}

for (const when of ['in its rounds', 'when it has sent all, in load()']) {
  t.test(`the source's process killed ${when}: an error here, and nothing is started`, async (t) => {
    const host = pcHost(t);
    await within(host.ask({ type: 'boot', guest: SLEEPER }), WAIT_MS, 'the other process');
    const pid = host.pid as number;
    const dead = deferred();
    const kill = (): void => {
      process.kill(pid, 'SIGKILL');
      const seen = setInterval(() => {
        if (isAlive(pid)) return;
        clearInterval(seen);
        dead.resolve();
      }, 5);
    };
    const there = await makePc(t, undefined, RAM_BYTES);
    const { devices, ...rest } = there.destination;
    const destination = await createMigrationDestination({
      listen: { host: '127.0.0.1', port: 0 },
      ...rest,
      devices: devices.map(({ idstr, load }) => ({
        idstr,
        load: async (data: Buffer) => {
          kill();
          await dead.promise;
          await load(data);
        },
      })),
      onState: (state) => {
        if (state === 'active' && when === 'in its rounds') kill();
      },
    });
    t.teardown(() => destination.cancel());
    const to = destination.address;
    const settings = { ...SETTINGS, maxBandwidth: when === 'in its rounds' ? 2 ** 20 : 0 };
    host.ask({ type: 'migrate', to, settings }).catch(() => {});
    const error = await failure(destination.done);
    t.match(error.code, /^ERR_MULTIFD_(CONNECTION|EOF)$/);
    t.equal(destination.state, 'failed');
    t.notOk(there.emulator.is_running());
  });
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}
