/**
 * The code under test as it is built, in one file, with `Atomics` and the clocks taken from the stepper, and threads and
 * connections that a run can step (pool.ts, connections.ts). Nothing is injected into src: it stays as fast as it is.
 *
 *     src/send, src/recv, src/session.ts, src/shared ...   as they are, but each SPIN is 0: a look is a step, and 400 looks
 *                                                          at a word are one
 */
import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { build as bundle, type Plugin } from 'esbuild';

const HERE = path.dirname(fileURLToPath(import.meta.url));
const SRC = path.join(HERE, '../../../src/');

const STAND_INS: Record<string, string> = {
  'channel-pool.js': 'pool.js',
  'transport/send-connection.js': 'connections.js',
  'transport/receive-connection.js': 'connections.js',
  'recv/arrivals.js': 'connections.js',
};
const CLOCKS = ['node:perf_hooks', 'node:timers/promises'];
const SPINNING = [
  'send/hand-over.js',
  'send/channel.js',
  'recv/calling-thread.js',
  'recv/delivery.js',
  'recv/receiver.js',
];

/** A change to the code under test: every `from` in the file, which must be there, becomes `to`. */
export interface Change {
  /** In src, such as `shared/control.js`. */
  file: string;
  from: string;
  to: string;
}

/** @returns the bundle's path, in a folder of its own for the caller to remove */
export async function makeBundle(changes: readonly Change[] = []): Promise<string> {
  const folder = fs.mkdtempSync(path.join(HERE, 'bundle-'));
  const outfile = path.join(folder, 'pieces.mjs');
  const spun = new Set<string>();
  const plugin: Plugin = {
    name: 'stepped',
    setup(build) {
      build.onResolve({ filter: /./ }, (found) => {
        if (!found.importer.startsWith(SRC)) return undefined;
        if (CLOCKS.includes(found.path)) return { path: path.join(HERE, 'clock.js') };
        const standIn = STAND_INS[path.relative(SRC, path.resolve(found.resolveDir, found.path))];
        return standIn === undefined ? undefined : { path: path.join(HERE, standIn) };
      });
      build.onLoad({ filter: /\.js$/ }, ({ path: file }) => {
        if (!file.startsWith(SRC)) return undefined;
        const name = path.relative(SRC, file);
        let contents = fs.readFileSync(file, 'utf8');
        if (/\bSPIN = \d/.test(contents)) {
          contents = contents.replace(/const SPIN = \d+;/, 'const SPIN = 0;');
          spun.add(name);
        }
        for (const { file: changed, from, to } of changes) {
          if (changed !== name) continue;
          if (!contents.includes(from)) throw new Error(`${name} has no ${JSON.stringify(from)}`);
          contents = contents.replaceAll(from, to);
        }
        return { contents, loader: 'js' };
      });
    },
  };
  await bundle({
    entryPoints: [path.join(HERE, 'pieces.js')],
    bundle: true,
    platform: 'node',
    format: 'esm',
    target: 'node20',
    packages: 'external',
    define: {
      Atomics: 'stepped.Atomics',
      setTimeout: 'stepped.timers.never',
      setInterval: 'stepped.timers.never',
      setImmediate: 'stepped.timers.later',
      clearTimeout: 'stepped.timers.clear',
      clearInterval: 'stepped.timers.clear',
    },
    plugins: [plugin],
    outfile,
    logLevel: 'error',
  });
  if ([...spun].sort().join() !== [...SPINNING].sort().join())
    throw new Error(`SPIN is in ${[...spun].join(', ')}, and was expected in ${SPINNING.join(', ')}`);
  return outfile;
}
