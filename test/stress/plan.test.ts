/** What is left to chance in `multifd stress`: the same for the same seed and run, and all that there is to choose from is chosen. */
import t from 'tap';
import { Dice } from '../../src/stress/dice.js';
import {
  DIRTY_FORMS,
  FAULT_KINDS,
  MEMORIES,
  SIDES,
  WAYS,
  enginePlan,
  type EnginePlan,
} from '../../src/stress/engine-plan.js';

t.test('a plan follows from seed and run alone, in whatever order it is asked for', async (t) => {
  const forth = [0, 1, 2, 3].map((run) => enginePlan(7, run));
  const back = [3, 2, 1, 0].map((run) => enginePlan(7, run)).reverse();
  t.same(forth, back);
  t.notSame(enginePlan(7, 1), { ...enginePlan(8, 1), seed: 7 });
  t.notSame(enginePlan(7, 1), { ...enginePlan(7, 2), run: 1 });
});

t.test('every kind of everything comes within 1000 runs', async (t) => {
  const plans = Array.from({ length: 1000 }, (_, run) => enginePlan(1, run));
  const all = (what: string, from: readonly unknown[], of: (plan: EnginePlan) => unknown): void => {
    const seen = new Set(plans.map(of));
    t.same(
      [...from].filter((value) => !seen.has(value)),
      [],
      what,
    );
  };
  all('ways', WAYS, (plan) => plan.way);
  all('faults', [undefined, ...FAULT_KINDS], (plan) => plan.fault?.kind);
  all('sides', SIDES, (plan) => plan.fault?.side);
  all('memory at the source', MEMORIES, (plan) => plan.memory.source);
  all('memory at the destination', MEMORIES, (plan) => plan.memory.destination);
  all('page sizes', [4096, 8192, 16384, 32768, 65536], (plan) => plan.pageSize);
  all('methods', ['none', 'zlib', 'zstd'], (plan) => plan.compression);
  all('zero pages', ['multifd', 'none', 'legacy'], (plan) => plan.zeroPageDetection);
  all('dirty pages', DIRTY_FORMS, (plan) => plan.dirty);
  all('TLS', ['none', 'psk', 'x509'], (plan) => plan.tls);
  all('sockets', [true, false], (plan) => plan.unix);
  all('channels', [1, 2, 3, 4, 5, 6, 7], (plan) => plan.channels);
});

t.test('only one kind of fault, where it is asked for; a full disk is a file', async (t) => {
  for (const kind of FAULT_KINDS) t.equal(enginePlan(1, 4, kind).fault?.kind, kind);
  t.equal(enginePlan(1, 4, 'no-fault').fault, undefined);
  for (let run = 0; run < 50; run++) t.equal(enginePlan(1, run, 'disk-full').way, 'file');
});

t.test('dice: within their bounds, both ends reached', async (t) => {
  const dice = new Dice(1);
  const seen = (draw: () => number): number[] =>
    [...new Set(Array.from({ length: 2000 }, draw))].sort((a, b) => a - b);
  t.same(
    seen(() => dice.between(3, 6)),
    [3, 4, 5, 6],
  );
  t.same(
    seen(() => dice.below(3)),
    [0, 1, 2],
  );
  const doubled = seen(() => dice.doubling(1, 100));
  t.ok(doubled[0] === 1 && doubled.at(-1)! <= 100 && doubled.at(-1)! > 80);
  t.same(dice.shuffle([1, 2, 3]).sort(), [1, 2, 3]);
});
