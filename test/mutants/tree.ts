/**
 * A private copy of what the tests are built from, in the system's folder for temporary files: mutants are put into it one
 * after the other, and the tree that is worked on stays as it is.
 */
import { spawn } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';

/** `npm run build` takes benches as well. */
const SOURCES = ['bench', 'src', 'test', 'workers', 'package.json', 'tsconfig.json'];

/** Those that are there, to be removed by removeTrees(). */
const trees = new Set<string>();

/** @returns its folder, not built yet */
export function copyTree(root: string): string {
  const tree = fs.mkdtempSync(path.join(os.tmpdir(), 'multifd-mutants-'));
  trees.add(tree);
  for (const name of SOURCES) {
    fs.cpSync(path.join(root, name), path.join(tree, name), {
      recursive: true,
      filter: (file) => path.basename(file) !== 'node_modules',
    });
  }
  fs.symlinkSync(path.join(root, 'node_modules'), path.join(tree, 'node_modules'));
  return tree;
}

/** @returns what stands in the way, if it does not build */
export async function buildTree(tree: string): Promise<string | undefined> {
  const child = spawn('npm', ['run', 'build', '--silent'], { cwd: tree, stdio: ['ignore', 'pipe', 'pipe'] });
  let said = '';
  for (const stream of [child.stdout, child.stderr])
    stream.on('data', (chunk: Buffer) => (said += chunk.toString()));
  const code = await new Promise<number | null>((resolve, reject) => {
    child.once('error', reject);
    child.once('close', resolve);
  });
  return code === 0 ? undefined : said;
}

export function removeTrees(): void {
  for (const tree of trees) fs.rmSync(tree, { recursive: true, force: true, maxRetries: 3 });
  trees.clear();
}
