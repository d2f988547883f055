/** Devices whose state is too large for the main stream: in pieces over the channels, from bytes or from what gives them by and by. */
import { spawn } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import {
  createMigrationSource,
  type AddressText,
  type Compression,
  type DestinationDevice,
  type SourceDevice,
} from '../../src/index.js';
import { PIECE_BYTES } from '../../src/live/device-pieces.js';
import { writePskCredentials } from '../../src/transport/tls/make-credentials.js';
import { Random } from '../support/random.js';
import { eventually } from '../support/raw-channel.js';
import { within } from '../support/within.js';
import {
  MACHINE,
  SIZE,
  WAIT_MS,
  Wire,
  deferred,
  failure,
  runsOnHere,
  runsThere,
  scene,
  type SceneOptions,
} from './scene.js';

const MIB = 2 ** 20;

function some(bytes: number, seed: number): Buffer {
  const block = Buffer.alloc(Math.min(bytes, 65521));
  new Random(seed).bytes(block);
  return Buffer.alloc(bytes, block);
}

function shared(bytes: Buffer): Uint8Array {
  const copy = new Uint8Array(new SharedArrayBuffer(bytes.length));
  copy.set(bytes);
  return copy;
}

function* cut(state: Buffer, partBytes: number): Generator<Buffer> {
  for (let at = 0; at < state.length; at += partBytes) yield state.subarray(at, at + partBytes);
}

/** One memory for all parts: what was given before is gone. */
async function* inOnePlace(state: Buffer, partBytes: number): AsyncGenerator<Buffer> {
  const place = Buffer.alloc(partBytes);
  for (const part of cut(state, partBytes)) {
    part.copy(place);
    yield place.subarray(0, part.length);
    place.fill(0xee);
    await new Promise((resolve) => setImmediate(resolve));
  }
}

interface Case {
  state: Buffer;
  save: SourceDevice['save'];
  /** Of its state over the channels. */
  pieces: number;
  stream?: true;
}

function cases(): Record<string, Case> {
  const of = (bytes: number, pieces: number, how: (state: Buffer) => Partial<Case> = () => ({})): Case => {
    const state = some(bytes, bytes);
    return { state, save: () => state, pieces, ...how(state) };
  };
  return {
    cpu: of(5, 0),
    none: of(0, 0),
    'as large as a piece': of(PIECE_BYTES, 0),
    'a byte more': of(PIECE_BYTES + 1, 2),
    'whole pieces': of(2 * PIECE_BYTES, 2, () => ({ stream: true })),
    large: of(3.5 * MIB, 4, () => ({ stream: true })),
    'in shared memory': of(1.5 * MIB, 2, (state) => ({ save: async () => shared(state) })),
    'small, in parts': of(5, 1, (state) => ({ save: () => cut(state, 2) })),
    'nothing, in parts': of(0, 0, () => ({ save: () => [] })),
    'in odd parts': of(2.5 * MIB, 3, (state) => ({ save: async () => inOnePlace(state, 70001) })),
    'in large parts': of(5 * MIB, 5, (state) => ({
      save: () => inOnePlace(state, 2 * MIB + 3),
      stream: true,
    })),
    'small, as a stream': of(7, 0, () => ({ stream: true })),
    last: of(3, 0),
  };
}

function sources(of: Record<string, Case>): SourceDevice[] {
  return Object.entries(of).map(([idstr, { save }], instanceId) => ({ idstr, instanceId, version: 3, save }));
}

function destinations(of: Record<string, Case>, loaded: Record<string, Buffer>): DestinationDevice[] {
  return Object.entries(of).map(([idstr, { stream }], instanceId): DestinationDevice => {
    const device = { idstr, instanceId, version: 3 };
    if (stream === undefined) return { ...device, load: (data) => void (loaded[idstr] = data) };
    return {
      ...device,
      stream,
      load: async (data) => {
        const parts: Buffer[] = [];
        for await (const part of data) parts.push(part);
        loaded[idstr] = Buffer.concat(parts);
      },
    };
  });
}

async function allArrive(t: Test, options: SceneOptions): Promise<void> {
  const of = cases();
  const loaded: Record<string, Buffer> = {};
  const it = await scene(t, {
    ...options,
    source: { ...options.source, devices: sources(of) },
    // In another order than they are sent.
    destination: { ...options.destination, devices: destinations(of, loaded).reverse() },
  });
  await within(it.source.done, WAIT_MS, 'the source');
  await within(it.destination.done, WAIT_MS, 'the destination');
  runsThere(t, it);
  for (const [idstr, { state }] of Object.entries(of)) t.ok(loaded[idstr]?.equals(state), idstr);
  t.same(Object.keys(loaded), Object.keys(of).reverse(), 'loaded in the order of devices');
  const { deviceStates } = it.destination.stats();
  t.equal(
    deviceStates,
    Object.values(of).reduce((sum, { pieces }) => sum + pieces, 0),
    'those that are large, and no other, over the channels',
  );
}

for (const channels of [1, 2, 8]) {
  for (const compression of ['none', 'zlib', 'zstd'] satisfies Compression[]) {
    t.test(
      `devices small and large, ${channels} channels, method ${compression}: each arrives as it is`,
      (t) => {
        const both = { channels, compression };
        return allArrive(t, { source: both, destination: both });
      },
    );
  }
}

t.test('through TLS as well', async (t) => {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'multifd-devices-tls-'));
  t.teardown(() => fs.rmSync(dir, { recursive: true }));
  await writePskCredentials(dir);
  const both = { tls: { dir } };
  await allArrive(t, { source: both, destination: both });
});

t.test('pages that an iterable writes while it saves, and tells, are there', async (t) => {
  let saved = false;
  const it = await scene(t, {
    source: {
      dirty: () => (saved ? [{ block: 'ram', offset: 0, length: 4096 }] : []),
      devices: [
        {
          idstr: 'cpu',
          *save() {
            yield Buffer.alloc(3 * MIB);
            new Uint8Array(it.here).fill(0xaa, 0, 4096);
            saved = true;
            yield Buffer.from('x');
          },
        },
      ],
    },
  });
  await within(it.source.done, WAIT_MS, 'done');
  await it.destination.done;
  t.equal(new Uint8Array(it.there)[100], 0xaa);
  runsThere(t, it);
});

t.test('a large device goes without a limit of bandwidth, as the guest stands still', async (t) => {
  let calls = 0;
  const it = await scene(t, {
    source: {
      dirty: () => {
        // An hour for what is left.
        if (++calls === 2) it.source.maxBandwidth = 1024;
        return [];
      },
      devices: [{ idstr: 'cpu', save: () => Buffer.alloc(8 * MIB) }],
    },
  });
  await within(it.source.done, WAIT_MS, 'done');
  await it.destination.done;
  runsThere(t, it);
});

t.test('an iterable that takes its time is no stall', async (t) => {
  const it = await scene(t, {
    source: {
      stallTimeoutMs: 1000,
      devices: [
        {
          idstr: 'cpu',
          async *save() {
            yield Buffer.from('sta');
            await new Promise((resolve) => setTimeout(resolve, 3000));
            yield Buffer.from('te');
          },
        },
      ],
    },
    destination: { stallTimeoutMs: 1000 },
  });
  await within(it.source.done, WAIT_MS, 'done');
  await it.destination.done;
  t.ok(it.notes.includes('load state'));
  runsThere(t, it);
});

/** Parts without an end, and what is called of it. */
function endless(notes: string[], asked: () => void): SourceDevice['save'] {
  return async function* () {
    const part = Buffer.alloc(MIB, 5);
    try {
      for (;;) {
        asked();
        yield part;
        await new Promise((resolve) => setImmediate(resolve));
      }
    } finally {
      await new Promise((resolve) => setTimeout(resolve, 30));
      notes.push('closed');
    }
  };
}

const hooksOf = (notes: string[]): string[] =>
  notes.filter((note) => ['pause', 'resume', 'start', 'closed'].includes(note));

t.test('an iterable is asked for no more than the channels take, and closed before resume()', async (t) => {
  let wire!: Wire;
  let parts = 0;
  const notes: string[] = [];
  const it = await scene(t, {
    through: (address) => {
      wire = new Wire(t, address);
      return wire.listen();
    },
    source: {
      pause: () => void notes.push('pause'),
      resume: () => void notes.push('resume'),
      devices: [
        {
          idstr: 'cpu',
          save: endless(notes, () => {
            if (++parts === 1) wire.stallChannels();
          }),
        },
      ],
    },
  });
  let before = -1;
  await eventually(() => parts > 0, 'the first part');
  while (before !== parts) {
    before = parts;
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
  // The kernel takes some; endless it is not.
  t.ok(parts < 100, `${parts} MiB`);
  await within(it.source.cancel(), WAIT_MS, 'cancel()');
  await failure(it.source.done);
  t.same(hooksOf(notes), ['pause', 'closed', 'resume']);
  wire.cut();
  await failure(it.destination.done);
  t.notOk(it.notes.some((note) => /^load|^start/.test(note)));
});

t.test('cancel() while a part is waited for: resume() comes when the iterable is closed', async (t) => {
  const [waiting, given] = [deferred(), deferred()];
  const it = await scene(t, {
    source: {
      devices: [
        {
          idstr: 'cpu',
          async *save() {
            try {
              yield Buffer.alloc(2 * MIB);
              waiting.resolve();
              await given.promise;
              yield Buffer.from('late');
            } finally {
              it.notes.push('closed');
            }
          },
        },
      ],
    },
  });
  await within(waiting.promise, WAIT_MS, 'the second part');
  const cancelled = it.source.cancel();
  await failure(it.destination.done);
  t.same(hooksOf(it.notes), ['pause']);
  given.resolve();
  await within(cancelled, WAIT_MS, 'cancel()');
  t.same(hooksOf(it.notes), ['pause', 'closed', 'resume']);
  t.equal(it.source.state, 'cancelled');
});

const HOW: Record<string, (wire: Wire, cancel: () => void) => void> = {
  'is cancelled': (_, cancel) => cancel(),
  'and all connections are gone': (wire) => wire.cut(),
};
for (const [name, act] of Object.entries(HOW)) {
  t.test(`the destination ${name} while pieces go over: the guest runs on`, async (t) => {
    let wire!: Wire;
    let parts = 0;
    const notes: string[] = [];
    const it = await scene(t, {
      through: (address) => {
        wire = new Wire(t, address);
        return wire.listen();
      },
      source: {
        resume: () => void notes.push('resume'),
        devices: [
          {
            idstr: 'cpu',
            save: endless(notes, () => {
              if (++parts === 3) act(wire, () => void it.destination.cancel());
            }),
          },
        ],
      },
    });
    await failure(it.source.done);
    await failure(it.destination.done);
    t.equal(it.source.state, 'failed');
    t.same(hooksOf(notes), ['closed', 'resume']);
    t.notOk(it.notes.some((note) => /^load|^start/.test(note)));
    runsOnHere(t, it);
  });
}

t.test('the destination is killed, as a process, while pieces go over: the guest runs on', async (t) => {
  const program = fileURLToPath(new URL('../fixtures/live-destination-process.js', import.meta.url));
  const destination = spawn(process.execPath, [program], { stdio: ['ignore', 'pipe', 'ignore'] });
  t.teardown(() => destination.kill('SIGKILL'));
  const address = await within(
    new Promise<string>((resolve) =>
      destination.stdout.once('data', (text: Buffer) => resolve(text.toString())),
    ),
    WAIT_MS,
    'its address',
  );
  let parts = 0;
  const notes: string[] = [];
  const source = await createMigrationSource({
    to: address.trim() as AddressText,
    machine: MACHINE,
    blocks: [{ name: 'ram', memory: new SharedArrayBuffer(SIZE) }],
    dirty: () => [],
    devices: [
      {
        idstr: 'cpu',
        save: endless(notes, () => {
          if (++parts === 3) destination.kill('SIGKILL');
        }),
      },
    ],
    pause: () => void notes.push('pause'),
    resume: () => void notes.push('resume'),
  });
  t.teardown(() => source.cancel());
  t.match((await failure(source.done)).code, /^ERR_MULTIFD_(CONNECTION|STREAM)$/);
  t.equal(source.state, 'failed');
  t.same(notes, ['pause', 'closed', 'resume']);
});

const boom = (): never => {
  throw new Error('boom');
};
function* then(act: () => unknown): Generator<Uint8Array> {
  yield Buffer.alloc(3 * MIB, 1);
  yield act() as Uint8Array;
}
function taken(): Uint8Array {
  const part = new Uint8Array(64 * MIB);
  setImmediate(() => structuredClone(part.buffer, { transfer: [part.buffer] }));
  return part;
}

const WRONG: Record<string, [SourceDevice['save'], RegExp]> = {
  'throws in the middle': [() => then(boom), /^device "cpu" 0: save\(\) failed: boom$/],
  'rejects in the middle': [
    async function* () {
      yield* then(() => Buffer.alloc(1));
      boom();
    },
    /^device "cpu" 0: save\(\) failed: boom$/,
  ],
  'throws before its first part': [() => ({ [Symbol.iterator]: boom }), /: save\(\) failed: boom$/],
  'gives a part that is no bytes': [
    () => then(() => 'text'),
    /^device "cpu" 0: a part of save\(\): received string, expected a Uint8Array$/,
  ],
  'gives numbers': [() => [1, 2] as never, /^device "cpu" 0: a part of save\(\): received 1, expected/],
  'takes a part away while it is sent': [
    () => then(taken),
    /^device "cpu" 0: save\(\): bytes of what it gave: received \d+, expected 67108864, as at first$/,
  ],
};
for (const [name, [save, message]] of Object.entries(WRONG)) {
  t.test(`an iterable that ${name}: the source fails with it, and its guest runs on`, async (t) => {
    const it = await scene(t, { source: { devices: [{ idstr: 'cpu', save }] } });
    t.match(await failure(it.source.done), { code: 'ERR_MULTIFD_HOOK', message });
    await failure(it.destination.done);
    t.same(hooksOf(it.notes), ['pause', 'resume']);
    t.notOk(it.notes.some((note) => /^load/.test(note)));
    t.equal(it.source.state, 'failed');
    t.equal(it.destination.state, 'failed');
  });
}

t.test('what a closed iterable throws is told beside the error that it was closed for', async (t) => {
  const it = await scene(t, {
    source: {
      devices: [
        {
          idstr: 'cpu',
          *save(): Generator<Uint8Array> {
            try {
              yield 'text' as never;
            } finally {
              boom();
            }
          },
        },
      ],
    },
  });
  const error = await failure(it.source.done);
  t.match(error.message, /a part of save\(\): received string/);
  t.match(error.suppressed[0], { code: 'ERR_MULTIFD_HOOK', message: 'device "cpu" 0: save() failed: boom' });
  await failure(it.destination.done);
});

t.test('a streamed load() that stops half way has loaded, and one that throws is told', async (t) => {
  const device = { idstr: 'cpu', save: () => Buffer.alloc(3 * MIB) };
  const first = await scene(t, {
    source: { devices: [device] },
    destination: {
      devices: [
        {
          idstr: 'cpu',
          stream: true,
          load: async (data) => {
            for await (const part of data) if (part.length === MIB) break;
          },
        },
      ],
    },
  });
  await within(first.source.done, WAIT_MS, 'done');
  runsThere(t, first);
  const it = await scene(t, {
    source: { devices: [device] },
    destination: {
      devices: [
        {
          idstr: 'cpu',
          stream: true,
          load: async (data) => {
            for await (const part of data) if (part.length === MIB) boom();
          },
        },
      ],
    },
  });
  await failure(it.source.done);
  t.match(await failure(it.destination.done), { message: 'device "cpu" 0: load() failed: boom' });
  runsOnHere(t, it);
});

t.test('more than maxDeviceBytes over the channels is refused, and nothing is loaded', async (t) => {
  const it = await scene(t, {
    source: { devices: [{ idstr: 'cpu', save: () => Buffer.alloc(3 * MIB) }] },
    destination: { maxDeviceBytes: 3 * MIB - 1 },
  });
  t.match(await failure(it.destination.done), {
    code: 'ERR_MULTIFD_STREAM',
    message:
      /device "cpu" 0: bytes of its state: received 1048576, expected at most 1048575 more \(option maxDeviceBytes/,
  });
  await failure(it.source.done);
  t.notOk(it.notes.some((note) => /^load/.test(note)));
  runsOnHere(t, it);
});
