/**
 * A guest of 4 GiB is parked and resumed by the commands: what memory their processes take at the most, and that all of
 * its RAM is the same. The guest is paused from the start; its RAM is a file, so that both are compared as files.
 */
import { spawn, spawnSync } from 'node:child_process';
import { randomFillSync } from 'node:crypto';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { MISSING_QEMU, findQemu } from '../../src/cli/demo/qemu/programs.js';
import { Qmp } from '../../src/qmp/qmp.js';
import { within } from '../../src/qmp/within.js';
import type { Compression } from '../../src/index.js';
import { Run, type Line } from '../cli/cli.js';
import { ALL_ROWS } from './rows.js';

const RAM_BYTES = 4 * 2 ** 30;
const MiB = 2 ** 20;
/** Of each 64 MiB this many have data: half random, half text. */
const DATA_MIB = 8;
const MAX_MEMORY_MIB = 300;
const WAIT_MS = 120_000;

function fillRam(file: string): void {
  const handle = fs.openSync(file, 'w');
  fs.ftruncateSync(handle, RAM_BYTES);
  const piece = Buffer.alloc(MiB);
  for (let at = 0; at < RAM_BYTES; at += 64 * MiB) {
    for (let i = 0; i < DATA_MIB; i++) {
      if (i % 2 === 0) randomFillSync(piece);
      else piece.fill(`text of the guest at ${at + i * MiB}; `);
      fs.writeSync(handle, piece, 0, MiB, at + i * MiB);
    }
  }
  fs.closeSync(handle);
}

async function startQemu(t: Test, folder: string, name: string, extra: string[] = []): Promise<Qmp> {
  const qemu = findQemu();
  if (qemu === undefined) throw new Error(`missing: ${MISSING_QEMU}`);
  const ram = path.join(folder, `${name}.ram`);
  if (!fs.existsSync(ram)) {
    fs.writeFileSync(ram, '');
    fs.truncateSync(ram, RAM_BYTES);
  }
  const socket = path.join(folder, `${name}.qmp`);
  const child = spawn(
    qemu.command,
    [
      ...['-nodefaults', '-display', 'none', '-accel', 'tcg', '-S', '-m', '4G'],
      ...['-object', `memory-backend-file,id=ram,size=4G,mem-path=${ram},share=on`],
      ...['-machine', 'pc,memory-backend=ram', '-qmp', `unix:${socket},server=on,wait=off`, ...extra],
    ],
    { stdio: 'ignore' },
  );
  t.teardown(() => child.kill('SIGKILL'));
  const late = performance.now() + WAIT_MS;
  while (performance.now() < late) {
    try {
      return await Qmp.connect({ path: socket });
    } catch {
      await sleep(50);
    }
  }
  throw new Error('QEMU did not start');
}

async function setMultifd(qmp: Qmp, channels: number, compression: Compression): Promise<void> {
  const capabilities = ['multifd', 'return-path'].map((capability) => ({ capability, state: true }));
  await qmp.execute('migrate-set-capabilities', { capabilities });
  await qmp.execute('migrate-set-parameters', {
    'multifd-channels': channels,
    'multifd-compression': compression,
    'max-bandwidth': 2 ** 40,
  });
}

async function completed(qmp: Qmp): Promise<void> {
  const late = performance.now() + WAIT_MS;
  for (;;) {
    const { status } = (await qmp.execute('query-migrate')) as { status: string };
    if (status === 'completed') return;
    if (status === 'failed' || performance.now() > late) throw new Error(`migration: ${status}`);
    await sleep(50);
  }
}

/** The most memory that the process has had resident so far, shared files of the page cache not counted, in MiB. */
class Peak {
  mib = 0;
  readonly #timer: NodeJS.Timeout;

  constructor(t: Test, run: Run) {
    this.#timer = setInterval(() => {
      try {
        const status = fs.readFileSync(`/proc/${run.child.pid}/status`, 'utf8');
        this.mib = Math.max(this.mib, Number(/^VmHWM:\s+(\d+)/m.exec(status)?.[1] ?? 0) / 1024);
      } catch {
        // It has ended.
      }
    }, 20);
    t.teardown(() => clearInterval(this.#timer));
  }
}

for (const [compression, channels] of [
  ['none', 2],
  ['zstd', 4],
] as const) {
  if (!ALL_ROWS && compression === 'none') continue;
  t.test(`a guest of 4 GiB, ${compression}, ${channels} channels`, { timeout: 2 * WAIT_MS }, async (t) => {
    const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'mfd-'));
    t.teardown(() => fs.rmSync(folder, { recursive: true, force: true }));
    fillRam(path.join(folder, 'source.ram'));
    const out = path.join(folder, 'vm.mig');
    const options = ['--channels', String(channels), '--compression', compression, '--json', '--no-progress'];

    const source = await startQemu(t, folder, 'source');
    t.teardown(() => source.close());
    await setMultifd(source, channels, compression);
    const park = `unix:${path.join(folder, 'park.sock')}`;
    const receive = new Run(t, ['receive', '--listen', park, '--out', out, ...options]);
    const receivePeak = new Peak(t, receive);
    await receive.line((line) => line.type === 'listening');
    await source.execute('migrate', { uri: park });
    const received = await within(receive.ended, WAIT_MS, 'multifd receive');
    t.equal(received.code, 0, received.stderr);
    await completed(source);
    const [ram] = (receive.result as Line & { blocks: { name: string; presentPages: number }[] }).blocks;
    t.ok(ram.presentPages >= (RAM_BYTES / 64 / 4096) * DATA_MIB, `${ram.presentPages} pages have data`);

    const destination = await startQemu(t, folder, 'destination', ['-incoming', 'defer']);
    t.teardown(() => destination.close());
    await setMultifd(destination, channels, compression);
    const resume = `unix:${path.join(folder, 'resume.sock')}`;
    await destination.execute('migrate-incoming', { uri: resume });
    const send = new Run(t, ['send', out, '--to', resume, ...options]);
    const sendPeak = new Peak(t, send);
    const sent = await within(send.ended, WAIT_MS, 'multifd send');
    t.equal(sent.code, 0, sent.stderr);
    await completed(destination);

    const files = ['source.ram', 'destination.ram'].map((name) => path.join(folder, name));
    const { status, stdout } = spawnSync('cmp', files, { encoding: 'utf8', timeout: WAIT_MS });
    t.equal(status, 0, `RAM is equal ${stdout}`);
    for (const [name, { mib }] of Object.entries({ receive: receivePeak, send: sendPeak })) {
      t.ok(mib > 20 && mib <= MAX_MEMORY_MIB, `multifd ${name}: ${mib.toFixed(0)} MiB at the most`);
    }
  });
}
