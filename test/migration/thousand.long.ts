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
import { WITHOUT_TAP } from '../cli/cli.js';
import type { Held } from '../fixtures/thousand-migrations-process.js';

const MIB = 2 ** 20;
const COUNT = 1000;
const WINDOW = 100;
/** The first ones fill caches, and have code compiled. */
const WARM_UP = 300;
/** A slot's buffer of 512 KiB that is lost in one of ten migrations is 35 MiB by then. */
const MAX_GROWTH = 16 * MIB;
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
  for (const name of ['rss', 'heap'] as const)
    t.ok(after[name] - before[name] < MAX_GROWTH, `${name}: ${before[name]} bytes, then ${after[name]}`);
});
