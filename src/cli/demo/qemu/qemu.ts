/**
 * One QEMU with the guest of boot-sector.ts: 128 MiB, software emulation, no network, no display. Everything has a time
 * limit, and the process is ended by its id whatever happens.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Compression, ZeroPageDetection } from '../../../options.js';
import { COUNTER_ADDRESS, MEMORY_BYTES, READY, bootImage } from './boot-sector.js';
import type { Program } from './programs.js';
import { RAM_RANGES } from './compare-ram.js';
import { Qmp } from '../../../qmp/qmp.js';
import { within } from '../../../qmp/within.js';

const START_MS = 30_000;
/** The BIOS and the fill, emulated on a machine that is busy with something else. */
const BOOT_MS = 60_000;
const MIGRATION_MS = 60_000;
const POLL_MS = 20;

export interface QemuOptions {
  /** Default: the newest i440fx of the program. */
  machine?: string;
  /** More of its command line. */
  extra?: string[];
  /** Does it wait for a migration, and stay paused when it has come? */
  incoming?: boolean;
}

export interface Outgoing {
  channels: number;
  compression: Compression;
  zeroPages?: ZeroPageDetection;
  returnPath?: boolean;
}

/** Part of the answer to query-migrate. */
export interface MigrationInfo {
  status?: string;
  'error-desc'?: string;
  ram?: { 'dirty-sync-count': number };
  'socket-address'?: { port: string }[];
}

/** A folder of its own with the guest's disk; a short name, since a unix socket's path has 107 bytes. */
export function makeFolder(): string {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'mfd-'));
  fs.writeFileSync(path.join(folder, 'boot.img'), bootImage());
  return folder;
}

/** For a process that ends without having ended them. */
const running = new Set<ChildProcess>();
process.on('exit', () => {
  for (const child of running) child.kill('SIGKILL');
});
let started = 0;

export class Qemu {
  readonly program: Program;
  readonly folder: string;
  readonly #child: ChildProcess;
  readonly #name: string;
  #qmp!: Qmp;
  #stderr = '';

  private constructor(child: ChildProcess, program: Program, folder: string, name: string) {
    this.#child = child;
    this.program = program;
    this.folder = folder;
    this.#name = name;
    running.add(child);
    child.once('exit', () => running.delete(child));
    child.stderr?.on(
      'data',
      (text: Buffer) => (this.#stderr = (this.#stderr + text.toString()).slice(-4000)),
    );
  }

  static async start(program: Program, folder: string, options: QemuOptions = {}): Promise<Qemu> {
    const name = `q${started++}`;
    const { machine = 'pc', incoming = false, extra = [] } = options;
    const image = path.join(folder, 'boot.img');
    const child = spawn(
      program.command,
      [
        ...program.firmware,
        ...['-nodefaults', '-display', 'none', '-accel', 'tcg', '-machine', machine],
        ...['-m', `${MEMORY_BYTES / 2 ** 20}M`],
        ...['-qmp', `unix:${path.join(folder, `${name}.qmp`)},server=on,wait=off`],
        ...['-serial', `file:${path.join(folder, `${name}.serial`)}`],
        // Read-only: both ends of a migration have the same one.
        ...['-drive', `if=floppy,format=raw,readonly=on,file=${image}`, '-boot', 'a'],
        ...(incoming ? ['-S', '-incoming', 'defer'] : []),
        ...extra,
      ],
      { env: program.env, stdio: ['ignore', 'ignore', 'pipe'] },
    );
    const qemu = new Qemu(child, program, folder, name);
    try {
      await within(qemu.#connect(), START_MS, `start of QEMU ${program.version}`);
      return qemu;
    } catch (error) {
      await qemu.kill();
      throw error;
    }
  }

  async #connect(): Promise<void> {
    for (;;) {
      if (this.ended) throw new Error(`QEMU did not start: ${this.#stderr}`);
      try {
        this.#qmp = await Qmp.connect({ path: path.join(this.folder, `${this.#name}.qmp`) });
        return;
      } catch {
        // It does not listen yet.
        await sleep(POLL_MS);
      }
    }
  }

  get ended(): boolean {
    return this.#child.exitCode !== null || this.#child.signalCode !== null;
  }

  /** The last that it wrote to stderr. */
  get stderr(): string {
    return this.#stderr;
  }

  async execute(command: string, args?: object, limitMs?: number): Promise<unknown> {
    return this.#qmp.execute(command, args, limitMs);
  }

  /** SIGSTOP is a host that is gone without a word. */
  signal(name: NodeJS.Signals): void {
    this.#child.kill(name);
  }

  /** SIGKILL, as for a host that loses power; also for one that hangs. */
  async kill(): Promise<void> {
    this.#qmp?.close();
    if (this.ended) return;
    const exit = new Promise<void>((resolve) => this.#child.once('exit', () => resolve()));
    this.#child.kill('SIGKILL');
    await within(exit, START_MS, 'end of a QEMU that was killed');
  }

  // ---- the guest ----

  get serial(): string {
    try {
      return fs.readFileSync(path.join(this.folder, `${this.#name}.serial`), 'latin1');
    } catch {
      return '';
    }
  }

  async waitForSerial(pattern: RegExp, limitMs = BOOT_MS): Promise<void> {
    await this.#poll(() => pattern.test(this.serial), limitMs, `serial output ${pattern}`);
  }

  /** The guest has filled its RAM and counts. */
  async waitUntilReady(): Promise<void> {
    await this.waitForSerial(READY);
  }

  async status(): Promise<string> {
    return ((await this.execute('query-status')) as { status: string }).status;
  }

  /** All RAM of a guest that is paused, at its addresses; the hole is zeros. */
  async ram(): Promise<Buffer> {
    const ram = Buffer.alloc(MEMORY_BYTES);
    for (const [address, length] of RAM_RANGES) (await this.#memory(address, length)).copy(ram, address);
    return ram;
  }

  /** The first of the guest's counters. */
  async counter(): Promise<number> {
    return (await this.#memory(COUNTER_ADDRESS, 4)).readUInt32LE();
  }

  async #memory(address: number, length: number): Promise<Buffer> {
    const file = path.join(this.folder, `${this.#name}.ram`);
    await this.execute('pmemsave', { val: address, size: length, filename: file });
    const bytes = fs.readFileSync(file);
    fs.rmSync(file);
    return bytes;
  }

  // ---- migration ----

  async setCapabilities(capabilities: Record<string, boolean>): Promise<void> {
    await this.execute('migrate-set-capabilities', {
      capabilities: Object.entries(capabilities).map(([capability, state]) => ({ capability, state })),
    });
  }

  async setParameters(parameters: Record<string, unknown>): Promise<void> {
    await this.execute('migrate-set-parameters', parameters);
  }

  async setMultifd(options: Outgoing): Promise<void> {
    const { channels, compression, zeroPages, returnPath = false } = options;
    await this.setCapabilities({ multifd: true, 'return-path': returnPath });
    await this.setParameters({
      'multifd-channels': channels,
      'multifd-compression': compression,
      ...(zeroPages === undefined ? {} : { 'zero-page-detection': zeroPages }),
    });
  }

  /** The port that was bound by migrate-incoming with port 0. */
  async incomingPort(): Promise<number> {
    const { 'socket-address': addresses } = await this.migration();
    return Number(addresses?.[0].port);
  }

  async migration(): Promise<MigrationInfo> {
    return (await this.execute('query-migrate')) as MigrationInfo;
  }

  /** Until the migration has ended, one way or the other. */
  async migrationEnd(limitMs = MIGRATION_MS): Promise<MigrationInfo> {
    let info: MigrationInfo = {};
    await this.#poll(
      async () => {
        info = await this.migration();
        return ['completed', 'failed', 'cancelled'].includes(info.status ?? '');
      },
      limitMs,
      'end of the migration',
    );
    return info;
  }

  /** Until it has this status, whatever it was before. */
  async migrationReaches(status: string, limitMs = MIGRATION_MS): Promise<void> {
    await this.#poll(async () => (await this.migration()).status === status, limitMs, status);
  }

  /** Until the dirty bitmap has been read so many times, or the migration has ended by itself. */
  async dirtySyncs(count: number, limitMs = MIGRATION_MS): Promise<void> {
    await this.#poll(
      async () => {
        const { status, ram } = await this.migration();
        if (status === 'failed' || status === 'completed') return true;
        return (ram?.['dirty-sync-count'] ?? 0) >= count;
      },
      limitMs,
      `${count} passes`,
    );
  }

  async #poll(condition: () => boolean | Promise<boolean>, limitMs: number, what: string): Promise<void> {
    const late = performance.now() + limitMs;
    while (!(await condition())) {
      if (this.ended) throw new Error(`${what}: QEMU has ended: ${this.#stderr}`);
      if (performance.now() > late) throw new Error(`${what}: not within ${limitMs} ms: ${this.#stderr}`);
      await sleep(POLL_MS);
    }
  }
}
