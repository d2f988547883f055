/**
 * What a session needs of the program that it runs in, beside Node: threads, their files, and permissions. Where one of
 * them is missing, Node's own error comes late, in another thread or as an uncaught exception; this asks beforehand and
 * says what to do.
 */
import fs from 'node:fs';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import zlib from 'node:zlib';
import { MultifdError } from './errors.js';
import { outsideZstd } from './methods/zstd-outside.js';
import type { Compression } from './options.js';

/** Node's permission model; undefined without --permission. Not in every version of the types. */
interface Permission {
  has(scope: string, reference?: string): boolean;
}

/**
 * Flags of the embedder are not for the channels, and some make a worker fail. Those that are set:
 *
 * - On Node 20 ending a worker inside a require() of an ES module aborts the whole process
 *   (ModuleWrap::CreateRequiredModuleFacade). Nothing in the threads does that (workers/bundle.js); with the flag nothing
 *   can.
 * - Under Yarn's Plug'n'Play packages lie in archives, which only its own hook can read.
 */
const THREAD_FLAGS = [
  ...(process.allowedNodeEnvironmentFlags.has('--experimental-require-module')
    ? ['--no-experimental-require-module']
    : []),
  ...('pnp' in process.versions ? ['--require', createRequire(import.meta.url).resolve('pnpapi')] : []),
];

/** How threads are made; for piscina. */
export interface ThreadOptions {
  filename: string;
  execArgv: string[];
  env: NodeJS.ProcessEnv;
}

/**
 * @param name of its file in workers
 * @throws MultifdError ERR_MULTIFD_RUNTIME
 */
export function threadOptions(
  name: 'send-channel' | 'recv-channel' | 'pack',
  compression: Compression,
): ThreadOptions {
  requireRuntime();
  if (compression === 'zstd') requireZstd();
  // NODE_OPTIONS would have each thread load what the embedder preloads (loaders, tracing agents): many times the start-up
  // of a thread that has no use for it.
  const env = { ...process.env };
  delete env.NODE_OPTIONS;
  return { filename: threadFile(name), execArgv: THREAD_FLAGS, env };
}

/**
 * Is this Node, and may it have threads and connections?
 *
 * @throws MultifdError ERR_MULTIFD_RUNTIME
 */
export function requireRuntime(): void {
  for (const name of ['bun', 'deno']) {
    const version = process.versions[name];
    if (version !== undefined) {
      throw new MultifdError(
        'ERR_MULTIFD_RUNTIME',
        `received ${name} ${version}, expected Node.js: others cannot give a connection to another thread`,
      );
    }
  }
  requirePermission('worker', '--allow-worker', 'each channel has a thread');
  requirePermission('net', '--allow-net', 'each channel has a connection');
}

function requirePermission(scope: string, flag: string, why: string): void {
  const { permission } = process as unknown as { permission?: Permission };
  // What this Node has no flag for it does not restrict.
  if (permission === undefined || !process.allowedNodeEnvironmentFlags.has(flag)) return;
  if (permission.has(scope)) return;
  throw new MultifdError(
    'ERR_MULTIFD_RUNTIME',
    `received --permission without ${flag}, expected both: ${why}`,
  );
}

/** Asked here, or a channel's thread says it when the peer is connected. */
function requireZstd(): void {
  if (!('createZstdCompress' in zlib)) outsideZstd();
}

function threadFile(name: string): string {
  // A bundler leaves nothing here where it makes CommonJS.
  const here = import.meta.url as string | undefined;
  const file = here === undefined ? undefined : fileURLToPath(new URL(`../workers/${name}.cjs`, here));
  if (file !== undefined && fs.existsSync(file)) return file;
  throw new MultifdError(
    'ERR_MULTIFD_RUNTIME',
    `the file of the channels' threads is not beside this one, expected ${file ?? `workers/${name}.cjs`}: ` +
      'in a bundle leave multifd outside (esbuild: --external:multifd; others: externals)',
  );
}
