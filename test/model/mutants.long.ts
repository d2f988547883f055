/** Each mutant of the models must be found wrong by one of the cases that they are searched for: `npm run test:models`. */
import t from 'tap';
import { CASES, models, searched, skip } from './cases.js';
import { leftOut, misordered, type Mutant } from './mutants.js';

// Each search has its own limit, and the machine may be slow.
t.setTimeout(60 * 60_000);

/** What the models do without, and why the code has it. */
const NOT_NEEDED: Record<string, string> = {
  'give: postReady':
    'who is next in line would wait until a channel is through with its next job, which posts READY as well, while another is idle',
  'broke: postSem':
    'a connection that breaks while its channel sleeps would be noticed with the next job, sync or stop, not at once',
};

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
