/** The models of the hand-over, searched through by spin; and each mutant of theirs, which must be found wrong. */
import fs from 'node:fs';
import t from 'tap';
import { leftOut, misordered, type Mutant } from './mutants.js';
import { readModels, spinMissing, verify, type Models, type Verification } from './spin.js';

/** Many times what is needed. */
const SEARCH_MS = 200_000;
t.setTimeout(20 * 60_000);

/** The least to search first. */
const CASES: { name: string; file: string; defines: string[] }[] = [
  {
    name: 'a receiver fails or is stopped at any moment',
    file: 'receive.pml',
    defines: ['OPENED', 'FAILS', 'JOBS=0', 'SYNCS=0'],
  },
  {
    name: 'a sender fails or is stopped at any moment',
    file: 'send.pml',
    defines: ['OPENED', 'FAILS', 'JOBS=0', 'DEVICE_JOBS=0', 'SYNCS=0'],
  },
  { name: 'two channels offer and sync', file: 'receive.pml', defines: ['OPENED'] },
  { name: 'two channels sync twice', file: 'receive.pml', defines: ['OPENED', 'JOBS=0', 'SYNCS=2'] },
  { name: 'two channels start, sync and end', file: 'receive.pml', defines: ['JOBS=0'] },
  { name: 'two channels and two clients, from the start to the end', file: 'send.pml', defines: [] },
  {
    name: 'two clients wait with tickets for two busy channels',
    file: 'send.pml',
    defines: ['OPENED', 'BUSY', 'SYNCS=0'],
  },
  {
    name: 'a client has more jobs than there are channels, and no sync',
    file: 'send.pml',
    defines: ['OPENED', 'JOBS=3', 'DEVICE_JOBS=0', 'SYNCS=0'],
  },
];

/** What the models do without, and why the code has it. */
const NOT_NEEDED: Record<string, string> = {
  'give: postReady':
    'who is next in line would wait until a channel is through with its next job, which posts READY as well, while another is idle',
  'broke: postSem':
    'a connection that breaks while its channel sleeps would be noticed with the next job, sync or stop, not at once',
};

const missing = spinMissing();
const skip = missing === undefined ? false : `${missing}: the models are not searched`;
const models = readModels();

function searched(of: Models, { file, defines }: (typeof CASES)[number]): Verification {
  return verify(of, { file, defines, timeoutMs: SEARCH_MS });
}

for (const one of CASES) {
  t.test(`${one.file}: ${one.name}`, { skip }, async (t) => {
    const { error, states } = searched(models, one);
    t.equal(error, undefined);
    t.comment(`${states} states`);
  });
}

/** What both models are made of. */
const COMMON = 'words.pml';

/** In which case it is found wrong; those of a model that is as it was need not be searched again. */
function caughtBy({ models: changed }: Mutant): string | undefined {
  const isChanged = (file: string): boolean =>
    (changed as Record<string, string>)[file] !== (models as Record<string, string>)[file];
  const cases = CASES.filter(({ file }) => isChanged(COMMON) || isChanged(file));
  return cases.find((one) => searched(changed, one).error !== undefined)?.name;
}

for (const mutant of [...leftOut(models), ...misordered(models)]) {
  const { name } = mutant;
  const why = NOT_NEEDED[name];
  const says = why === undefined ? 'is found wrong' : 'is found right';
  t.test(`a mutant ${says}: ${name}`, { skip }, async (t) => {
    const by = caughtBy(mutant);
    if (why === undefined) t.ok(by, `caught by: ${by}`);
    else t.equal(by, undefined, why);
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
