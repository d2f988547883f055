/** PCs of v86 that are moved: what does not converge, what sleeps, what is refused, and the state that v86 itself would lose. */
import t, { type Test } from 'tap';
import { relayMigration, type Address } from '../../src/index.js';
import { within } from '../support/within.js';
import { WAIT_MS, failure } from './scene.js';
import { SLEEPER, WRITER, failsAndRunsOn, makePc, pcScene, runsHere, type PcScene } from './v86.js';

/** So slow, the writer writes to all of its memory while it is sent. */
const SLOW = { maxBandwidth: 20_000_000, downtimeLimitMs: 0 };

async function isThere(t: Test, { source, destination, there, here }: PcScene): Promise<void> {
  await within(Promise.all([source.done, destination.done]), WAIT_MS, 'both ends');
  t.notOk(here.emulator.is_running(), 'it does not run here any more');
  await runsHere(t, there);
}

t.test('one that sleeps most of the time', async (t) => {
  await isThere(t, await pcScene(t, { guest: { ...SLEEPER, ticksPerSecond: 20 } }));
});

t.test('one that never converges, switchover: it is moved all the same, and loses nothing', async (t) => {
  const it = await pcScene(t, {
    guest: WRITER,
    source: () => ({ ...SLOW, maxRounds: 4, notConverging: 'switchover' }),
  });
  await isThere(t, it);
  t.equal(it.source.stats().ram.dirtySyncCount, 6);
});

t.test('one that never converges, fail: it runs on here', async (t) => {
  const it = await pcScene(t, { guest: WRITER, source: () => ({ ...SLOW, maxRounds: 4 }) });
  const error = await failsAndRunsOn(t, it);
  t.equal(error.code, 'ERR_MULTIFD_CONVERGENCE');
  t.equal((await failure(it.destination.done)).name, 'MultifdError');
  t.notOk(it.there.emulator.is_running());
});

t.test('one that never converges, throttled until it does', async (t) => {
  const percents: number[] = [];
  const it = await pcScene(t, {
    guest: WRITER,
    source: (_, here) => ({
      ...SLOW,
      downtimeLimitMs: 20,
      notConverging: (percent) => {
        percents.push(percent);
        here.throttle(percent);
      },
    }),
  });
  await isThere(t, it);
  const all = [20, 30, 40, 50, 60, 70, 80, 90, 99];
  t.same(percents, all.slice(0, percents.length));
});

t.test('throttled in vain: it fails, and the guest is not slowed down any more', async (t) => {
  const percents: number[] = [];
  const it = await pcScene(t, {
    guest: WRITER,
    source: (_, here) => ({
      ...SLOW,
      maxRounds: 8,
      notConverging: (percent) => {
        percents.push(percent);
        here.throttle(percent);
      },
    }),
  });
  t.equal((await failsAndRunsOn(t, it)).code, 'ERR_MULTIFD_CONVERGENCE');
  t.equal(percents.at(-1), 0);
});

t.test('a relay passes it through', async (t) => {
  let relayed!: ReturnType<typeof relayMigration>;
  const it = await pcScene(t, {
    through: (to) =>
      new Promise<Address>((resolve, reject) => {
        relayed = relayMigration({ listen: { host: '127.0.0.1', port: 0 }, to, onListening: resolve });
        relayed.catch(reject);
      }),
  });
  await isThere(t, it);
  t.match(await within(relayed, WAIT_MS, 'the relay'), { machine: 'v86-1.0', sourceTold: true });
});

t.test('a PC with less RAM refuses it, and it runs on here', async (t) => {
  const it = await pcScene(t, { ramBytesThere: 3 * 2 ** 20 });
  await failsAndRunsOn(t, it);
  t.match(await failure(it.destination.done), {
    code: 'ERR_MULTIFD_STREAM',
    message: /size of RAM block "pc.ram": received 4194304, expected 3145728/,
  });
});

t.test('state that is none of v86 is refused, and it runs on here', async (t) => {
  const it = await pcScene(t, {
    source: () => ({ devices: [{ idstr: 'v86', save: () => new Uint8Array(64) }] }),
  });
  await failsAndRunsOn(t, it);
  t.equal((await failure(it.destination.done)).code, 'ERR_MULTIFD_HOOK');
  t.notOk(it.there.emulator.is_running());
});

t.test('a state is without RAM', async (t) => {
  const here = await makePc(t, WRITER);
  await here.pause();
  t.ok((await here.save()).length < 3 * 2 ** 20);
});

t.test("registers that v86's restore_state() loses are the CPU's", async (t) => {
  const [here, there] = [await makePc(t, SLEEPER), await makePc(t)];
  await here.pause();
  here.cpu.last_result[0] = 0x12345678;
  here.cpu.fpu_status_word[0] = 0x1234;
  here.cpu.mxcsr[0] = 0x1fa0;
  const { last_result, fpu_status_word, mxcsr } = there.cpu;
  await there.load(Buffer.from(await here.save()));
  t.same([last_result[0], fpu_status_word[0], mxcsr[0]], [0x12345678, 0x1234, 0x1fa0]);
  last_result[0] = 7;
  // As they are now, and not as they were.
  await here.load(Buffer.from(await there.save()));
  t.equal(here.cpu.last_result[0], 7);
});

t.test("the timer's start is in the time of the process that it comes to", async (t) => {
  const [here, there] = [await makePc(t, SLEEPER), await makePc(t)];
  await here.pause();
  const state = Buffer.from(await here.save());
  const before = here.cpu.devices.pit.counter_start_time[0];
  const now = performance.now.bind(performance);
  t.teardown(() => (performance.now = now));
  // Of a process that was started a thousand seconds before.
  performance.now = () => now() + 1e6;
  await there.load(state);
  const moved = there.cpu.devices.pit.counter_start_time[0] - before;
  t.ok(moved >= 1e6 && moved < 1e6 + WAIT_MS, String(moved));
});
