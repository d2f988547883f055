/** Runs of the code under the stepper, and what the models say of them. */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { accept, readModels } from './spin.js';
import { makeBundle, type Change } from './stepped/bundle.js';
import { describeFailure, runSchedules, type Runs } from './stepped/run.js';

const ACCEPT_MS = 200_000;

export type Side = Runs['side'];

/** @returns what goes wrong, in words, at the first of the schedules that does; undefined if none */
export async function firstFailure(
  side: Side,
  from: number,
  count: number,
  changes: readonly Change[] = [],
): Promise<string | undefined> {
  const bundle = await makeBundle(changes);
  try {
    const { failure } = await runSchedules({ side, bundle, from, count });
    return failure && describeFailure(side, failure);
  } finally {
    fs.rmSync(path.dirname(bundle), { recursive: true });
  }
}

/** @returns the traces that the side's model does not accept, a line each; the first failure if there is one */
export async function notAccepted(
  side: Side,
  from: number,
  count: number,
  changes: readonly Change[] = [],
): Promise<string[]> {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'multifd-traces-'));
  const file = path.join(folder, 'traces.bin');
  const bundle = await makeBundle(changes);
  try {
    const traces = fs.openSync(file, 'w');
    try {
      const { failure } = await runSchedules({ side, bundle, from, count, traces });
      if (failure !== undefined) return [describeFailure(side, failure)];
    } finally {
      fs.closeSync(traces);
    }
    const model = { file: `${side}.pml`, defines: ['FAILS', 'SYNCS=100'], timeoutMs: ACCEPT_MS };
    const output = accept(readModels(), model, fs.readFileSync(file));
    const rest = output.split('\n').filter((line) => /no way|not accepted/.test(line));
    if (rest.length === 0 && !output.includes(`accepted: ${count}\n`)) rest.push(output);
    return rest;
  } finally {
    fs.rmSync(path.dirname(bundle), { recursive: true });
    fs.rmSync(folder, { recursive: true });
  }
}
