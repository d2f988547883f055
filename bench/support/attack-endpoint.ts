/**
 * Whoever is attacked, a child of attack.ts: takes one migration in that is none, so that all is loaded, then the attack,
 * and tells what that cost.
 */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { describeMigrationFile, receiveMigration, type Address, type Compression } from '../../src/index.js';
import { serve, type Peer } from './child.js';

export interface AttackStart {
  channels: number;
  compression: Compression;
  /** To be described, in place of a migration. */
  file?: string;
}

export interface AttackCost {
  seconds: number;
  /** The longest turn of the event loop. */
  turnMs: number;
  memoryBytes: number;
  descriptors: number;
  /** What came of it. */
  outcome: string;
}

const LOOK_MS = 5;

function descriptors(): number {
  return fs.readdirSync('/proc/self/fd').length;
}

async function costOf(attacked: () => Promise<string>): Promise<AttackCost> {
  const before = { descriptors: descriptors(), memory: process.memoryUsage.rss() };
  let most = before.descriptors;
  let memory = before.memory;
  const look = setInterval(() => {
    most = Math.max(most, descriptors());
    memory = Math.max(memory, process.memoryUsage.rss());
  }, LOOK_MS);
  const delay = monitorEventLoopDelay({ resolution: 1 });
  delay.enable();
  const begun = performance.now();
  const outcome = await attacked();
  const seconds = (performance.now() - begun) / 1000;
  // The last turn is over when the next has come.
  await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
  delay.disable();
  clearInterval(look);
  return {
    seconds,
    turnMs: delay.max / 1e6,
    memoryBytes: memory - before.memory,
    descriptors: most - before.descriptors,
    outcome,
  };
}

async function receive(
  folder: string,
  { channels, compression }: AttackStart,
  parent: Peer,
): Promise<string> {
  const received = receiveMigration({
    address: { port: 0 },
    channels,
    compression,
    out: path.join(folder, 'vm.mig'),
    overwrite: true,
    onListening: (address: Address) => parent.tell({ address }),
  });
  return received.then(
    () => 'received',
    (error: unknown) => (error as { code: string }).code,
  );
}

serve<AttackStart>(async (start, parent) => {
  const { file } = start;
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'multifd-attack-'));
  process.on('exit', () => fs.rmSync(folder, { recursive: true, force: true }));
  await receive(folder, start, parent);
  const attacked =
    file === undefined
      ? () => receive(folder, start, parent)
      : () =>
          describeMigrationFile(file).then(({ vmDescription }) => `${vmDescription?.devices.length} devices`);
  parent.tell(await costOf(attacked));
});
