/**
 * A mutant: a fault that a maintainer could make, as a patch that says what it breaks and which test notices.
 *
 *     NN-name.patch     Breaks: a job is published before the slot that holds it
 *                       Killed by: test/shared/control.test.ts: what a store publishes is there before it
 *
 *                       diff --git a/src/shared/control.ts b/src/shared/control.ts
 *                       ...
 *
 * What stands before the diff is nothing to git. Two lines of context each, so that changes beside it leave it valid; one that
 * no longer applies is made anew by hand, or removed with what it broke.
 */
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { similarTo } from '../../src/did-you-mean.js';

export interface Mutant {
  /** Of its file, without `.patch`. */
  name: string;
  /** All of its file. */
  patch: string;
  breaks: string;
  /** Of the test's file: `shared/control` is test/shared/control.test.ts. */
  test: string;
  /** The test in it, by its whole name. */
  sentence: string;
}

/** All of a folder, by their numbers. @throws of a patch without its two lines */
export function readMutants(folder: string): Mutant[] {
  const files = fs.readdirSync(folder).filter((file) => file.endsWith('.patch'));
  return files.sort().map((file) => readMutant(path.join(folder, file)));
}

function readMutant(file: string): Mutant {
  const patch = fs.readFileSync(file, 'utf8');
  const [head] = patch.split(/^diff --git /m, 1);
  const breaks = /^Breaks: (.+)$/m.exec(head)?.[1];
  const killed = /^Killed by: test\/(\S+)\.test\.ts: (.+)$/m.exec(head);
  if (breaks === undefined || killed === null) {
    throw new Error(
      `${file}: expected 'Breaks: WHAT' and 'Killed by: test/FILE.test.ts: TEST' before the diff`,
    );
  }
  return { name: path.basename(file, '.patch'), patch, breaks, test: killed[1], sentence: killed[2] };
}

/** Those of the names, which may lack what follows the number, or the number. @throws of one that is none */
export function selectMutants(mutants: readonly Mutant[], names: readonly string[]): Mutant[] {
  if (names.length === 0) return [...mutants];
  const selected = new Set<Mutant>();
  for (const name of names) {
    const wanted = path.basename(name, '.patch');
    const found = mutants.filter((mutant) => namesOf(mutant).includes(wanted));
    if (found.length === 0) {
      const near = similarTo(wanted, mutants.flatMap(namesOf));
      throw new Error(`no mutant ${name}${near.length > 0 ? `; did you mean ${near.join(' or ')}?` : ''}`);
    }
    for (const mutant of found) selected.add(mutant);
  }
  return [...selected];
}

function namesOf({ name }: Mutant): string[] {
  const [number] = name.split('-', 1);
  return [name, number, name.slice(number.length + 1)];
}

/**
 * Changes a tree, or takes the change back; with `check` it is only tried.
 *
 * @param tree a copy of the package's folder
 * @throws where the patch does not fit
 */
export function applyPatch(tree: string, { name, patch }: Mutant, how: 'apply' | 'reverse' | 'check'): void {
  const { status, stderr, error } = spawnSync(
    'git',
    ['apply', ...(how === 'apply' ? [] : [`--${how}`]), '-'],
    {
      cwd: tree,
      input: patch,
      encoding: 'utf8',
      // Within somebody else's repository git would take the paths for that one's, and pass them over.
      env: { ...process.env, GIT_CEILING_DIRECTORIES: path.dirname(path.resolve(tree)), GIT_DIR: undefined },
    },
  );
  if (error !== undefined) throw error;
  if (status === 0) return;
  const said = stderr.trim().replaceAll('\n', '; ');
  throw new Error(`${name}.patch does not apply: make it anew for the code as it is (${said})`);
}
