/** What `multifd stress engine` takes for wrong: each thing that may be wrong with a run is found, and a run that is well has none. */
import t from 'tap';
import { enginePlan, type FaultKind } from '../../src/stress/engine-plan.js';
import { judge, type RunFacts, type SideReport } from '../../src/stress/judge.js';
import type { LeftBehind, Outcome } from '../../src/stress/messages.js';

const LIMIT_MS = 5000;
const NOTHING: LeftBehind = { descriptors: [], threads: 0, resources: [], heapBytes: 0, residentBytes: 0 };

function completed(hooks: string[], digests?: Record<string, string>): SideReport {
  const outcome: Outcome = { completed: true, hooks, bytes: 1, ...(digests && { digests }) };
  return { outcome, died: undefined, tookMs: undefined, left: NOTHING };
}

function failed(code: string, hooks: string[] = [], tookMs = 100): SideReport {
  return {
    outcome: { completed: false, code, message: 'why', hooks, bytes: 1 },
    died: undefined,
    tookMs,
    left: NOTHING,
  };
}

function facts(kind: FaultKind | undefined, source: SideReport, destination: SideReport): RunFacts {
  const plan = enginePlan(1, 1, kind ?? 'no-fault');
  plan.way = 'live';
  if (plan.fault !== undefined) plan.fault.side = 'source';
  const sides = { source, destination };
  return { plan, struck: kind, sides, reached: { ram0: 'aa' }, files: [], limitMs: LIMIT_MS };
}

const SOUND = (): [SideReport, SideReport] => [
  completed(['pause']),
  completed(['load', 'start'], { ram0: 'aa' }),
];
const BROKEN = (): [SideReport, SideReport] => [
  failed('ERR_MULTIFD_CONNECTION', ['pause', 'resume']),
  failed('ERR_MULTIFD_EOF'),
];

t.test('a run that ends as it has to has nothing wrong', async (t) => {
  t.same(judge(facts(undefined, ...SOUND())), []);
  t.same(judge(facts('delay', ...SOUND())), []);
  t.same(judge(facts('reset', ...SOUND())), [], 'the reset came to late to matter');
  t.same(judge(facts('reset', ...BROKEN())), []);
  t.same(judge(facts('abort', failed('ERR_MULTIFD_ABORTED'), failed('ERR_MULTIFD_CONNECTION'))), []);
  t.same(judge(facts('thread', failed('ERR_MULTIFD_WORKER'), failed('ERR_MULTIFD_CONNECTION'))), []);
  const [, arrived] = SOUND();
  t.same(judge(facts('cut', failed('ERR_MULTIFD_CONNECTION', ['pause', 'resume']), arrived)), [], 'the gap');
  const dead = { outcome: undefined, died: 'killed by SIGKILL', tookMs: undefined, left: undefined };
  t.same(judge(facts('kill', dead, failed('ERR_MULTIFD_EOF'))), []);
});

t.test('a file that is kept, and said to be, has all, and is nothing left behind', async (t) => {
  const [source, destination] = BROKEN();
  const outcome = { ...(destination.outcome as Outcome), kept: 'out.mig.part' };
  const keeps = (digests: Record<string, string>): RunFacts => ({
    ...facts('stop', source, { ...destination, outcome: { ...outcome, digests } }),
    files: ['out.mig.part'],
  });
  t.same(judge(keeps({ ram0: 'aa' })), []);
  t.match(judge(keeps({ ram0: 'bb' })), [/ram0 differs/]);
  const [other] = judge({ ...keeps({ ram0: 'aa' }), files: ['out.mig.part', 'other'] });
  t.equal(other, 'a file is left: other');
});

t.test('a thread that has ended may be known of behind what its end has caused', async (t) => {
  const lost = failed('ERR_MULTIFD_EOF', ['pause', 'resume']);
  const outcome = { ...(lost.outcome as Outcome), suppressed: ['ERR_MULTIFD_WORKER'] };
  const gone = failed('ERR_MULTIFD_CONNECTION');
  t.same(judge(facts('thread', { ...lost, outcome }, gone)), []);
  t.match(judge(facts('thread', lost, gone)), [/the source failed with ERR_MULTIFD_EOF/], 'but has to be');
  t.match(judge(facts('abort', { ...lost, outcome }, gone)), [/the source failed with ERR_MULTIFD_EOF/]);
});

t.test('whatever else it comes to is wrong, and said', async (t) => {
  const cases: [string, RunFacts, RegExp][] = [];
  const add = (what: string, of: RunFacts, says: RegExp): void => void cases.push([what, of, says]);
  const [source, destination] = SOUND();
  const [brokenSource, brokenDestination] = BROKEN();

  add('another RAM', facts(undefined, source, completed(['start'], { ram0: 'bb' })), /ram0 differs/);
  add(
    'a digest that is missing',
    facts(undefined, source, completed(['load', 'start'], {})),
    /ram0 has not come/,
  );
  add(
    'a device that was not loaded',
    facts(undefined, source, completed(['start'], { ram0: 'aa' })),
    /called start, expected load, start/,
  );
  add(
    'a guest that was not paused',
    facts(undefined, completed([]), destination),
    /paused 0 times, expected once/,
  );
  const fast = facts(undefined, source, destination);
  const [size, limit] = [40e6, 4e6];
  const rate = { ...fast.plan, way: 'session' as const, maxBandwidth: limit, channels: 1 };
  const hasSent = { ...source, outcome: { ...(source.outcome as Outcome), bytes: size } };
  const sent = (movedMs: number): RunFacts => ({
    ...fast,
    plan: rate,
    movedMs,
    sides: { source: hasSent, destination },
  });
  add(
    'above its bandwidth',
    sent(5000),
    /40000000 bytes in 5000 ms, expected \d+ at the most by maxBandwidth 4000000/,
  );
  t.same(judge(sent(9900)), [], 'at its bandwidth');
  add('an error without a fault', facts(undefined, ...BROKEN()), /expected to complete/);
  add('an error of a mild fault', facts('throttle', ...BROKEN()), /expected to complete/);
  add(
    'a wrong code',
    facts('reset', failed('ERR_MULTIFD_MAGIC'), brokenDestination),
    /MAGIC: why; expected one of/,
  );
  add('no code', facts('reset', failed('no code'), brokenDestination), /no code/);
  add(
    'another code than abort has',
    facts('abort', brokenSource, brokenDestination),
    /expected one of ERR_MULTIFD_ABORTED/,
  );
  const late = failed('ERR_MULTIFD_STALL', [], LIMIT_MS + 1);
  add('late', facts('stall', late, brokenDestination), /took 5001 ms/);
  const silent = { outcome: undefined, died: undefined, tookMs: undefined, left: undefined };
  add('a hang', facts('cut', silent, brokenDestination), /source has not ended/);
  const whole = { ...facts('delay', silent, destination), waitedMs: 60_000 };
  add('a hang without a fault, by what was waited', whole, /source has not ended: nothing within 60000 ms/);
  add('a crash', facts('cut', { ...silent, died: 'killed by SIGSEGV' }, brokenDestination), /SIGSEGV/);
  add('a lost guest', facts('cut', source, failed('ERR_MULTIFD_EOF')), /the guest is lost/);
  add(
    'a guest that runs nowhere',
    facts('cut', failed('ERR_MULTIFD_EOF', ['pause']), brokenDestination),
    /resumed 0 times/,
  );
  add(
    'a guest resumed twice',
    facts('cut', failed('ERR_MULTIFD_EOF', ['pause', 'resume', 'resume']), brokenDestination),
    /2 times/,
  );
  add(
    'started in spite of it',
    facts('cut', brokenSource, failed('ERR_MULTIFD_EOF', ['start'])),
    /started 1 times/,
  );
  const left = (what: Partial<LeftBehind>): SideReport => ({ ...destination, left: { ...NOTHING, ...what } });
  add('a descriptor', facts(undefined, source, left({ descriptors: ['socket:[7]'] })), /descriptors: socket/);
  add('a thread', facts(undefined, source, left({ threads: 2 })), /left 2 threads/);
  add('a handle', facts(undefined, source, left({ resources: ['TCPSocketWrap'] })), /TCPSocketWrap/);
  add('a file', { ...facts(undefined, ...SOUND()), files: ['out.mig.part'] }, /a file is left: out.mig.part/);
  add(
    'before it stood still',
    { ...facts(undefined, ...SOUND()), reached: undefined },
    /before the source stood still/,
  );
  for (const [what, of, says] of cases) {
    const wrong = judge(of);
    t.ok(
      wrong.some((text) => says.test(text)),
      `${what}: ${wrong.join('; ')}`,
    );
  }
});
