/**
 * Makes one CommonJS file of each kind of thread and all modules of ours that it needs: dist/workers/*.cjs.
 *
 * - A thread costs what Node needs for itself, 15 to 30 ms of CPU, and what it loads. Some twenty ES modules, each
 *   resolved, read and linked on its own, are 12 ms more in every channel; one file is 2.
 * - require() is one synchronous call. A thread may be terminated at any moment, by an end of the session that does not
 *   wait for it; while Node 20 loads ES modules, that leaves their files open or aborts the process.
 *
 * Packages stay outside, and are loaded by the methods that need them.
 */
import { build } from 'esbuild';

await build({
  entryPoints: ['workers/send-channel.ts', 'workers/recv-channel.ts', 'workers/pack.ts'],
  bundle: true,
  platform: 'node',
  format: 'cjs',
  target: 'node20',
  packages: 'external',
  // Packages are loaded by require() as well.
  supported: { 'dynamic-import': false },
  banner: { js: "const moduleUrl = require('node:url').pathToFileURL(__filename).href;" },
  define: { 'import.meta.url': 'moduleUrl' },
  sourcemap: true,
  outdir: 'dist/workers',
  outExtension: { '.js': '.cjs' },
  logLevel: 'warning',
});
