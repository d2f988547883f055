/**
 * Makes what `import 'multifd'` loads of all modules that src/index.ts needs: dist/lib/index.js.
 *
 * - A hundred ES modules, each resolved, read and linked on its own, are 65 ms of every embedder's start; one file is 27.
 * - What is loaded only when an option asks for it (TLS) stays in files of its own beside it.
 * - The command line and the tests take the modules themselves, dist/src: a command loads no more of them than it needs,
 *   and a test's `MultifdError` is that of the module that it tests.
 *
 * Packages stay outside. Whatever a module finds by its own place must be found from dist/lib as well: dist/workers is.
 */
import fs from 'node:fs';
import { build } from 'esbuild';

const outdir = 'dist/lib';

// The names of its pieces change with what is in them.
fs.rmSync(outdir, { recursive: true, force: true });
await build({
  entryPoints: ['src/index.ts'],
  bundle: true,
  splitting: true,
  platform: 'node',
  format: 'esm',
  target: 'node20',
  packages: 'external',
  sourcemap: true,
  outdir,
  logLevel: 'warning',
});
