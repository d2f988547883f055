/** A VM of an embedder's own goes wherever a QEMU's does: parked in a file, described, resumed from there, relayed. */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import t, { type Test } from 'tap';
import {
  createMigrationDestination,
  createMigrationSource,
  describeMigrationFile,
  readMappedRam,
  receiveMigration,
  relayMigration,
  sendMigration,
  type Address,
  type DestinationDevice,
  type MigrationDestination,
  type MigrationSource,
  type RelaySide,
  type ZeroPageDetection,
} from '../../src/index.js';
import { analyze } from '../support/analyze.js';
import { Random } from '../support/random.js';
import { within } from '../support/within.js';
import { WAIT_MS, failure, runsOnHere, scene } from './scene.js';

const SIZES = { 'model.ram': 2 ** 20, 'model.vram': 2 ** 16 };
/** Bytes that look like the end of a section, and like the end of a stream. */
const TRAP = Buffer.from(
  '7e00000001' + '00' + '060000000d' + Buffer.from('{"devices":[]}').toString('hex'),
  'hex',
);
const STATES: Record<string, Buffer> = {
  cpu: Buffer.from('registers'),
  disk: Buffer.concat([TRAP, Buffer.alloc(2 ** 20, 0x5a), TRAP]),
  serial: Buffer.alloc(0),
  /** Given in parts, and taken likewise. */
  nvme: Buffer.concat([Buffer.alloc(2 ** 22, TRAP), TRAP]),
};
const IN_PARTS = 'nvme';

function* inParts(state: Buffer): Generator<Buffer> {
  for (let at = 0; at < state.length; at += 100_003) yield state.subarray(at, at + 100_003);
}

interface Vm {
  memories: SharedArrayBuffer[];
  blocks: { name: string; memory: SharedArrayBuffer }[];
}

function vm(seed?: number): Vm {
  const blocks = Object.entries(SIZES).map(([name, size]) => ({ name, memory: new SharedArrayBuffer(size) }));
  if (seed !== undefined) {
    for (const { memory } of blocks) new Random(seed).bytes(new Uint8Array(memory, 0, memory.byteLength / 2));
  }
  return { blocks, memories: blocks.map(({ memory }) => memory) };
}

function source(
  t: Test,
  to: Address,
  { blocks }: Vm,
  machine: string,
  side: RelaySide = {},
): Promise<MigrationSource> {
  return createMigrationSource({
    ...side,
    to,
    machine,
    blocks,
    dirty: () => [],
    devices: Object.entries(STATES).map(([idstr, state]) => ({
      idstr,
      version: 4,
      save: () => (idstr === IN_PARTS ? inParts(state) : state),
    })),
    pause: () => {},
    resume: () => void t.fail('the guest runs on'),
  });
}

interface Arrived extends Vm {
  destination: MigrationDestination;
  loaded: Record<string, Buffer>;
}

async function waiting(t: Test, machine: string, side: RelaySide = {}): Promise<Arrived> {
  const { blocks, memories } = vm();
  // What is here before is overwritten, with zeros as well.
  for (const memory of memories) new Uint8Array(memory).fill(0xcc);
  const loaded: Record<string, Buffer> = {};
  const destination = await createMigrationDestination({
    ...side,
    listen: { host: '127.0.0.1', port: 0 },
    machine,
    blocks,
    devices: Object.keys(STATES).map((idstr): DestinationDevice => {
      if (idstr !== IN_PARTS) return { idstr, version: 4, load: (data) => void (loaded[idstr] = data) };
      return {
        idstr,
        version: 4,
        stream: true,
        load: async (data) => {
          const parts: Buffer[] = [];
          for await (const part of data) parts.push(part);
          loaded[idstr] = Buffer.concat(parts);
        },
      };
    }),
    start: () => {},
  });
  t.teardown(() => destination.cancel());
  return { destination, blocks, memories, loaded };
}

async function isThere(t: Test, from: Vm, { destination, memories, loaded }: Arrived): Promise<void> {
  await within(destination.done, WAIT_MS, 'the destination');
  for (const [i, memory] of memories.entries())
    t.ok(Buffer.from(memory).equals(Buffer.from(from.memories[i])), from.blocks[i].name);
  for (const [idstr, state] of Object.entries(STATES)) t.ok(loaded[idstr].equals(state), idstr);
}

/** Versions as QEMU had them: what is sent from a file goes by them, and a destination of ours takes each. */
for (const machine of ['model-1.0', 'model-8.2', 'model-10.0', 'model']) {
  t.test(`${machine} is parked, described, and resumed twice`, async (t) => {
    const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'multifd-parked-'));
    t.teardown(() => fs.rmSync(dir, { recursive: true }));
    const out = path.join(dir, 'vm.mig');
    const from = vm(1);
    let received!: ReturnType<typeof receiveMigration>;
    const address = await new Promise<Address>((resolve, reject) => {
      received = receiveMigration({
        address: { host: '127.0.0.1', port: 0 },
        out,
        onListening: resolve,
      });
      received.catch(reject);
    });
    const parked = await source(t, address, from, machine);
    await within(parked.done, WAIT_MS, 'the source');
    const { stats, ...parkedVm } = await within(received, WAIT_MS, 'receiveMigration()');
    t.match(parkedVm, { machine, pageSize: 4096 });
    t.equal(stats.deviceStates, 2 + 5, 'large devices came over the channels');
    t.same(fs.readdirSync(dir), ['vm.mig']);

    const description = await readMappedRam(out);
    t.equal(description.machine, machine);
    t.same(
      description.blocks.map(({ name, usedLength }) => [name, usedLength]),
      Object.entries(SIZES),
    );
    const { vmDescription } = (await describeMigrationFile(out)) as { vmDescription?: { devices: object[] } };
    t.same(
      vmDescription?.devices,
      Object.entries(STATES).map(([name, { length }]) => ({
        name,
        instanceId: 0,
        version: 4,
        bytes: 4 + length,
      })),
    );
    // As QEMU's own script goes through it, by its description alone.
    const analyzed = analyze(fs.readFileSync(out));
    t.equal(analyzed.machine, machine);
    t.same(analyzed.devices, ['cpu/0', 'disk/0', 'serial/0', 'nvme/0']);

    for (const zeroPageDetection of [undefined, 'legacy'] satisfies (ZeroPageDetection | undefined)[]) {
      const there = await waiting(t, machine);
      const to = there.destination.address;
      await within(sendMigration({ file: out, to, zeroPageDetection }), WAIT_MS, 'sendMigration()');
      await isThere(t, from, there);
    }
    const other = await waiting(t, 'other-1.0');
    const refused = sendMigration({ file: out, to: other.destination.address });
    await t.rejects(within(refused, WAIT_MS, 'sendMigration()'), { name: 'MultifdError' });
    await t.rejects(other.destination.done, { code: 'ERR_MULTIFD_STREAM', message: /^machine: received/ });
  });
}

t.test('through a relay a cancel in load() starts nothing, and the guest runs on', async (t) => {
  const it = await scene(t, {
    through: (address) =>
      new Promise<Address>((resolve, reject) => {
        const listen = { host: '127.0.0.1', port: 0 };
        relayMigration({ listen, to: address, onListening: resolve }).catch(reject);
      }),
    destination: {
      devices: [
        {
          idstr: 'cpu',
          load: async () => {
            void it.source.cancel();
            await new Promise((resolve) => setTimeout(resolve, 200));
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

const SIDES: Record<string, [RelaySide, RelaySide]> = {
  'as it is': [{}, {}],
  'from one channel to eight': [{ channels: 1 }, { channels: 8 }],
  'from eight channels to one, zstd to zlib': [
    { channels: 8, compression: 'zstd' },
    { channels: 1, compression: 'zlib' },
  ],
};
for (const [name, [near, far]] of Object.entries(SIDES)) {
  t.test(`a relay passes it through, ${name}`, (t) => passedThrough(t, near, far));
}

async function passedThrough(t: Test, near: RelaySide, far: RelaySide): Promise<void> {
  const from = vm(2);
  const there = await waiting(t, 'model-1.0', far);
  let relayed!: ReturnType<typeof relayMigration>;
  const address = await new Promise<Address>((resolve, reject) => {
    relayed = relayMigration({
      listen: { host: '127.0.0.1', port: 0 },
      to: there.destination.address,
      in: near,
      out: far,
      onListening: resolve,
    });
    relayed.catch(reject);
  });
  const it = await source(t, address, from, 'model-1.0', near);
  await within(it.done, WAIT_MS, 'the source');
  const { received, sent, ...result } = await within(relayed, WAIT_MS, 'relayMigration()');
  t.match(result, { machine: 'model-1.0', sourceTold: true });
  t.equal(received.deviceStates, 2 + 5);
  t.equal(sent.deviceStates, 2 + 5);
  await isThere(t, from, there);
}
