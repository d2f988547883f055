/**
 * One test of a file, by its whole name, in a process group of its own and within a time limit.
 *
 * tap runs the others of the file not at all, and fails the one that is still pending when the time is up. Where it cannot, since
 * the event loop does not turn, the group is killed: tap's own runner would do so as well.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import path from 'node:path';

export interface TestRun {
  /** `died`: its process, before it could say; `absent`: there is no such test, or it was skipped. */
  outcome: 'passed' | 'failed' | 'died' | 'hung' | 'absent';
  ms: number;
  /** The end of what it has printed. */
  said: string;
}

/** For tap to say what was pending, when its own time is up. */
const TOLD_MS = 2000;
const MAX_SAID = 4096;

/** The processes that are there, to be killed by killTests(). */
const running = new Set<ChildProcess>();

/**
 * @param tree with `dist/test/`
 * @param test as in Mutant, `sentence` likewise
 */
export async function runTest(
  tree: string,
  test: string,
  sentence: string,
  limitMs: number,
): Promise<TestRun> {
  const begun = performance.now();
  const child = spawn(process.execPath, [path.join(tree, `dist/test/${test}.test.js`)], {
    cwd: tree,
    detached: true,
    stdio: ['ignore', 'pipe', 'pipe'],
    env: {
      ...process.env,
      TAP_GREP: `/^${sentence.replace(/[\\^$.*+?()[\]{}|/]/g, '\\$&')}$/`,
      TAP_TIMEOUT: String(limitMs / 1000),
    },
  });
  running.add(child);
  const line = new RegExp(`^(not )?ok \\d+ - ${escaped(sentence)}(?! # SKIP)(?: #.*| \\{)?$`, 'm');
  let said = '';
  let outcome: TestRun['outcome'] | undefined;
  const hear = (chunk: Buffer): void => {
    said += chunk.toString('utf8');
    const found = line.exec(said);
    if (found !== null) outcome = found[1] === undefined ? 'passed' : 'failed';
    said = said.slice(-MAX_SAID);
    // What it has left behind may keep it alive; nothing more is wanted of it.
    if (outcome === 'failed') killGroup(child);
  };
  child.stdout.on('data', hear);
  child.stderr.on('data', hear);
  const timer = setTimeout(() => {
    outcome = 'hung';
    killGroup(child);
  }, limitMs + TOLD_MS);
  const code = await new Promise<number | null>((resolve, reject) => {
    child.once('error', reject);
    child.once('exit', (code) => {
      // Processes of the test's own would hold the pipes.
      killGroup(child);
      child.once('close', () => resolve(code));
    });
  }).finally(() => {
    clearTimeout(timer);
    running.delete(child);
  });
  if (code !== 0 && outcome !== 'hung' && outcome !== 'failed') outcome = 'died';
  return { outcome: outcome ?? 'absent', ms: performance.now() - begun, said };
}

/** For a run that is broken off. */
export function killTests(): void {
  for (const child of running) killGroup(child);
}

function killGroup({ pid }: ChildProcess): void {
  if (pid === undefined) return;
  try {
    process.kill(-pid, 'SIGKILL');
  } catch {
    // All of it has ended.
  }
}

/** As tap prints a name, and as part of a RegExp. */
function escaped(sentence: string): string {
  return sentence.replace(/[\\#]/g, '\\$&').replace(/[\\^$.*+?()[\]{}|/]/g, '\\$&');
}
