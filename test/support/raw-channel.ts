/**
 * Hand-made peers: a source that plays bytes against a Receiver, and a destination that behaves as it likes towards a
 * Sender. Their bytes are built here by hand from the specification (1.2 hello, 2.1 RAM packet, 2.6 device state), and
 * nothing of src/wire is used, so that no mistake can be made twice.
 *
 * Besides: what every test of an end needs. `failure` waits for a rejection, `Leftovers` looks for what a session
 * should have taken with it.
 */
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { stat } from 'node:fs/promises';
import net from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import type { Test } from 'tap';
import { type Address, type ErrorCode, MultifdError, type Sender } from '../../src/index.js';
import { within } from './within.js';

export const PAGE = 4096;
/** N of 4 KiB pages. */
export const PAGES_PER_PACKET = 128;
/** Longer than any prompt path takes on a busy machine, and much shorter than any time-out of a session under test. */
export const PROMPT_MS = 8_000;

// ---- bytes ----

export interface HelloFields {
  id: number;
  /** 16 raw bytes. */
  uuid?: Buffer;
  magic?: number;
  version?: number;
}

/** The hello: 64 bytes. */
export function helloBytes({ id, uuid, magic = 0x11223344, version = 1 }: HelloFields): Buffer {
  const bytes = Buffer.alloc(64);
  bytes.writeUInt32BE(magic, 0);
  bytes.writeUInt32BE(version, 4);
  uuid?.copy(bytes, 8);
  bytes[24] = id;
  return bytes;
}

export const SYNC = 0x01;
export const ZLIB = 0x02;
export const ZSTD = 0x04;
export const DEVICE_STATE = 0x40;

export interface PacketFields {
  magic?: number;
  version?: number;
  flags?: number;
  pagesAlloc?: number;
  /** Defaults to what `normal` and `zero` hold. */
  normalPages?: number;
  zeroPages?: number;
  /** Defaults to the payload's length. */
  nextPacketSize?: number;
  packetNum?: bigint;
  ramblock?: string;
  /** Offsets of pages with data. */
  normal?: (number | bigint)[];
  /** Offsets of zero pages. */
  zero?: (number | bigint)[];
  payload?: Uint8Array;
  pageSize?: number;
}

/** A RAM packet: its whole header (1344 bytes for 4 KiB pages), then the payload. */
export function packetBytes(fields: PacketFields): Buffer {
  const { normal = [], zero = [], payload = Buffer.alloc(0), pageSize = PAGE } = fields;
  const limit = 524288 / pageSize;
  const header = Buffer.alloc(320 + 8 * limit);
  header.writeUInt32BE(fields.magic ?? 0x11223344, 0);
  header.writeUInt32BE(fields.version ?? 1, 4);
  header.writeUInt32BE(fields.flags ?? 0, 8);
  header.writeUInt32BE(fields.pagesAlloc ?? limit, 12);
  header.writeUInt32BE(fields.normalPages ?? normal.length, 16);
  header.writeUInt32BE(fields.nextPacketSize ?? payload.length, 20);
  header.writeBigUInt64BE(fields.packetNum ?? 0n, 24);
  header.writeUInt32BE(fields.zeroPages ?? zero.length, 32);
  header.write(fields.ramblock ?? 'pc.ram', 64, 256, 'latin1');
  [...normal, ...zero].forEach((offset, i) => header.writeBigUInt64BE(BigInt(offset), 320 + 8 * i));
  return Buffer.concat([header, payload]);
}

/** A packet that only says SYNC, as QEMU 10.0 sends it. */
export function syncBytes(packetNum = 0n): Buffer {
  return packetBytes({ flags: SYNC, pagesAlloc: 0, ramblock: '', packetNum });
}

export interface DeviceStateFields {
  flags?: number;
  /** The field as it is sent; NUL-padded. */
  idstr: string;
  instanceId?: number;
  payload?: Uint8Array;
  nextPacketSize?: number;
}

/** A DEVICE_STATE packet: 276 bytes of header, then the payload. */
export function deviceStateBytes(fields: DeviceStateFields): Buffer {
  const { payload = Buffer.alloc(0) } = fields;
  const header = Buffer.alloc(276);
  header.writeUInt32BE(0x11223344, 0);
  header.writeUInt32BE(1, 4);
  header.writeUInt32BE(fields.flags ?? DEVICE_STATE, 8);
  header.write(fields.idstr, 12, 256, 'latin1');
  header.writeUInt32BE(fields.instanceId ?? 0, 268);
  header.writeUInt32BE(fields.nextPacketSize ?? payload.length, 272);
  return Buffer.concat([header, payload]);
}

/** A page that says which one it is; never zero. */
export function patternPage(seed: number): Buffer {
  const page = Buffer.alloc(PAGE);
  for (let i = 0; i < PAGE; i += 4) page.writeUInt32LE((seed * 2654435761 + i * 40503 + 1) >>> 0, i);
  return page;
}

// ---- a source made by hand ----

/** One connection to a receiver. */
export class RawSource {
  readonly socket: net.Socket;
  /** What the receiver wrote; it never should. */
  received = 0;
  /** Resolves when the connection is gone, whoever ended it. */
  readonly gone: Promise<void>;

  private constructor(socket: net.Socket) {
    this.socket = socket;
    socket.on('error', () => undefined);
    socket.on('data', (chunk: Buffer) => (this.received += chunk.length));
    this.gone = new Promise((resolve) => socket.once('close', () => resolve()));
  }

  static async connect(t: Test, address: Address): Promise<RawSource> {
    const socket = net.connect({ ...address, noDelay: true } as net.NetConnectOpts);
    t.teardown(() => void socket.destroy());
    const source = new RawSource(socket);
    await within(
      new Promise<void>((resolve, reject) => {
        socket.once('connect', () => resolve());
        socket.once('error', reject);
      }),
      PROMPT_MS,
      'a raw source connects',
    );
    return source;
  }

  /** Resolves when the kernel has all of it, or the connection is gone. */
  async send(...pieces: Uint8Array[]): Promise<void> {
    const bytes = pieces.length === 1 ? pieces[0] : Buffer.concat(pieces);
    await Promise.race([
      new Promise<void>((resolve) => this.socket.write(bytes, () => resolve())),
      this.gone,
    ]);
  }

  /** Sends all, then FIN. */
  end(...pieces: Uint8Array[]): void {
    this.socket.end(Buffer.concat(pieces));
  }

  /** TCP: RST. */
  reset(): void {
    this.socket.resetAndDestroy();
  }
}

// ---- a destination made by hand ----

/** A listening server that leaves each connection to `behave`. It reads nothing unless `behave` does. */
export class RawDestination {
  readonly address: Address;
  readonly sockets: net.Socket[] = [];
  readonly #server: net.Server;

  private constructor(server: net.Server, address: Address) {
    this.#server = server;
    this.address = address;
  }

  static async listen(
    t: Test,
    address: Address,
    behave: (socket: net.Socket, index: number) => void,
  ): Promise<RawDestination> {
    const server = net.createServer({ allowHalfOpen: true, pauseOnConnect: true });
    await within(
      new Promise<void>((resolve, reject) => {
        server.once('error', reject);
        server.listen(address, () => resolve());
      }),
      PROMPT_MS,
      'a raw destination listens',
    );
    const bound = server.address();
    const destination = new RawDestination(
      server,
      typeof bound === 'string' || bound === null ? address : { host: bound.address, port: bound.port },
    );
    server.on('connection', (socket) => {
      socket.on('error', () => undefined);
      const index = destination.sockets.push(socket) - 1;
      behave(socket, index);
    });
    t.teardown(() => destination.close());
    return destination;
  }

  async close(): Promise<void> {
    for (const socket of this.sockets) socket.destroy();
    if (!this.#server.listening) return;
    await within(
      new Promise((resolve) => this.#server.close(resolve)),
      PROMPT_MS,
      'a raw destination closes',
    );
  }
}

/**
 * Listens in a thread that then stands still, so that nobody ever accepts, and fills the kernel's queue: every further
 * connection hangs. TCP only.
 */
export async function deafListener(t: Test): Promise<{ port: number; close: () => Promise<void> }> {
  const gate = new Int32Array(new SharedArrayBuffer(4));
  const worker = new Worker(
    `const { parentPort, workerData } = require('node:worker_threads');
     const server = require('node:net').createServer();
     server.listen({ host: '127.0.0.1', port: 0, backlog: 1 }, () => {
       parentPort.postMessage(server.address().port);
       Atomics.wait(workerData, 0, 0);
       process.exit();
     });`,
    { eval: true, workerData: gate },
  );
  const exited = new Promise<void>((resolve) => worker.once('exit', () => resolve()));
  const fillers: net.Socket[] = [];
  const close = async (): Promise<void> => {
    for (const socket of fillers) socket.destroy();
    Atomics.store(gate, 0, 1);
    Atomics.notify(gate, 0);
    await within(exited, PROMPT_MS, 'the deaf listener exits');
  };
  t.teardown(close);
  const port = await within(
    new Promise<number>((resolve) => worker.once('message', resolve)),
    PROMPT_MS,
    'the deaf listener listens',
  );
  // The kernel takes backlog + 1; a connection beyond them never gets through.
  let pending = false;
  for (let connected = 0; connected < 2 || !pending;) {
    const socket = net.connect({ host: '127.0.0.1', port });
    socket.on('error', () => undefined);
    fillers.push(socket);
    // Turns of the loop, not one long sleep: on a busy machine a timer may be served before the connection.
    for (let turns = 0; socket.connecting && turns < 20; turns++) await sleep(10);
    pending = socket.connecting;
    if (!pending) connected++;
  }
  return { port, close };
}

// ---- addresses ----

/** Loopback, on a port of the system's choice. */
export const TCP: Address = { host: '127.0.0.1', port: 0 };

/** A fresh directory that goes with the test. */
export function temporaryDirectory(t: Test): string {
  const directory = mkdtempSync(path.join(tmpdir(), 'multifd-test-'));
  t.teardown(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}

// ---- waiting ----

/** Waits for a rejection and returns it; a promise that is fulfilled, or does not settle in time, fails. */
export async function failure(
  promise: Promise<unknown>,
  what: string,
  ms = PROMPT_MS,
): Promise<MultifdError & { code: ErrorCode }> {
  try {
    await within(promise, ms, what);
  } catch (error) {
    if (error instanceof MultifdError) return error;
    throw error;
  }
  throw new Error(`${what}: fulfilled, not rejected`);
}

/** For a promise that is looked at later: its rejection in the meantime is no unhandled one. */
export function hold<T>(promise: Promise<T>): Promise<T> {
  promise.catch(() => undefined);
  return promise;
}

/** Until `condition` holds. */
export async function eventually(condition: () => boolean, what: string, ms = PROMPT_MS): Promise<void> {
  const late = Date.now() + ms;
  while (!condition()) {
    if (Date.now() > late) throw new Error(`${what}: not within ${ms} ms`);
    await sleep(5);
  }
}

/** Is `promise` still pending after everything that was due has run? */
export async function isPending(promise: Promise<unknown>): Promise<boolean> {
  const marker = Symbol();
  const settled = promise.then(
    () => undefined,
    () => undefined,
  );
  return (await Promise.race([settled, sleep(50, marker)])) === marker;
}

/**
 * Queues packet by packet on a sender of one channel whose peer does not read, until the kernel takes no more: then one
 * packet is partly written and one waits behind it, and no call is pending.
 */
export async function fillUntilStuck(sender: Sender, block: string): Promise<void> {
  const packetBytes = PAGE * PAGES_PER_PACKET;
  for (let packets = 0; ; packets++) {
    await within(
      sender.queueRange(block, packets * packetBytes, packetBytes),
      PROMPT_MS,
      'a packet is taken',
    );
    const late = Date.now() + 150;
    while (sender.stats().packets <= packets) {
      if (Date.now() > late) return;
      await sleep(1);
    }
  }
}

// ---- what a session leaves behind ----

/** Handles of Node that a test harness has open all the time, or that come from our own sleeping. */
const OWN_RESOURCES = new Set(['FSReqCallback', 'FSReqPromise', 'TTYWrap', 'CloseReq', 'Immediate']);

interface Counts {
  descriptors: number;
  threads: number;
  resources: Record<string, number>;
}

function counts(): Counts {
  const resources: Record<string, number> = {};
  for (const name of process.getActiveResourcesInfo()) {
    if (!OWN_RESOURCES.has(name)) resources[name] = (resources[name] ?? 0) + 1;
  }
  return {
    descriptors: readdirSync('/proc/self/fd').length,
    threads: readdirSync('/proc/self/task').length,
    resources,
  };
}

// libuv starts its pool of threads with the first call that needs one, and keeps it: not a leftover of who came first.
await stat('/proc/self');

/** Compares descriptors, threads and active handles with what was there before. Linux only: it reads /proc. */
export class Leftovers {
  readonly #before: Counts;

  /** To be made when the process is warm: codecs loaded. */
  constructor() {
    this.#before = counts();
  }

  /** Waits a while for everything to go, and says what did not; empty if nothing is left. */
  async found(ms = PROMPT_MS): Promise<string[]> {
    const late = Date.now() + ms;
    for (;;) {
      const left = this.#compare();
      if (left.length === 0 || Date.now() > late) return left;
      // A timer of ours would count as a leftover, so the look comes after it.
      await sleep(10);
    }
  }

  #compare(): string[] {
    const now = counts();
    const before = this.#before;
    const left: string[] = [];
    if (now.descriptors > before.descriptors)
      left.push(`${now.descriptors} descriptors, ${before.descriptors} before`);
    if (now.threads > before.threads) left.push(`${now.threads} threads, ${before.threads} before`);
    for (const [name, count] of Object.entries(now.resources)) {
      if (count > (before.resources[name] ?? 0))
        left.push(`${count} ${name}, ${before.resources[name] ?? 0} before`);
    }
    return left;
  }
}
