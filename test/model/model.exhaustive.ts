/** The models of the hand-over, searched through by spin. That they find what is wrong is looked at by mutants.long.ts. */
import fs from 'node:fs';
import t from 'tap';
import { CASES, models, searched, skip } from './cases.js';
import { leftOut } from './mutants.js';

for (const one of CASES) {
  t.test(`${one.file}: ${one.name}`, { skip }, async (t) => {
    const { error, states } = searched(models, one);
    t.equal(error, undefined);
    t.comment(`${states} states`);
  });
}

/** Stores and notifies of src/shared/control.ts that are not of the hand-over: their own tests hold them. */
const OUTSIDE = [
  'stop: notify BOOTED',
  'claimFirstError: compareExchange FIRST_ERROR',
  'setProof: or PROOF',
  'setProof: notify PROOF',
  'nextPacketNum: add PACKET_NUM',
  'freeze: store FROZEN',
  'postProgress: add PROGRESS',
  'postProgress: notify PROGRESS',
  'markBooted: add BOOTED',
  'markBooted: notify BOOTED',
  'changePages: or',
  'changePages: and',
];

t.test('each atomic store and notify of control.ts has its mutant, or is named as one outside', async (t) => {
  const source = fs.readFileSync(new URL('../../../src/shared/control.ts', import.meta.url), 'utf8');
  const labels = new Set(leftOut(models).map(({ name }) => name));
  const outside = new Set(OUTSIDE);
  let method = '';
  let found = 0;
  for (const line of source.split('\n')) {
    method = /^(?: {2}|(?:export )?function )#?(\w+)\(.*\{$/.exec(line)?.[1] ?? method;
    const call =
      /Atomics\.(store|add|or|and|compareExchange|notify)\((?:this\.#)?\w+(?:, (?:this\.#at\(id, CHANNEL_)?(?:WORD_)?(\w+))?/.exec(
        line,
      );
    if (call === null) continue;
    found++;
    const [, op, word] = call;
    const names = [`${method}: ${op}`, `${method}: ${op} ${word}`];
    t.ok(
      names.some((name) => labels.has(name) || outside.delete(name)),
      `${names.join(' or ')} is a label, or outside`,
    );
  }
  t.ok(found > 20, `${found} found`);
  t.same([...outside], [], 'nothing is outside that is not there');
});
