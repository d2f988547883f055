/** Option verify: digests of all memory, of both ends, compared before anything is loaded. */
import fs from 'node:fs';
import net from 'node:net';
import { once } from 'node:events';
import path from 'node:path';
import t, { type Test } from 'tap';
import {
  createMigrationDestination,
  createMigrationSource,
  createSender,
  describeMigrationFile,
  readMappedRam,
  receiveMigration,
  relayMigration,
  sendMigration,
  type Address,
  type Compression,
  type MigrationDestinationOptions,
  type MigrationSourceOptions,
} from '../../src/index.js';
import {
  PROOF_DEVICE,
  encodeDeviceSection,
  encodeEnd,
  type DeviceState,
} from '../../src/live/device-sections.js';
import { encodeProofHead, requireSame } from '../../src/live/proof-section.js';
import { Chunks, digestOf } from '../../src/ram/chunks.js';
import { MainStreamBuilder, encodeCommand } from '../../src/stream/main-writer.js';
import { COMMAND_OPEN_RETURN_PATH } from '../../src/stream/records.js';
import { temporaryDirectory } from '../support/raw-channel.js';
import { Random } from '../support/random.js';
import { some } from '../support/some.js';
import { STORE_KINDS, makeStore, type Store } from '../support/store.js';
import { within } from '../support/within.js';
import { LiveGuest } from './guest.js';
import { MACHINE, WAIT_MS, failure, runsOnHere, scene } from './scene.js';

const PAGE = 4096;
/** Two whole chunks and a part of one. */
const PAGES = 300;
const SIZE = PAGES * PAGE;
const LONG_MS = 60_000;

const rows = STORE_KINDS.flatMap((kind) =>
  (['none', 'zlib', 'zstd'] as const satisfies Compression[]).flatMap((compression) =>
    ([1, 2] as const).flatMap((channels) =>
      ([true, false] as const).map((tracked) => ({ kind, compression, channels, tracked })),
    ),
  ),
);

for (const [index, { kind, compression, channels, tracked }] of some(rows, 7).entries()) {
  const dirty = tracked ? 'a bitmap' : 'no dirty tracking';
  t.test(`${kind} memory, ${compression}, ${channels} channels, ${dirty}: the guest is there`, async (t) => {
    const guest = new LiveGuest(t, kind, 'bitmap', index + 1);
    await within(guest.running, LONG_MS, 'the guest');
    const both = { machine: MACHINE, compression, channels, verify: true };
    let started = 0;
    const destination = await createMigrationDestination({
      ...both,
      listen: { host: '127.0.0.1', port: 0 },
      blocks: [guest.there.options],
      start: () => void started++,
    });
    t.teardown(() => destination.cancel());
    const source = await createMigrationSource({
      ...both,
      to: destination.address,
      blocks: [guest.store.options],
      dirty: tracked ? guest.dirty : undefined,
      downtimeLimitMs: 1,
      maxRounds: 4,
      notConverging: 'switchover',
      pause: () => guest.pause(),
      resume: () => guest.resume(),
    });
    t.teardown(() => source.cancel());
    await within(source.done, LONG_MS, 'the source');
    await within(destination.done, LONG_MS, 'the destination');
    t.ok(guest.store.read().equals(guest.there.read()), 'every byte is the same');
    t.ok(guest.there.guardsIntact());
    t.equal(started, 1);
  });
}

// ---- what is found ----

interface Pair {
  here: Store;
  there: Store;
}

/** Two blocks, the second one of 300 pages, in memory of a kind. */
function pairs(t: Test, kind: (typeof STORE_KINDS)[number]): [Pair, Pair] {
  const dir = temporaryDirectory(t);
  const pair = (name: string, size: number): Pair => {
    const here = makeStore(dir, name, kind, size);
    const there = makeStore(dir, `${name}-there`, kind, size);
    there.options.name = name;
    for (let page = 0; page < size / PAGE; page += 2) here.write(page * PAGE, Buffer.alloc(PAGE, 7));
    return { here, there };
  };
  return [pair('rom', 16 * PAGE), pair('ram', SIZE)];
}

function ends([rom, ram]: [Pair, Pair]): {
  source: Partial<MigrationSourceOptions>;
  destination: Partial<MigrationDestinationOptions>;
} {
  return {
    source: { verify: true, blocks: [rom.here.options, ram.here.options] },
    destination: {
      verify: true,
      // In another order.
      blocks: [ram.there.options, rom.there.options],
      acceptBlocks: undefined,
    },
  };
}

for (const kind of STORE_KINDS) {
  t.test(`${kind} memory: a page whose write was not told is found, and the guest runs on`, async (t) => {
    const both = pairs(t, kind);
    const { source, destination } = ends(both);
    const pause = (): void => {
      both[1].here.write(200 * PAGE + 5, Buffer.of(1));
      both[1].here.write(299 * PAGE + 4095, Buffer.of(1));
    };
    const it = await scene(t, { source: { ...source, pause }, destination });
    const error = await failure(it.destination.done);
    t.equal(error.code, 'ERR_MULTIFD_VERIFY');
    t.match(
      error.message,
      /^option verify: .* RAM block "ram", pages 128 to 299: SHA-256: received [0-9a-f]{16}, expected [0-9a-f]{16}$/,
    );
    t.match((await failure(it.source.done)).message, /destination/);
    runsOnHere(t, it);
    t.ok(it.notes.includes('resume'));
    t.notOk(it.notes.some((note) => note.startsWith('load')));
  });
}

t.test('a byte that was changed on the way is found, in whichever block', async (t) => {
  for (const [block, page, range] of [
    [0, 3, 'RAM block "rom", pages 0 to 15'],
    [1, 4, 'RAM block "ram", pages 0 to 127'],
    [1, 299, 'RAM block "ram", pages 256 to 299'],
  ] as const) {
    const both = pairs(t, 'shared');
    both[block].here.write(page * PAGE, Buffer.alloc(PAGE, 0xe7));
    const it = await scene(t, { ...ends(both), through: (address) => flipping(t, address, 0xe7) });
    const error = await failure(it.destination.done);
    t.equal(error.code, 'ERR_MULTIFD_VERIFY');
    t.ok(error.message.includes(range), error.message);
    await failure(it.source.done);
    runsOnHere(t, it);
  }
});

t.test('without verify the same byte is there and nobody knows', async (t) => {
  const both = pairs(t, 'shared');
  both[1].here.write(4 * PAGE, Buffer.alloc(PAGE, 0xe7));
  const { source, destination } = ends(both);
  const it = await scene(t, {
    source: { ...source, verify: false },
    destination: { ...destination, verify: false },
    through: (address) => flipping(t, address, 0xe7),
  });
  await within(it.destination.done, WAIT_MS, 'the destination');
  t.notOk(both[1].here.read().equals(both[1].there.read()));
});

/** Changes a byte of whatever is `value` many times in a row. */
async function flipping(t: Test, to: Address, value: number): Promise<Address> {
  const sought = Buffer.alloc(64, value);
  const server = net.createServer((near) => {
    const far = net.connect(to as net.TcpNetConnectOpts);
    t.teardown(() => [near, far].forEach((end) => end.destroy()));
    for (const end of [near, far]) end.on('error', () => {});
    near.on('data', (bytes) => {
      const at = bytes.indexOf(sought);
      if (at >= 0) bytes[at + 10] ^= 0x20;
      far.write(bytes);
    });
    near.on('end', () => far.end());
    far.pipe(near);
  });
  t.teardown(() => server.close());
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return { host: '127.0.0.1', port: (server.address() as net.AddressInfo).port };
}

// ---- who asks for it ----

t.test('a destination that has it not set refuses, and names the option', async (t) => {
  const it = await scene(t, { source: { verify: true } });
  t.match(await failure(it.destination.done), {
    code: 'ERR_MULTIFD_STREAM',
    message:
      /^device: received "multifd-verify" 0, expected one of "cpu" 0 \(option verify, which the source/,
  });
  await failure(it.source.done);
  runsOnHere(t, it);
});

t.test('a source that has it not set is refused, and the option is named', async (t) => {
  const it = await scene(t, { destination: { verify: true } });
  t.match(await failure(it.destination.done), {
    code: 'ERR_MULTIFD_STREAM',
    message: /expected a section of "multifd-verify" 0 \(option verify of the source\)/,
  });
  await failure(it.source.done);
  runsOnHere(t, it);
});

t.test('it is true or false, and its name is no device’s', async (t) => {
  await t.rejects(scene(t, { source: { verify: 1 as never } }), { message: /^option verify: given 1/ });
  await t.rejects(scene(t, { destination: { verify: 'yes' as never } }), {
    message: /^option verify: given /,
  });
  const devices = [{ idstr: 'multifd-verify', save: () => Buffer.alloc(1), load: () => {} }];
  const expected = { message: /^option devices\[0\].idstr: given .*multifd-verify.* option verify/ };
  await t.rejects(scene(t, { source: { devices } }), expected);
  await t.rejects(scene(t, { destination: { devices } }), expected);
});

t.test('a cancel while digests are made starts nothing, at either end', async (t) => {
  for (const end of ['source', 'destination'] as const) {
    const both = pairs(t, 'file');
    const { source, destination } = ends(both);
    let cancelled: Promise<void> | undefined;
    const it = await scene(t, {
      source: {
        ...source,
        devices: [
          {
            idstr: 'cpu',
            save: () => {
              setTimeout(() => void (cancelled = it[end].cancel()), 3);
              return Buffer.from('state');
            },
          },
        ],
      },
      destination,
    });
    await Promise.allSettled([it.source.done, it.destination.done]);
    await within(cancelled ?? it[end].cancel(), WAIT_MS, 'cancel()');
    // It may have come too late.
    if (it.source.state !== 'completed') runsOnHere(t, it);
    else t.ok(it.notes.includes('start'));
  }
});

t.test('memory that cannot be read when digests are made fails, and the guest runs on', async (t) => {
  for (const kind of ['file', 'private'] as const) {
    const both = pairs(t, kind);
    const { source, destination } = ends(both);
    const { file, memory } = both[1].here.options;
    let now = memory as ArrayBuffer;
    const blocks: MigrationSourceOptions['blocks'] =
      kind === 'file'
        ? [both[0].here.options, both[1].here.options]
        : [both[0].here.options, { name: 'ram', memory: () => now, size: SIZE }];
    const spoil = (): void => {
      if (kind === 'file') fs.truncateSync(file as string, SIZE - 1);
      else now = new ArrayBuffer(PAGE);
    };
    const it = await scene(t, { source: { ...source, blocks, pause: spoil }, destination });
    const error = await failure(it.source.done);
    t.equal(error.code, kind === 'file' ? 'ERR_MULTIFD_IO' : 'ERR_MULTIFD_BLOCK');
    t.match(error.message, /RAM block "ram"/);
    await failure(it.destination.done);
    runsOnHere(t, it);
    t.ok(it.notes.includes('resume'));
  }
});

// ---- on its way through a file, and a relay ----

t.test(
  'a VM that is parked keeps its digests in the file, and is held against them when it is resumed',
  async (t) => {
    const both = pairs(t, 'shared');
    both[1].here.write(200 * PAGE, Buffer.alloc(PAGE, 0xe7));
    const out = path.join(temporaryDirectory(t), 'vm.mig');
    let received!: ReturnType<typeof receiveMigration>;
    const address = await new Promise<Address>((resolve, reject) => {
      received = receiveMigration({ address: { host: '127.0.0.1', port: 0 }, out, onListening: resolve });
      received.catch(reject);
    });
    const source = await createMigrationSource({
      to: address,
      machine: MACHINE,
      ...(ends(both).source as { blocks: MigrationSourceOptions['blocks'] }),
      verify: true,
      devices: [{ idstr: 'cpu', save: () => Buffer.from('state') }],
      pause: () => {},
      resume: () => void t.fail('the guest runs on'),
    });
    await within(source.done, WAIT_MS, 'the source');
    await within(received, WAIT_MS, 'receiveMigration()');

    const { vmDescription } = (await describeMigrationFile(out)) as { vmDescription?: { devices: object[] } };
    const bytes = 4 + 4 + 2 * (1 + 3 + 8) + (1 + 3) * 32;
    t.same(vmDescription?.devices, [
      { name: 'cpu', instanceId: 0, version: 1, bytes: 4 + 5 },
      { name: 'multifd-verify', instanceId: 0, version: 1, bytes },
    ]);

    const resumed = async (verify: boolean): Promise<{ done: Promise<unknown>; sent: Promise<unknown> }> => {
      const destination = await createMigrationDestination({
        listen: { host: '127.0.0.1', port: 0 },
        machine: MACHINE,
        blocks: ends(both).destination.blocks ?? [],
        devices: [{ idstr: 'cpu', load: () => {} }],
        verify,
        start: () => {},
      });
      t.teardown(() => destination.cancel());
      const sent = sendMigration({ file: out, to: destination.address });
      sent.catch(() => {});
      return { done: destination.done, sent };
    };
    const whole = await resumed(true);
    await within(whole.sent, WAIT_MS, 'sendMigration()');
    await within(whole.done, WAIT_MS, 'the destination');
    for (const { here, there } of both) t.ok(here.read().equals(there.read()));

    const unasked = await resumed(false);
    t.match((await failure(unasked.done)).message, /option verify, which the source has set/);
    await t.rejects(unasked.sent);

    const { blocks } = await readMappedRam(out);
    const ram = blocks.find(({ name }) => name === 'ram');
    const fd = fs.openSync(out, 'r+');
    fs.writeSync(fd, Buffer.of(0xe6), 0, 1, (ram?.pagesOffset ?? 0) + 200 * PAGE + 17);
    fs.closeSync(fd);
    const spoiled = await resumed(true);
    const error = await failure(spoiled.done);
    t.equal(error.code, 'ERR_MULTIFD_VERIFY');
    t.match(error.message, /RAM block "ram", pages 128 to 255:/);
    await t.rejects(spoiled.sent);
  },
);

t.test('a relay passes it on', async (t) => {
  const both = pairs(t, 'shared');
  const it = await scene(t, {
    ...ends(both),
    through: (to) =>
      new Promise<Address>((resolve, reject) => {
        const listen = { host: '127.0.0.1', port: 0 };
        relayMigration({ listen, to, onListening: resolve }).catch(reject);
      }),
  });
  await within(it.destination.done, WAIT_MS, 'the destination');
  for (const { here, there } of both) t.ok(here.read().equals(there.read()));
});

// ---- a source made by hand ----

const blocksHere = [{ name: 'ram', size: SIZE, pageCount: PAGES }];

/** The section's body for memory of one block. */
function proofOf(ram: Buffer): Buffer {
  const chunks = new Chunks([ram.length]);
  const digests = Array.from({ length: chunks.count }, (_, i) => {
    const { offset, length } = chunks.at(i);
    return digestOf(ram, offset, length);
  });
  return Buffer.concat([encodeProofHead(blocksHere), ...digests]);
}

async function until(condition: () => boolean): Promise<void> {
  const waits = async (): Promise<void> => {
    while (!condition()) await new Promise((resolve) => setTimeout(resolve, 5));
  };
  await within(waits(), WAIT_MS, 'all pages');
}

/** @param tail sections, made from what the memory is */
async function byHand(
  t: Test,
  tail: (proof: Buffer) => DeviceState[],
  endsChannels = false,
  spoils = false,
): Promise<{ done: Promise<unknown>; notes: string[] }> {
  const notes: string[] = [];
  const there = makeStore(temporaryDirectory(t), 'ram', spoils ? 'file' : 'shared', SIZE).options;
  const destination = await createMigrationDestination({
    listen: { host: '127.0.0.1', port: 0 },
    machine: MACHINE,
    blocks: [there],
    verify: true,
    maxDeviceBytes: 0,
    start: () => void notes.push('start'),
  });
  t.teardown(() => destination.cancel());
  const main = net.connect(destination.address as net.NetConnectOpts);
  main.on('error', () => {}).resume();
  t.teardown(() => main.destroy());
  const configuration = { machine: MACHINE };
  const builder = new MainStreamBuilder(
    { configuration, blocks: [{ name: 'ram', usedLength: SIZE }], sectionId: 0, footers: true },
    { marker: 'flush', switchoverStart: true },
  );
  const here = new SharedArrayBuffer(SIZE);
  new Random(1).bytes(new Uint8Array(here));
  main.write(builder.setup([encodeCommand(COMMAND_OPEN_RETURN_PATH)]));
  const send = async (): Promise<void> => {
    const sender = await createSender({
      address: destination.address,
      blocks: [{ name: 'ram', memory: here }],
    });
    t.teardown(() => sender.close());
    await sender.sync();
    main.write(builder.endSection());
    main.write(builder.end());
    await sender.queueRange('ram', 0, SIZE);
    await sender.sync();
    if (endsChannels) await sender.end();
    if (spoils) await until(() => destination.stats().normalPages === PAGES);
    if (spoils) fs.truncateSync(there.file as string, SIZE - PAGE);
    main.write(builder.endSection());
    // Most likely they have seen the end by then.
    if (endsChannels) await new Promise((resolve) => setTimeout(resolve, 200));
    const states = tail(proofOf(Buffer.from(here)));
    for (const [i, state] of states.entries()) main.write(Buffer.concat(encodeDeviceSection(1 + i, state)));
    main.write(encodeEnd(states, configuration, PAGE));
  };
  send().catch((error: unknown) => t.fail('the source', { error }));
  return { done: destination.done, notes };
}

for (const endsChannels of [false, true]) {
  const when = endsChannels ? ', and has ended its channels before' : '';
  t.test(`a source that does it by the specification${when}: its guest is started`, async (t) => {
    const { done, notes } = await byHand(t, (data) => [{ device: PROOF_DEVICE, data }], endsChannels);
    await within(done, WAIT_MS, 'the destination');
    t.same(notes, ['start']);
  });
}

for (const endsChannels of [false, true]) {
  const when = endsChannels ? 'have ended' : 'are there';
  t.test(`a file that has become shorter by then is an error, while the channels ${when}`, async (t) => {
    const { done, notes } = await byHand(t, (data) => [{ device: PROOF_DEVICE, data }], endsChannels, true);
    t.match(await failure(done), { code: 'ERR_MULTIFD_IO', message: /RAM block "ram": bytes at/ });
    t.same(notes, []);
  });
}

const cut = (bytes: Buffer, at: number, value: number): Buffer => {
  const copy = Buffer.from(bytes);
  copy[at] = value;
  return copy;
};
const REFUSED: Record<string, [(proof: Buffer) => Buffer[], RegExp]> = {
  'no section': [() => [], /expected a section of "multifd-verify" 0/],
  'two of them': [(proof) => [proof, proof], /"multifd-verify" 0: sections: received a second one/],
  'a section of a byte less': [
    (proof) => [proof.subarray(1)],
    /bytes: received 111, expected 112.*option verify/,
  ],
  'a section of a byte more': [
    (proof) => [Buffer.concat([proof, Buffer.alloc(1)])],
    /bytes: received 113, expected 112/,
  ],
  'no blocks': [(proof) => [cut(proof, 3, 0)], /option verify: blocks: received 0, expected 1/],
  'another block': [
    (proof) => [cut(proof, 5, 0x1b)],
    /option verify: RAM block: received .*, expected one of "ram"/,
  ],
  'a longer name': [(proof) => [cut(proof, 4, 255)], /option verify: bytes: received 112, expected at least/],
  'a shorter name': [(proof) => [cut(proof, 4, 2)], /option verify: RAM block: received "ra"/],
  'another size': [(proof) => [cut(proof, 8, 0x80)], /option verify: size of RAM block "ram"/],
};
for (const [name, [bodies, message]] of Object.entries(REFUSED)) {
  t.test(`${name}: refused, and nothing is started`, async (t) => {
    const { done, notes } = await byHand(t, (proof) =>
      bodies(proof).map((data) => ({ device: PROOF_DEVICE, data })),
    );
    t.match(await failure(done), { code: 'ERR_MULTIFD_STREAM', message });
    t.same(notes, []);
  });
}

t.test('digests of which one is another: the guest is not started', async (t) => {
  const { done, notes } = await byHand(t, (proof) => [
    { device: PROOF_DEVICE, data: cut(proof, proof.length - 1, proof[proof.length - 1] ^ 1) },
  ]);
  t.match(await failure(done), { code: 'ERR_MULTIFD_VERIFY', message: /"ram", pages 256 to 299: SHA-256/ });
  t.same(notes, []);
});

t.test(
  'a section of any bytes is refused in order, and a great many differences are told in few words',
  async (t) => {
    const blocks = [
      { name: 'a', size: 2 ** 26, pageCount: 2 ** 14 },
      { name: 'b', size: PAGE, pageCount: 1 },
    ];
    const whole = Buffer.concat([encodeProofHead(blocks), Buffer.alloc(129 * 32)]);
    const here = Buffer.alloc(129 * 32);
    requireSame(blocks, here, whole);
    const random = new Random(4);
    for (let i = 0; i < 500; i++) {
      const bytes = Buffer.from(whole);
      for (let j = 0; j < 3; j++) bytes[random.below(40)] = random.below(256);
      try {
        requireSame(blocks, here, bytes);
      } catch (error) {
        const { code = String(error) } = error as { code?: string };
        if (code !== 'ERR_MULTIFD_STREAM' && code !== 'ERR_MULTIFD_VERIFY') t.fail(code);
      }
    }
    for (let chunk = 0; chunk < 128; chunk += 2) here[chunk * 32] = 1;
    here[128 * 32 + 31] = 1;
    t.throws(() => requireSame(blocks, here, whole), {
      code: 'ERR_MULTIFD_VERIFY',
      message:
        /: RAM block "a", pages 0 to 127; RAM block "a", pages 256 to 383; .* and 60 more ranges: SHA-256: received 01/,
    });
  },
);
