/** What a destination refuses, and what either end refuses of its own options: in words that name what to change. */
import t from 'tap';
import {
  createMigrationDestination,
  createMigrationSource,
  type MigrationDestinationOptions,
  type MigrationSourceOptions,
} from '../../src/index.js';
import { within } from '../support/within.js';
import {
  MACHINE,
  PAGES,
  SIZE,
  WAIT_MS,
  failure,
  runsOnHere,
  runsThere,
  scene,
  type SceneOptions,
} from './scene.js';

const load = (): void => {};
const save = (): Buffer => Buffer.from('state');
const memory = (pages = PAGES): SharedArrayBuffer => new SharedArrayBuffer(pages * 4096);

const REFUSED: Record<string, [SceneOptions, RegExp]> = {
  'another machine': [
    { source: { machine: 'model-2.0' } },
    /^machine: received "model-2.0", expected "model-1.0" \(option machine\)/,
  ],
  'a block of another size': [
    { destination: { blocks: [{ name: 'ram', memory: memory(PAGES + 1) }] } },
    /^size of RAM block "ram": received 262144, expected 266240 \(option blocks/,
  ],
  'a block that is not here': [
    { destination: { blocks: [{ name: 'vram', memory: memory() }] } },
    /^RAM block: received "ram", expected one of "vram" \(option blocks/,
  ],
  'a block that is only here': [
    {
      destination: {
        blocks: [
          { name: 'ram', memory: memory() },
          { name: 'vram', memory: memory() },
        ],
      },
    },
    /^RAM blocks: received all, expected "vram" as well \(option blocks/,
  ],
  'another page size': [
    { source: { pageSize: 8192 } },
    /^target page size: received 8192, expected 4096 \(option pageSize/,
  ],
  'a device that is not here': [
    { destination: { devices: [{ idstr: 'cpu', instanceId: 1, load }] } },
    /^device: received "cpu" 0, expected one of "cpu" 1 \(option devices\)/,
  ],
  'a device where there is none': [
    { destination: { devices: [] } },
    /^device: received "cpu" 0, expected none \(option devices\)/,
  ],
  'a device that is missing': [
    {
      destination: {
        devices: [
          { idstr: 'cpu', load },
          { idstr: 'disk', load },
        ],
      },
    },
    /^devices' state: received its end, expected a section of "disk" 0 \(option devices\)/,
  ],
  'a device of a later version': [
    { source: { devices: [{ idstr: 'cpu', version: 2, save }] } },
    /^device "cpu" 0: version: received 2, expected at most 1 \(option devices\)/,
  ],
  'more state than is let in': [
    { destination: { maxDeviceBytes: 4 } },
    /^device "cpu" 0: bytes of its state: received 5, expected at most 4 more \(option maxDeviceBytes, 4 /,
  ],
  'a description that is too long': [
    { destination: { maxDescription: 10 } },
    /bytes of the VM description: received \d+, expected at most 10 \(option maxDescription/,
  ],
  'more RAM than is let in': [{ destination: { maxRam: SIZE - 1 } }, /option maxRam/],
  'another uuid': [
    { source: { uuid: '00112233-4455-6677-8899-aabbccddeeff' } },
    /uuid: received 00112233-4455-6677-8899-aabbccddeeff, expected/,
  ],
};

for (const [name, [options, message]] of Object.entries(REFUSED)) {
  t.test(`${name}: refused, nothing is loaded, and the source's guest runs on`, async (t) => {
    const it = await scene(t, options);
    const theirs = await failure(it.destination.done);
    t.match(theirs.message, message);
    t.match(theirs.code, /^ERR_MULTIFD_(STREAM|UUID)$/);
    await failure(it.source.done);
    t.equal(it.source.state, 'failed');
    t.equal(it.destination.state, 'failed');
    t.notOk(it.notes.some((note) => note.startsWith('load')));
    runsOnHere(t, it);
  });
}

t.test('of two devices the first is not loaded before the second is sound', async (t) => {
  const it = await scene(t, {
    source: {
      devices: [
        { idstr: 'cpu', save },
        { idstr: 'disk', version: 9, save },
      ],
    },
    destination: {
      devices: [
        { idstr: 'cpu', load: () => void it.notes.push('load') },
        { idstr: 'disk', load },
      ],
    },
  });
  await failure(it.destination.done);
  await failure(it.source.done);
  t.notOk(it.notes.includes('load'));
  runsOnHere(t, it);
});

t.test('a device of an earlier version is loaded, and told which', async (t) => {
  const versions: number[] = [];
  const it = await scene(t, {
    source: { devices: [{ idstr: 'cpu', version: 2, save }] },
    destination: {
      devices: [{ idstr: 'cpu', version: 7, load: (_, version) => void versions.push(version) }],
    },
  });
  await within(it.source.done, WAIT_MS, 'done');
  await it.destination.done;
  t.same(versions, [2]);
  runsThere(t, it);
});

t.test('acceptBlocks() is told the blocks, and gives those to fill', async (t) => {
  let there!: SharedArrayBuffer;
  const it = await scene(t, {
    destination: {
      blocks: undefined,
      acceptBlocks: async (offered) => {
        t.same(offered, [{ name: 'ram', size: SIZE }]);
        there = new SharedArrayBuffer(offered[0].size);
        return [{ name: 'ram', memory: there }];
      },
    } as Partial<MigrationDestinationOptions>,
  });
  await within(it.source.done, WAIT_MS, 'done');
  await it.destination.done;
  runsThere(t, { ...it, there });
});

t.test('acceptBlocks() that throws refuses the source', async (t) => {
  const it = await scene(t, {
    destination: {
      blocks: undefined,
      acceptBlocks: () => {
        throw new Error('no room');
      },
    } as Partial<MigrationDestinationOptions>,
  });
  const theirs = await failure(it.destination.done);
  t.match(theirs, { code: 'ERR_MULTIFD_HOOK', message: 'acceptBlocks() failed: no room' });
  await failure(it.source.done);
  runsOnHere(t, it);
});

const SOURCE: Record<string, [object, RegExp]> = {
  'no dirty pages': [{ dirty: null as never }, /^option dirty: given null, allowed bitmaps by the names/],
  'a bitmap of an unknown block': [
    { dirty: { rom: new Uint32Array(2) } },
    /^option dirty.rom: .* one of ram/,
  ],
  'a block without bitmap': [{ dirty: {} }, /^option dirty.ram: given undefined, allowed a Uint32Array/],
  'a bitmap of bytes': [{ dirty: { ram: new Uint8Array(8) } }, /^option dirty.ram: .* allowed a Uint32Array/],
  'a bitmap that is too short': [{ dirty: { ram: new Uint32Array(1) } }, /received 1, expected at least 2/],
  'no pause()': [{ pause: undefined }, /^option pause: given undefined, allowed a function/],
  'no resume()': [{ resume: 7 }, /^option resume: given 7, allowed a function/],
  'a machine without a name': [
    { machine: '' },
    /^option machine: given "", allowed 1 to 255 printable ASCII/,
  ],
  'a machine with a line feed': [{ machine: 'a\nb' }, /^option machine: given "a\\nb", allowed/],
  'another choice': [
    { notConverging: 'throttle' },
    /^option notConverging: given "throttle", allowed 'switchover'/,
  ],
  'zero pages of mode legacy': [{ zeroPageDetection: 'legacy' }, /allowed one of multifd, none|onZeroPages/],
  'ram as a device': [{ devices: [{ idstr: 'ram', save }] }, /^option devices\[0\].idstr: given "ram"/],
  'a device without save()': [{ devices: [{ idstr: 'cpu' }] }, /^option devices\[0\].save: given undefined/],
  'a device twice': [
    {
      devices: [
        { idstr: 'cpu', save },
        { idstr: 'cpu', save },
      ],
    },
    /^option devices: given "cpu\/0", allowed each idstr and instanceId once/,
  ],
  'a negative limit': [{ downtimeLimitMs: -1 }, /^option downtimeLimitMs: given -1/],
  'no round': [{ maxRounds: 0 }, /^option maxRounds: given 0/],
  'zero pages where no source of a VM looks for them': [
    { zeroPageDetection: 'legacy' },
    /^option zeroPageDetection: given "legacy", allowed /,
  ],
  'no time to connect': [{ connectTimeoutMs: null }, /^option connectTimeoutMs: given null/],
  'verify that is no flag': [{ verify: 'yes' }, /^option verify: given .*, allowed true or false/],
  'resumable that is no flag': [{ resumable: 1 }, /^option resumable: given 1, allowed true or false/],
  'resumable, and no dirty pages': [
    { resumable: true, dirty: undefined },
    /^option dirty: given undefined, allowed .*resumable/,
  ],
  'resumeFrom that is no source': [{ resumeFrom: {} }, /^option resumeFrom: given {}/],
  'resumeFrom that is a number': [{ resumeFrom: 1 }, /^option resumeFrom: given 1, allowed a source/],
  'stream that is no flag': [
    { devices: [{ idstr: 'cpu', save, stream: 5 }] },
    /^option devices\[0\].stream: given 5, allowed true or false/,
  ],
  'a misspelt one': [{ puase: load }, /did you mean pause\?/],
  'no address': [{ to: undefined }, /to/],
};

for (const [name, [options, message]] of Object.entries(SOURCE)) {
  t.test(`the source refuses ${name}, before it connects`, async (t) => {
    const given = {
      to: 'tcp:127.0.0.1:1',
      machine: MACHINE,
      blocks: [{ name: 'ram', memory: memory() }],
      dirty: () => [],
      pause: load,
      resume: load,
      ...options,
    } as MigrationSourceOptions;
    await t.rejects(createMigrationSource(given), { code: /^ERR_MULTIFD_(OPTION|BLOCK)$/, message });
  });
}

const DESTINATION: Record<string, [object, RegExp]> = {
  'neither blocks nor acceptBlocks': [{ blocks: undefined }, /allowed either blocks or acceptBlocks/],
  'both of them': [{ acceptBlocks: () => [] }, /allowed either blocks or acceptBlocks/],
  'no start()': [{ start: undefined }, /^option start: given undefined, allowed a function/],
  'a device without load()': [{ devices: [{ idstr: 'cpu', laod: load }] }, /did you mean load by laod\?/],
  'a version that is none': [{ devices: [{ idstr: 'cpu', version: 1.5, load }] }, /devices\[0\].version/],
  'no time to carry on': [
    { resumeTimeoutMs: 0 },
    /^option resumeTimeoutMs: given 0, allowed an integer from 1/,
  ],
  'a misspelt one': [{ machien: 'x' }, /did you mean machine\?/],
};

for (const [name, [options, message]] of Object.entries(DESTINATION)) {
  t.test(`the destination refuses ${name}, before it listens`, async (t) => {
    const given = {
      listen: { host: '127.0.0.1', port: 0 },
      machine: MACHINE,
      blocks: [{ name: 'ram', memory: memory() }],
      start: load,
      ...options,
    } as MigrationDestinationOptions;
    await t.rejects(createMigrationDestination(given), { code: 'ERR_MULTIFD_OPTION', message });
  });
}

t.test('options that are no object are refused by either', async (t) => {
  for (const given of [undefined, null, 7]) {
    await t.rejects(createMigrationSource(given as never), { code: 'ERR_MULTIFD_OPTION' });
    await t.rejects(createMigrationDestination(given as never), { code: 'ERR_MULTIFD_OPTION' });
  }
});
