/**
 * A program that unpacks what Node cannot: PROGRAM -dc, the file on its stdin, the plain bytes on its stdout.
 *
 *     it is not there               ERR_MULTIFD_RUNTIME with the package's name
 *     silent for `silenceMs`        ERR_MULTIFD_STALL, and it is killed
 *     exit code not 0, a signal     ERR_MULTIFD_STREAM with what it says
 *     close()                       SIGKILL by its own id; waits until it has ended
 *
 * The silence is that of a read: who does not read for a while has it stopped by its full pipe, and no clock runs.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { Readable } from 'node:stream';
import { MultifdError, codeOf } from '../errors.js';
import { printable } from '../printable.js';
import { STREAM_ERRORS } from '../stream/codes.js';
import type { SaveFormat } from './save-image.js';
import type { UnpackedStream } from './unpack.js';

/** What it says of its failure, at the most. */
const MAX_STDERR = 1000;
/** A dead process is reaped at once; by choice. */
const END_MS = 5000;

interface Unpacker {
  args: string[];
  /** Debian's. */
  package: string;
}

const UNPACKERS: Partial<Record<SaveFormat, Unpacker>> = {
  bzip2: { args: ['-dc'], package: 'bzip2' },
  // By default it takes any amount of memory that a file asks for.
  xz: { args: ['-dc', '--memlimit-decompress=1GiB'], package: 'xz-utils' },
  lzop: { args: ['-dc'], package: 'lzop' },
  zstd: { args: ['-dcq'], package: 'zstd' },
};

export function runUnpacker(
  format: SaveFormat,
  input: AsyncGenerator<Buffer, void, undefined>,
  silenceMs: number,
): UnpackedStream {
  const { args, package: packageName } = UNPACKERS[format] as Unpacker;
  const child = spawn(format, args, { stdio: ['pipe', 'pipe', 'pipe'] });
  const from = Readable.from(input, { objectMode: false });
  let stderr = '';
  let inputError: Error | undefined;
  const ended = new Promise<{ code: number | null; signal: NodeJS.Signals | null; error?: Error }>(
    (resolve) => {
      child.once('error', (error) => resolve({ code: null, signal: null, error }));
      child.once('close', (code, signal) => resolve({ code, signal }));
    },
  );
  from.on('error', (error) => {
    inputError = error;
    child.kill('SIGKILL');
  });
  // It may end before it has read all.
  child.stdin.on('error', () => from.destroy());
  child.stderr.on('data', (text: Buffer) => (stderr = (stderr + text.toString()).slice(-MAX_STDERR)));
  child.stdout.on('error', () => {});
  from.pipe(child.stdin);
  const chunks = child.stdout[Symbol.asyncIterator]() as AsyncIterator<Buffer, undefined>;

  async function next(): Promise<Buffer | null> {
    const { value } = await chunks.next();
    if (value !== undefined) return value;
    const { code, signal, error } = await ended;
    if (inputError !== undefined) throw MultifdError.wrap(inputError, STREAM_ERRORS.io, 'save image');
    if (codeOf(error) === 'ENOENT') {
      const message = `libvirt's save image: received format ${format}, expected program ${format} to unpack it: install it (Debian: package ${packageName})`;
      throw new MultifdError('ERR_MULTIFD_RUNTIME', message, { cause: error });
    }
    if (error !== undefined) throw new MultifdError('ERR_MULTIFD_RUNTIME', error.message, { cause: error });
    if (code === 0) return null;
    const how = signal === null ? `exit code ${code}` : `end by ${signal}`;
    const said = stderr.trim() === '' ? '' : `: ${printable(stderr.trim())}`;
    const message = `libvirt's save image: program ${format}: received ${how}, expected 0${said}`;
    throw new MultifdError(STREAM_ERRORS.file, message);
  }

  return {
    read: () => withinSilence(next(), format, silenceMs),
    close: async () => {
      from.unpipe(child.stdin);
      await end(child);
      if (from.closed) return;
      // The file is closed by its owner next: no read of it may be under way.
      await new Promise<void>((resolve) => from.once('close', () => resolve()).destroy());
    },
  };
}

async function withinSilence<T>(wait: Promise<T>, format: string, ms: number): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    const message = `program ${format} has unpacked nothing for ${ms} ms`;
    timer = setTimeout(() => reject(new MultifdError('ERR_MULTIFD_STALL', message)), ms);
  });
  try {
    return await Promise.race([wait, late]);
  } finally {
    clearTimeout(timer);
    wait.catch(() => {});
  }
}

async function end(child: ChildProcess): Promise<void> {
  child.stdout?.destroy();
  if (child.pid === undefined || child.exitCode !== null || child.signalCode !== null) return;
  const exit = once(child, 'exit', { signal: AbortSignal.timeout(END_MS) }).catch(() => {});
  child.kill('SIGKILL');
  await exit;
}
