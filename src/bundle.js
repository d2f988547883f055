/**
 * Makes what users load of all modules that it needs: dist/lib/index.js for `import 'multifd'`, dist/cli/main.js for the
 * command.
 *
 * - A hundred ES modules, each resolved, read and linked on its own, are 65 ms of every embedder's start; one file is 27.
 * - What is loaded only where it is asked for (TLS, each command) stays in files of its own beside it.
 * - Two bundles, each with all that it needs: one of both would be in thirty pieces.
 * - The tests take the modules themselves, dist/src: a test's `MultifdError` is that of the module that it tests.
 *
 * Packages stay outside. Whatever a module finds by its own place must be found from the bundle as well: dist/workers is, and
 * src/cli/package-folder.ts knows the rest.
 */
import fs from 'node:fs';
import { build } from 'esbuild';

await bundle('dist/lib', ['src/index.ts']);
await bundle('dist/cli', [
  'src/cli/main.ts',
  'src/cli/demo/demo-destination.ts',
  'src/cli/demo/v86/pc-process.ts',
  'src/stress/stress-process.ts',
]);

/**
 * @param {string} outdir
 * @param {string[]} entryPoints side by side in it, whatever their folders
 */
async function bundle(outdir, entryPoints) {
  // The names of its pieces change with what is in them.
  fs.rmSync(outdir, { recursive: true, force: true });
  await build({
    entryPoints,
    entryNames: '[name]',
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
}
