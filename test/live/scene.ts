/** A source and a destination in one process, with as little of a guest as the case needs, and a note of every hook. */
import net from 'node:net';
import { once } from 'node:events';
import type { Test } from 'tap';
import {
  createMigrationDestination,
  createMigrationSource,
  type Address,
  type MigrationDestination,
  type MigrationDestinationOptions,
  type MigrationSource,
  type MigrationSourceOptions,
  type MultifdError,
} from '../../src/index.js';
import { within } from '../support/within.js';

export const WAIT_MS = 20_000;
export const PAGES = 64;
export const SIZE = PAGES * 4096;
export const MACHINE = 'model-1.0';

export interface Scene {
  source: MigrationSource;
  destination: MigrationDestination;
  /** Every hook and state of both ends, in order: `source active`, `pause`, `start`, ... */
  notes: string[];
  here: SharedArrayBuffer;
  there: SharedArrayBuffer;
}

export interface SceneOptions {
  source?: Partial<MigrationSourceOptions>;
  destination?: Partial<MigrationDestinationOptions>;
  /** Where the source connects in place of the destination. */
  through?: (address: Address) => Promise<Address>;
}

/** A device of 5 bytes at both ends, and 64 pages. */
export async function scene(t: Test, options: SceneOptions = {}): Promise<Scene> {
  const notes: string[] = [];
  const here = new SharedArrayBuffer(SIZE);
  new Uint8Array(here).fill(7, 4096, SIZE / 2);
  const there = new SharedArrayBuffer(SIZE);
  const given = options.destination ?? {};
  const destination = await createMigrationDestination({
    listen: { host: '127.0.0.1', port: 0 },
    machine: MACHINE,
    blocks: [{ name: 'ram', memory: there }],
    devices: [{ idstr: 'cpu', load: (data) => void notes.push(`load ${data.toString('latin1')}`) }],
    start: () => void notes.push('start'),
    ...given,
    onState: (state) => {
      notes.push(`destination ${state}`);
      given.onState?.(state);
    },
  } as MigrationDestinationOptions);
  t.teardown(() => destination.cancel());
  const own = options.source ?? {};
  const source = await createMigrationSource({
    to: (await options.through?.(destination.address)) ?? destination.address,
    machine: MACHINE,
    blocks: [{ name: 'ram', memory: here }],
    dirty: () => [],
    devices: [{ idstr: 'cpu', save: () => Buffer.from('state') }],
    ...own,
    pause: () => {
      notes.push('pause');
      return own.pause?.();
    },
    resume: () => {
      notes.push('resume');
      return own.resume?.();
    },
    onState: (state) => {
      notes.push(`source ${state}`);
      own.onState?.(state);
    },
  });
  t.teardown(() => source.cancel());
  return { source, destination, notes, here, there };
}

/** What `done` rejects with. */
export function failure(done: Promise<unknown>): Promise<MultifdError> {
  const failed = done.then(
    () => {
      throw new Error('it succeeded');
    },
    (error: unknown) => error as MultifdError,
  );
  return within(failed, WAIT_MS, 'done');
}

/** Nothing was started, and the guest runs here: resume() exactly once where pause() was called, and after it. */
export function runsOnHere(t: Test, { notes }: Pick<Scene, 'notes'>): void {
  const hooks = notes.filter((note) => ['pause', 'resume', 'start'].includes(note));
  t.ok(['', 'pause,resume'].includes(hooks.join()), hooks.join() || 'no hook was called');
}

/** Both ends fail, and the guest runs on here. @returns their codes */
export async function bothFail(t: Test, it: Scene): Promise<[source: string, destination: string]> {
  const codes = [(await failure(it.source.done)).code, (await failure(it.destination.done)).code];
  runsOnHere(t, it);
  t.notOk(it.notes.includes('start'));
  t.notOk(it.notes.includes('destination completed'));
  return codes as [string, string];
}

/** The guest runs there and nowhere else. */
export function runsThere(t: Test, { notes, here, there }: Scene): void {
  const hooks = notes.filter((note) => ['pause', 'resume', 'start'].includes(note));
  t.same(hooks, ['pause', 'start']);
  t.ok(Buffer.from(here).equals(Buffer.from(there)), 'its memory is there');
}

export function deferred(): { promise: Promise<void>; resolve: () => void } {
  let resolve!: () => void;
  const promise = new Promise<void>((done) => (resolve = done));
  return { promise, resolve };
}

/** Among bytes that are held back. */
const END = Buffer.alloc(0);

/** Passes connections through until it ends them, as the end of a process or of a network does. */
export class Wire {
  /** Both ends of each; the first is the main stream's. */
  readonly #pairs: [near: net.Socket, far: net.Socket][] = [];
  readonly #server: net.Server;
  /** What the destination says on the main stream is held back. */
  #held: Buffer[] | undefined;

  constructor(t: Test, to: Address) {
    // Each direction ends by itself, as on a wire.
    const allowHalfOpen = true;
    this.#server = net.createServer({ allowHalfOpen }, (near) => {
      const far = net.connect({ ...(to as net.TcpNetConnectOpts), allowHalfOpen });
      this.#pairs.push([near, far]);
      // A reset is one at the other end as well.
      near.on('error', () => far.resetAndDestroy());
      far.on('error', () => near.resetAndDestroy());
      near.pipe(far);
      if (this.#pairs.length > 1) far.pipe(near);
      else far.on('data', (bytes) => (this.#held === undefined ? near.write(bytes) : this.#held.push(bytes)));
      far.on('end', () => (this.#held === undefined ? near.end() : this.#held.push(END)));
    });
    t.teardown(() => {
      this.#server.close();
      this.cut();
    });
  }

  async listen(): Promise<Address> {
    this.#server.listen(0, '127.0.0.1');
    await once(this.#server, 'listening');
    return { host: '127.0.0.1', port: (this.#server.address() as net.AddressInfo).port };
  }

  hold(): void {
    this.#held ??= [];
  }

  release(): void {
    const [[near]] = this.#pairs;
    for (const bytes of this.#held ?? []) {
      if (bytes === END) near.end();
      else near.write(bytes);
    }
    this.#held = undefined;
  }

  cut(): void {
    for (const socket of this.#pairs.flat()) socket.destroy();
  }

  /** Nothing that the source sends on them is taken any more. */
  stallChannels(): void {
    for (const [near, far] of this.#pairs.slice(1)) near.unpipe(far).pause();
  }

  cutMain(): void {
    for (const socket of this.#pairs[0]) socket.destroy();
  }

  cutChannel(): void {
    for (const socket of this.#pairs[1]) socket.destroy();
  }

  /** All but the main stream's. */
  resetChannels(): void {
    for (const socket of this.#pairs.slice(1).flat()) socket.resetAndDestroy();
  }
}
