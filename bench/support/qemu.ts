/**
 * QEMUs for the benches: a guest of 1 GiB that never runs unless it is told to, its RAM a file, so that it can be prepared and compared. Each is
 * killed by its id, at the latest when this process ends; everything that is waited for has a time limit.
 */
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { findQemu } from '../../src/cli/demo/qemu/programs.js';
import { Qmp } from '../../src/qmp/qmp.js';
import { within } from '../../src/qmp/within.js';

export const RAM_BYTES = 2 ** 30;
/** For each wait; the longest migration takes ten seconds. */
const WAIT_MS = 60_000;
const START_POLL_MS = 10;
/** Short beside what is measured, and few enough commands not to be seen by QEMU. */
const POLL_MS = 2;
/** For its parameter tls-creds. */
export const CREDENTIALS = 'tls0';
const ANY_PORT = 'tcp:127.0.0.1:0';

/** Part of the answer to query-migrate. */
export interface MigrationInfo {
  status?: string;
  'error-desc'?: string;
  /** Milliseconds. */
  'total-time'?: number;
  /** The real one, at the end, and the one that was expected before. */
  downtime?: number;
  'expected-downtime'?: number;
  ram?: { transferred: number };
  'socket-address'?: { port: string }[];
}

export interface QemuOptions {
  /** The file that is its RAM. */
  ram: string;
  /** Default: RAM_BYTES. */
  ramBytes?: number;
  /** Does it map all its pages at the start, and make those that are not there? */
  prealloc: boolean;
  /** The folder with credentials of both roles, for TLS 1.3. */
  tlsFolder?: string;
  /** Does it wait for a migration? */
  incoming?: boolean;
  /** A disk that its guest starts from, when it is let run. */
  floppy?: string;
}

const running = new Set<ChildProcess>();
const folders = new Set<string>();
process.on('exit', () => {
  for (const child of running) child.kill('SIGKILL');
  for (const folder of folders) fs.rmSync(folder, { recursive: true, force: true });
});

/** Where files are memory, if there is such a place: no disk is measured. */
export function workFolder(): { path: string; remove: () => void } {
  const root = process.env.TMPDIR === undefined && fs.existsSync('/dev/shm') ? '/dev/shm' : os.tmpdir();
  const folder = fs.mkdtempSync(path.join(root, 'multifd-bench-'));
  folders.add(folder);
  const remove = (): void => {
    fs.rmSync(folder, { recursive: true, force: true });
    folders.delete(folder);
  };
  return { path: folder, remove };
}

/** A file for a guest's RAM: `written` has all its pages, as zeros; without it there are none yet. */
export function makeRam(file: string, written: boolean, bytes = RAM_BYTES): void {
  const handle = fs.openSync(file, fs.constants.O_RDWR | fs.constants.O_CREAT);
  try {
    // Pages that are there already are only written again.
    if (!written) fs.ftruncateSync(handle, 0);
    fs.ftruncateSync(handle, bytes);
    const zeros = Buffer.alloc(written ? 2 ** 22 : 0);
    for (let at = 0; written && at < bytes; at += zeros.length)
      fs.writeSync(handle, zeros, 0, zeros.length, at);
  } finally {
    fs.closeSync(handle);
  }
}

/** @throws Error where the files differ */
export function mustBeSame(source: string, target: string, who: string): void {
  const { status, stderr } = spawnSync('cmp', [source, target], { encoding: 'utf8', timeout: WAIT_MS });
  if (status !== 0) throw new Error(`${who}: RAM differs: ${stderr}`);
}

function credentials(folder: string, server: boolean): string {
  const endpoint = server ? 'server' : 'client';
  return `tls-creds-x509,id=${CREDENTIALS},dir=${folder},endpoint=${endpoint},priority=NORMAL:-VERS-ALL:+VERS-TLS1.3`;
}

export class PausedQemu {
  readonly #child: ChildProcess;
  #qmp!: Qmp;

  private constructor(child: ChildProcess) {
    this.#child = child;
    running.add(child);
    child.once('exit', () => running.delete(child));
  }

  /** @param name of its socket in `folder` */
  static async start(
    folder: string,
    name: string,
    { ram, ramBytes = RAM_BYTES, prealloc, tlsFolder, incoming, floppy }: QemuOptions,
  ): Promise<PausedQemu> {
    const program = findQemu();
    if (program === undefined) throw new Error('no QEMU');
    const socket = path.join(folder, `${name}.qmp`);
    fs.rmSync(socket, { force: true });
    const child = spawn(
      program.command,
      [
        ...program.firmware,
        ...['-nodefaults', '-display', 'none', '-accel', 'tcg', '-S', '-m', `${ramBytes / 2 ** 20}M`],
        ...['-machine', 'pc,memory-backend=ram', '-qmp', `unix:${socket},server=on,wait=off`],
        '-object',
        `memory-backend-file,id=ram,size=${ramBytes},mem-path=${ram},share=on,prealloc=${prealloc ? 'on' : 'off'}`,
        ...(floppy === undefined
          ? []
          : ['-drive', `if=floppy,format=raw,readonly=on,file=${floppy}`, '-boot', 'a']),
        ...(tlsFolder === undefined ? [] : ['-object', credentials(tlsFolder, incoming === true)]),
        ...(incoming === true ? ['-incoming', 'defer'] : []),
      ],
      { env: program.env, stdio: ['ignore', 'ignore', 'inherit'] },
    );
    const qemu = new PausedQemu(child);
    try {
      await qemu.#connect(socket);
      return qemu;
    } catch (error) {
      await qemu.kill();
      throw error;
    }
  }

  async #connect(socket: string): Promise<void> {
    for (const late = performance.now() + WAIT_MS; ;) {
      if (this.ended) throw new Error('QEMU did not start');
      const qmp = await Qmp.connect({ path: socket }).catch(() => undefined);
      if (qmp !== undefined) {
        this.#qmp = qmp;
        return;
      }
      if (performance.now() > late) throw new Error(`QEMU does not answer after ${WAIT_MS} ms`);
      await sleep(START_POLL_MS);
    }
  }

  get ended(): boolean {
    return this.#child.exitCode !== null || this.#child.signalCode !== null;
  }

  async execute(command: string, args?: object): Promise<unknown> {
    return this.#qmp.execute(command, args, WAIT_MS);
  }

  async setMigration(capabilities: string[], parameters: object): Promise<void> {
    await this.execute('migrate-set-capabilities', {
      capabilities: capabilities.map((capability) => ({ capability, state: true })),
    });
    await this.execute('migrate-set-parameters', {
      'max-bandwidth': 2 ** 40,
      'downtime-limit': 100_000,
      ...parameters,
    });
  }

  /** @returns the URI where it listens now */
  async listen(): Promise<string> {
    await this.execute('migrate-incoming', { uri: ANY_PORT });
    const info = (await this.execute('query-migrate')) as MigrationInfo;
    return `tcp:127.0.0.1:${info['socket-address']?.[0].port}`;
  }

  /**
   * Until it says that its migration, either way, is completed.
   *
   * @param seen what it says until then
   */
  async migrated(seen?: (info: MigrationInfo) => void): Promise<MigrationInfo> {
    for (const late = performance.now() + WAIT_MS; ;) {
      const info = (await this.execute('query-migrate')) as MigrationInfo;
      seen?.(info);
      if (info.status === 'completed') return info;
      if (info.status === 'failed') throw new Error(`QEMU failed to migrate: ${info['error-desc']}`);
      if (performance.now() > late) throw new Error(`QEMU has not migrated after ${WAIT_MS} ms`);
      await sleep(POLL_MS);
    }
  }

  /** Its guest is of no use to anybody: SIGKILL. */
  async kill(): Promise<void> {
    this.#qmp?.close();
    if (this.ended) return;
    const exit = new Promise<void>((resolve) => this.#child.once('exit', () => resolve()));
    this.#child.kill('SIGKILL');
    await within(exit, WAIT_MS, 'end of a QEMU that was killed');
  }
}

/** Uses a QEMU that is set up for migrations and ended afterwards. */
export async function withQemu<T>(
  [folder, name, options]: Parameters<typeof PausedQemu.start>,
  capabilities: string[],
  parameters: object,
  use: (qemu: PausedQemu) => Promise<T>,
): Promise<T> {
  const qemu = await PausedQemu.start(folder, name, options);
  try {
    await qemu.setMigration(capabilities, parameters);
    return await use(qemu);
  } finally {
    await qemu.kill();
  }
}
