/** When a fault strikes: not a side that nothing would let go on. */
import t from 'tap';
import { Dice } from '../../src/stress/dice.js';
import { EngineFault } from '../../src/stress/engine-fault.js';
import type { FaultPlan } from '../../src/stress/engine-plan.js';

type Parts = ConstructorParameters<typeof EngineFault>;

function scene(kind: FaultPlan['kind']): { fault: EngineFault; signals: string[]; begin: () => void } {
  const signals: string[] = [];
  const side = (name: string) => ({ name, signal: (signal: string) => signals.push(`${name} ${signal}`) });
  const sides = { source: side('source'), destination: side('destination'), ask: async () => true };
  const plan: FaultPlan = {
    kind,
    side: 'source',
    connection: 0,
    at: { connections: 1, bytes: 10, ms: 0 },
    ms: 1,
    amount: 0,
  };
  const fault = new EngineFault(plan, new Dice(1, 1), sides as unknown as Parts[2], () => {});
  const passOn = { connections: [{}], bytes: 10 };
  return {
    fault,
    signals,
    begin: () => fault.begin(passOn as unknown as Parameters<EngineFault['begin']>[0]),
  };
}

t.test('a side that is stopped goes on when one has said its last', async (t) => {
  const { fault, signals, begin } = scene('stop');
  begin();
  t.same(signals, ['source SIGSTOP']);
  fault.sideEnded();
  t.same(signals, ['source SIGSTOP', 'source SIGCONT']);
  fault.end();
});

t.test('and is not stopped behind that', async (t) => {
  const { fault, signals, begin } = scene('stop');
  fault.sideEnded();
  begin();
  t.same(signals, []);
  t.equal(fault.struckAt, undefined);
  fault.end();
});
