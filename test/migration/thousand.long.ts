/**
 * 1,000 migrations in one process, which is both of their ends: each guest arrives byte for byte, and the process has as many
 * threads and descriptors afterwards as before, and no more memory.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { hasNodeZstd } from '../../src/methods/zstd-node.js';
import { WITHOUT_TAP } from '../cli/cli.js';
import type { Held } from '../fixtures/thousand-migrations-process.js';

const MIB = 2 ** 20;
const COUNT = 1000;
const WINDOW = 100;
/** The first ones fill caches, and have code compiled. */
const WARM_UP = 300;
/** A slot's buffer of 512 KiB that is lost in one of ten migrations is 35 MiB by then. */
const MAX_GROWTH = 16 * MIB;
/** What koffi leaves behind in a thread (src/native/koffi-threads.ts), which each channel of zstd has on a Node without its own. */
const KOFFI_BYTES = 48 * 1024;
/** A third of the migrations, with two and a half channels at each of two ends. */
const KOFFI_THREADS = hasNodeZstd ? 0 : ((COUNT - WARM_UP) / 3) * 2.5 * 2;
const PROGRAM = fileURLToPath(new URL('../fixtures/thousand-migrations-process.js', import.meta.url));
const skip = !fs.existsSync('/proc/self/task') && 'needs /proc';

// Each migration has its own limit, and the machine may be slow.
t.setTimeout(60 * 60_000);

t.test(`${COUNT} migrations in one process`, { skip }, async (t) => {
  // Each thread that comes may get an arena of malloc's that others have left in pieces, up to eight a core: with one, what grows
  // is ours.
  const args = [
    ...WITHOUT_TAP,
    'MALLOC_ARENA_MAX=1',
    process.execPath,
    '--expose-gc',
    PROGRAM,
    `${COUNT}`,
    `${WINDOW}`,
  ];
  const child = spawn('env', args, { stdio: ['ignore', 'pipe', 'inherit'] });
  t.teardown(() => child.kill('SIGKILL'));
  const exited = once(child, 'exit');
  const held: Held[] = [];
  for await (const line of createInterface({ input: child.stdout })) {
    held.push(JSON.parse(line) as Held);
    t.comment(line);
  }
  t.same(await exited, [0, null]);
  const before = held.find(({ count }) => count === WARM_UP) as Held;
  const after = held.at(-1) as Held;
  t.match(after, { count: COUNT, unequal: 0 });
  t.ok(after.threads <= before.threads, `${before.threads} threads, then ${after.threads}`);
  t.ok(
    after.descriptors <= before.descriptors,
    `${before.descriptors} descriptors, then ${after.descriptors}`,
  );
  t.comment(`expected to stay behind in threads that had koffi: ${KOFFI_THREADS * KOFFI_BYTES} bytes`);
  const most = MAX_GROWTH + KOFFI_THREADS * KOFFI_BYTES;
  for (const name of ['rss', 'heap'] as const)
    t.ok(after[name] - before[name] < most, `${name}: ${before[name]} bytes, then ${after[name]}`);
});
