/**
 * `npm run mutants`: are the tests as good as they look? Each mutant (mutant.ts) is put into a copy of the tree, and the test
 * that it names must fail.
 *
 *     without a mutant    each test that one names passes, once: its time is what it may take ten times of
 *     with it             patch, build, that test    fails, or takes longer: killed
 *                                                    passes: SURVIVED, and a test is missing
 *     neither             the patch does not apply, it does not build, the test is not there: that is told, and no success
 */
import { availableParallelism } from 'node:os';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { applyPatch, readMutants, selectMutants, type Mutant } from './mutant.js';
import { killTests, runTest, type TestRun } from './run-test.js';
import { buildTree, copyTree, removeTrees } from './tree.js';

const HELP = `Usage: npm run mutants -- [options] [NAME ...]

Breaks the code on purpose, in a copy, and says whether a test notices. NAME is that of a patch in test/mutants, or its number.

Options:
  --jobs N    so many copies at a time (default: one for two processors)
  --list      what each mutant breaks, and the test that kills it
  -h, --help  display help

Exit codes: 0 all were killed, 1 one was not, 2 wrong usage, 130 after Ctrl-C, 143 after SIGTERM.`;

const ROOT = fileURLToPath(new URL('../../../', import.meta.url));
const PATCHES = fileURLToPath(new URL('../../../test/mutants/', import.meta.url));
/** For a test without a mutant: it must not be the day that is slow. */
const PLAIN_LIMIT_MS = 120_000;
/** With one it may take so many times what it took, and so much at least: what is slower than that hangs. */
const LIMIT_TIMES = 10;
const LEAST_LIMIT_MS = 15_000;
const SIGNALS = { SIGINT: 130, SIGTERM: 143 } as const;

interface Result {
  isKilled: boolean;
  /** What is printed of it. */
  told: string;
  ms: number;
  /** What the test has printed, where it should not have passed, or should. */
  said?: string;
}

const { mutants, jobs, isList } = readUsage();
if (isList) {
  for (const mutant of mutants)
    console.log(`${mutant.name}\n  breaks: ${mutant.breaks}\n  killed by: ${testOf(mutant)}`);
} else process.exitCode = await main(mutants, jobs);

function readUsage(): { mutants: Mutant[]; jobs: number; isList: boolean } {
  try {
    const { values, positionals } = parseArgs({
      allowPositionals: true,
      options: {
        jobs: { type: 'string', default: String(Math.max(1, Math.floor(availableParallelism() / 2))) },
        list: { type: 'boolean', default: false },
        help: { type: 'boolean', short: 'h', default: false },
      },
    });
    if (values.help) {
      console.log(HELP);
      process.exit(0);
    }
    const jobs = Number(values.jobs);
    if (!Number.isInteger(jobs) || jobs < 1)
      throw new Error(`--jobs: given ${values.jobs}, allowed 1 or more`);
    return { mutants: selectMutants(readMutants(PATCHES), positionals), jobs, isList: values.list };
  } catch (error) {
    console.error((error as Error).message);
    process.exit(2);
  }
}

async function main(mutants: readonly Mutant[], jobs: number): Promise<number> {
  const begun = performance.now();
  for (const [signal, code] of Object.entries(SIGNALS)) {
    process.once(signal, () => {
      killTests();
      removeTrees();
      process.exit(code);
    });
  }
  try {
    const trees = Array.from({ length: Math.min(jobs, mutants.length) }, () => copyTree(ROOT));
    const broken = await Promise.all(trees.map(buildTree));
    for (const why of broken)
      if (why !== undefined) throw new Error(`it does not build without a mutant: ${why}`);
    const plain = await runPlain(mutants, trees);
    const results: Result[] = [];
    await inTurn(mutants, trees, async (mutant, tree) => {
      const result = await tryMutant(mutant, tree, plain.get(testOf(mutant)) as TestRun);
      results.push(result);
      const { isKilled, told, ms, said } = result;
      console.log(`${isKilled ? 'killed  ' : 'NOT KILLED'} ${mutant.name}  ${told}, ${seconds(ms)}`);
      if (!isKilled) console.log(`  breaks: ${mutant.breaks}\n  killed by: ${testOf(mutant)}`);
      if (said !== undefined) console.log(said.replace(/^/gm, '    | '));
    });
    const killed = results.filter(({ isKilled }) => isKilled).length;
    console.log(`${killed} of ${mutants.length} mutants killed, in ${seconds(performance.now() - begun)}`);
    return killed === mutants.length ? 0 : 1;
  } finally {
    removeTrees();
  }
}

/** Each test that the mutants name, once, without them. */
async function runPlain(mutants: readonly Mutant[], trees: readonly string[]): Promise<Map<string, TestRun>> {
  const plain = new Map<string, TestRun>();
  const tests = new Map(mutants.map((mutant) => [testOf(mutant), mutant]));
  await inTurn([...tests], trees, async ([name, { test, sentence }], tree) => {
    plain.set(name, await runTest(tree, test, sentence, PLAIN_LIMIT_MS));
  });
  return plain;
}

async function tryMutant(mutant: Mutant, tree: string, plain: TestRun): Promise<Result> {
  const begun = performance.now();
  const result = (isKilled: boolean, told: string, said?: string): Result => {
    return { isKilled, told, ms: performance.now() - begun, said };
  };
  if (plain.outcome === 'absent') return result(false, 'its test is not there');
  if (plain.outcome !== 'passed') return result(false, 'its test fails without it as well', plain.said);
  try {
    applyPatch(tree, mutant, 'apply');
  } catch (error) {
    return result(false, (error as Error).message);
  }
  try {
    const why = await buildTree(tree);
    if (why !== undefined) return result(false, 'does not build', why);
    const limitMs = Math.max(LEAST_LIMIT_MS, LIMIT_TIMES * plain.ms);
    const { outcome } = await runTest(tree, mutant.test, mutant.sentence, limitMs);
    if (outcome === 'passed' || outcome === 'absent') return result(false, 'SURVIVED');
    if (outcome === 'hung')
      return result(true, `hangs for ${seconds(limitMs)}, ${seconds(plain.ms)} without it`);
    return result(true, outcome === 'failed' ? 'fails' : 'dies');
  } finally {
    applyPatch(tree, mutant, 'reverse');
  }
}

/** Every tree takes the next item as soon as it is done with its last one. */
async function inTurn<T>(
  items: readonly T[],
  trees: readonly string[],
  work: (item: T, tree: string) => Promise<void>,
): Promise<void> {
  const left = [...items];
  await Promise.all(
    trees.map(async (tree) => {
      for (let item = left.shift(); item !== undefined; item = left.shift()) await work(item, tree);
    }),
  );
}

function testOf({ test, sentence }: Mutant): string {
  return `test/${test}.test.ts: ${sentence}`;
}

function seconds(ms: number): string {
  return `${(ms / 1000).toFixed(1)} s`;
}
