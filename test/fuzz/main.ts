/**
 * npm run fuzz -- NAME ... --minutes M [--seed S]
 *
 *     this thread   starts one with the fuzzer, and watches it: an input that does not come to its end is a fault as well
 *     that thread   seeds, corpus, then batches; each batch's seed is one more than the last one's, so that
 *                   `--seed S --batches 1` repeats the one that failed
 *
 * A fault is printed, kept as small as it gets in fuzz-NAME-SEED.bin (another place: --keep FOLDER), and the exit code is 1.
 * When it is fixed its file goes to test/fuzz/corpus/NAME/, named for what it was: npm test runs it from then on.
 */
import { writeFileSync } from 'node:fs';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { Worker, isMainThread, parentPort, workerData } from 'node:worker_threads';
import type { Fuzzer } from './contract.js';
import { allFuzzers } from './register.js';
import { type Failure, FuzzRun } from './run.js';

const BATCH_INPUTS = 500;
const REPORT_MS = 10_000;
/** For one input, which has a second of processor time: other programs may be at work. */
const HANGS_MS = 60_000;
const LIMITS = { cpuMs: 1000, growthBytes: 2 ** 28 };
const MOST_INPUT_BYTES = 2 ** 18;

interface Task {
  name: string;
  seed: number;
  until: number;
  batches: number;
  keep: string;
  /** u32 length and the input under way; behind it is its number. */
  input: SharedArrayBuffer;
}

function fromInput(shared: SharedArrayBuffer): Buffer {
  const length = new Int32Array(shared, 0, 1)[0];
  return Buffer.from(new Uint8Array(shared, 8, Math.min(length, MOST_INPUT_BYTES)));
}

// ---- the thread with the fuzzer ----

function keep({ keep: folder, name }: Task, seed: number, { input, why, file }: Failure): void {
  const kept = file ?? path.join(folder, `fuzz-${name}-${seed}.bin`);
  if (file === undefined) writeFileSync(kept, input);
  console.log(`${name}: ${why}`);
  console.log(
    `${name}: ${input.length} bytes, in ${kept}; again: npm run fuzz -- ${name} --seed ${seed} --batches 1`,
  );
}

async function fuzz(task: Task): Promise<boolean> {
  const fuzzer = (await allFuzzers()).find(({ name }) => name === task.name) as Fuzzer;
  const run = await FuzzRun.open(fuzzer, LIMITS);
  const head = new Int32Array(task.input, 0, 2);
  const shown = new Uint8Array(task.input, 8);
  run.onInput = (input) => {
    shown.set(input.subarray(0, MOST_INPUT_BYTES));
    Atomics.store(head, 0, input.length);
    Atomics.add(head, 1, 1);
  };
  process.on('uncaughtException', (error) => {
    if (!run.takeStray(error)) throw error;
  });
  const begun = Date.now();
  let said = begun;
  let seed = task.seed;
  let failure = (await run.seeds()) ?? (await run.corpus());
  for (
    let batch = 0;
    failure === undefined && batch < task.batches && Date.now() < task.until;
    batch++, seed++
  ) {
    failure = await run.batch(seed, BATCH_INPUTS, task.until);
    if (failure !== undefined) break;
    if (Date.now() - said < REPORT_MS) continue;
    said = Date.now();
    console.log(`${task.name}: ${run.inputs} inputs, ${run.refused} refused, seed ${seed}`);
  }
  await run.close();
  if (failure !== undefined) keep(task, seed, failure);
  const seconds = ((Date.now() - begun) / 1000).toFixed();
  console.log(
    `${task.name}: ${run.inputs} inputs, ${run.refused} refused, ${seconds} s, seeds ${task.seed} to ${seed}`,
  );
  return failure === undefined;
}

// ---- the thread that watches ----

async function watch(task: Omit<Task, 'input'>): Promise<boolean> {
  const input = new SharedArrayBuffer(8 + MOST_INPUT_BYTES);
  const worker = new Worker(new URL(import.meta.url), { workerData: { ...task, input } });
  const head = new Int32Array(input, 0, 2);
  let last = 0;
  let since = Date.now();
  let isGood = false;
  const watching = setInterval(() => {
    const now = Atomics.load(head, 1);
    if (now !== last) since = Date.now();
    last = now;
    if (Date.now() - since < HANGS_MS) return;
    keep({ ...task, input }, task.seed, {
      input: fromInput(input),
      why: `time: no end within ${HANGS_MS} ms`,
    });
    void worker.terminate();
  }, 1000);
  worker.on('message', (good: boolean) => (isGood = good));
  await new Promise<void>((resolve) => {
    worker.on('exit', () => resolve());
    worker.on('error', (error) => {
      keep({ ...task, input }, task.seed, {
        input: fromInput(input),
        why: `thrown: ${error.stack ?? error.message}`,
      });
    });
  });
  clearInterval(watching);
  return isGood;
}

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      list: { type: 'boolean' },
      minutes: { type: 'string', default: '1' },
      seed: { type: 'string', default: '1' },
      batches: { type: 'string', default: 'Infinity' },
      keep: { type: 'string', default: '.' },
    },
  });
  const fuzzers = await allFuzzers();
  if (values.list === true) {
    for (const { name, what } of fuzzers) console.log(`${name.padEnd(16)}${what}`);
    return;
  }
  const [minutes, seed, batches] = [values.minutes, values.seed, values.batches].map(Number);
  const unknown = positionals.find((name) => !fuzzers.some((fuzzer) => fuzzer.name === name));
  if (unknown !== undefined || !(minutes > 0) || !Number.isSafeInteger(seed) || !(batches > 0)) {
    const what = unknown === undefined ? 'a number is wrong' : `no fuzzer ${unknown}`;
    console.error(
      `${what}: npm run fuzz -- NAME ... [--minutes M] [--seed S] [--batches N] [--keep FOLDER]; --list has the names`,
    );
    process.exitCode = 2;
    return;
  }
  const names = positionals.length > 0 ? positionals : fuzzers.map(({ name }) => name);
  for (const name of names) {
    const until = Date.now() + minutes * 60_000;
    if (!(await watch({ name, seed, until, batches, keep: values.keep }))) process.exitCode = 1;
  }
}

if (isMainThread) await main();
else {
  parentPort?.postMessage(await fuzz(workerData as Task));
  process.exit();
}
