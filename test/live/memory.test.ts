/** Memory that moves while its guest is migrated, and a whole migration through TLS. */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import t from 'tap';
import { createMigrationDestination, createMigrationSource, type BlockMemory } from '../../src/index.js';
import { writePskCredentials } from '../../src/transport/tls/make-credentials.js';
import { Random } from '../support/random.js';
import { within } from '../support/within.js';
import { MACHINE, WAIT_MS, failure, runsOnHere, runsThere, scene } from './scene.js';

const PAGE = 4096;
const WASM_PAGE = 65536;

/** As far as it is used here; no library of TypeScript's for Node knows it. */
interface Memory {
  readonly buffer: ArrayBuffer;
  grow(delta: number): number;
}
const { Memory } = (
  globalThis as unknown as { WebAssembly: { Memory: new (of: { initial: number }) => Memory } }
).WebAssembly;

const FORMS: Record<string, (wasm: Memory, size: number) => { memory: BlockMemory; size?: number }> = {
  'a WebAssembly.Memory': (wasm, size) => ({ memory: { wasm, size } }),
  'a function that returns it': (wasm, size) => ({ memory: () => wasm.buffer, size }),
};

for (const [name, form] of Object.entries(FORMS)) {
  t.test(`${name} that grows in every round, at both ends, arrives whole`, async (t) => {
    const size = 4 * WASM_PAGE;
    const [here, there] = [new Memory({ initial: 4 }), new Memory({ initial: 4 })];
    new Random(1).bytes(new Uint8Array(here.buffer, 0, size / 2));
    let rounds = 0;
    const destination = await createMigrationDestination({
      listen: { host: '127.0.0.1', port: 0 },
      machine: MACHINE,
      blocks: [{ name: 'ram', ...form(there, size) }],
      start: () => {},
    });
    t.teardown(() => destination.cancel());
    const source = await createMigrationSource({
      to: destination.address,
      machine: MACHINE,
      blocks: [{ name: 'ram', ...form(here, size) }],
      dirty: () => {
        // What was there before is detached.
        here.grow(1);
        there.grow(1);
        new Uint8Array(here.buffer).fill(++rounds, 10 * PAGE, 12 * PAGE);
        return [{ block: 'ram', offset: 10 * PAGE, length: 2 * PAGE }];
      },
      downtimeLimitMs: 0,
      maxRounds: 4,
      notConverging: 'switchover',
      pause: () => {},
      resume: () => {},
    });
    t.teardown(() => source.cancel());
    await within(source.done, WAIT_MS, 'the source');
    await within(destination.done, WAIT_MS, 'the destination');
    t.equal(rounds, 6);
    t.ok(Buffer.from(there.buffer, 0, size).equals(Buffer.from(here.buffer, 0, size)));
  });
}

t.test('private memory that is taken away ends it, and the guest runs on', async (t) => {
  const taken = new ArrayBuffer(64 * PAGE);
  let calls = 0;
  const it = await scene(t, {
    source: {
      blocks: [{ name: 'ram', memory: taken }],
      dirty: () => {
        if (++calls === 2) structuredClone(taken, { transfer: [taken] });
        return [{ block: 'ram', offset: 0, length: PAGE }];
      },
    },
  });
  t.equal((await failure(it.source.done)).code, 'ERR_MULTIFD_BLOCK');
  await failure(it.destination.done);
  runsOnHere(t, it);
});

t.test('through TLS it arrives, and a cancel in load() starts nothing', async (t) => {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'multifd-live-tls-'));
  t.teardown(() => fs.rmSync(dir, { recursive: true }));
  await writePskCredentials(dir);
  const tls = { dir };
  const whole = await scene(t, { source: { tls }, destination: { tls } });
  await within(whole.source.done, WAIT_MS, 'the source');
  await within(whole.destination.done, WAIT_MS, 'the destination');
  runsThere(t, whole);
  const it = await scene(t, {
    source: { tls },
    destination: {
      tls,
      devices: [
        {
          idstr: 'cpu',
          load: async () => {
            void it.source.cancel();
            await new Promise((resolve) => setTimeout(resolve, 100));
          },
        },
      ],
    },
  });
  t.equal((await failure(it.source.done)).code, 'ERR_MULTIFD_CLOSED');
  await failure(it.destination.done);
  t.equal(it.source.state, 'cancelled');
  runsOnHere(t, it);
});
