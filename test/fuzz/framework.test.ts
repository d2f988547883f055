/** The fuzzers themselves: each kind of fault, planted, is found, told, and made small; what is no fault is none. */
import { spawnSync } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { MultifdError } from '../../src/index.js';
import { Fault, bytes, cut, json, u16, u32, u8, type Fuzzer, type Target } from './contract.js';
import { applyEdits, type Edit } from './edits.js';
import { minimise } from './minimise.js';
import { allFuzzers } from './register.js';
import { FuzzRun } from './run.js';

const SEED = 7;
const RUNS = 400;

function planted(run: Target['run'], more: Partial<Fuzzer> = {}): Fuzzer {
  return {
    name: 'planted',
    what: '',
    runs: RUNS,
    most: { bytes: 4096, perByte: 4 },
    seeds: () => [[u32(0x11223344), u16(5), bytes(Buffer.from('fives')), u8(1)]],
    open: () => ({ run }),
    ...more,
  };
}

const refuse = (): never => {
  throw new MultifdError('ERR_MULTIFD_STREAM', 'refused');
};

t.test('what is refused by a MultifdError, and what is taken, is no fault', async (t) => {
  const run = await FuzzRun.open(planted((input) => (input[0] === 0x11 ? undefined : refuse())));
  t.equal(await run.seeds(), undefined);
  t.equal(await run.batch(SEED, RUNS), undefined);
  t.equal(run.inputs, RUNS + 1);
  t.ok(run.refused > 0 && run.refused < RUNS);
});

t.test('seeds that are all refused are a fault: such a fuzzer gets nowhere', async (t) => {
  const run = await FuzzRun.open(planted(refuse));
  t.match(await run.seeds(), { why: 'found: no seed is taken' });
});

const wrong = (): never => {
  throw new TypeError('wrong');
};
const length = (input: Buffer): number => (input.length < 6 ? 0 : input.readUInt16BE(4));

const FAULTS: [what: string, run: Target['run'], why: string][] = [
  [
    'an error of another kind',
    (input) => void Buffer.alloc(8).readUInt32BE(length(input) > 300 ? 9 : 0),
    'thrown: RangeError',
  ],
  [
    'a promise that rejects with one',
    async (input) => void (length(input) > 300 && wrong()),
    'thrown: TypeError',
  ],
  [
    'a Fault that the fuzzer has seen',
    (input) => {
      if (length(input) > 300) throw new Fault('wrote beside');
    },
    'found: wrote beside',
  ],
  [
    'memory by a length that nobody has checked',
    (input) => void Buffer.allocUnsafe(length(input)),
    'buffers: ',
  ],
];

for (const [what, run, why] of FAULTS) {
  t.test(`${what} is found, by a length that edits have set, and comes back small`, async (t) => {
    const found = await (await FuzzRun.open(planted(run))).batch(SEED, 5 * RUNS);
    t.equal(found?.why.slice(0, why.length), why);
    t.equal(found?.input.length, 6, 'all but the length is left out');
  });
}

t.test('what is thrown where nobody can catch it is the fault of the input under way', async (t) => {
  const run = await FuzzRun.open(
    planted(() => new Promise<void>(() => setImmediate(() => run.takeStray(new Error('in a handler'))))),
  );
  t.match(await run.try(Buffer.from('a')), /thrown: .*nobody caught it: Error: in a handler/s);
  t.equal(run.takeStray(new Error('afterwards')), false);
});

t.test('time and memory are held against their limits where there are any', async (t) => {
  const busy = planted(() => {
    for (const end = performance.now() + 30; performance.now() < end;);
  });
  t.equal(await (await FuzzRun.open(busy)).try(Buffer.from('a')), undefined);
  t.match(await (await FuzzRun.open(busy, { cpuMs: 1 })).try(Buffer.from('a')), /^time: /);
  const large = planted(() => void new Uint8Array(2 ** 26).fill(1));
  const peak = process.resourceUsage().maxRSS * 1024;
  const hog = Buffer.alloc(Math.max(0, Math.min(2 ** 29, peak - process.memoryUsage.rss())), 1);
  t.match(await (await FuzzRun.open(large, { growthBytes: 2 ** 24 })).try(Buffer.from('a')), /^memory: /);
  t.ok(hog.length >= 0);
});

t.test('the corpus is run file by file, and the file that fails is named', async (t) => {
  const folder = t.testdir({});
  mkdirSync(path.join(folder, 'planted'));
  for (const name of ['a', 'b']) writeFileSync(path.join(folder, 'planted', name), name);
  const run = await FuzzRun.open(planted((input) => void (input.toString() === 'b' && wrong())));
  t.match(await run.corpus(folder), { file: path.join(folder, 'planted', 'b'), why: /^thrown: / });
  t.equal(await run.corpus(path.join(folder, 'none')), undefined);
});

t.test('one seed makes the same inputs every time, another seed others', async (t) => {
  const seen = async (seed: number): Promise<string> => {
    const inputs: string[] = [];
    const run = await FuzzRun.open(planted((input) => void inputs.push(input.toString('hex'))));
    await run.batch(seed, 50);
    return inputs.join();
  };
  t.equal(await seen(1), await seen(1));
  t.not(await seen(1), await seen(2));
});

t.test('delta debugging leaves what it takes to fail, and as many zeros as may be', async (t) => {
  const input = Buffer.from(Array.from({ length: 500 }, (_, i) => i));
  const small = await minimise(
    input,
    async (candidate) => candidate.includes(77) && candidate.indexOf(200) > candidate.indexOf(77),
  );
  t.same([...small], [77, 200]);
  const zeroed = await minimise(
    Buffer.from('0000 abc'),
    async (candidate) => candidate.length > 3 && candidate[3] !== 0x30,
  );
  t.equal(zeroed.length, 4);
});

const STOCK = {
  seeds: [[u16(0x0102), bytes(Buffer.from('abc')), u32(3)]],
  words: [Buffer.from('W')],
  maxBytes: 64,
};
const EDITS: [edit: Edit, hex: string][] = [
  [{ kind: 'set', at: 0, value: 0xffffn }, 'ffff 616263 00000003'],
  [{ kind: 'set', at: 1, value: 2n ** 32n }, '0102 616263 00000000'],
  [{ kind: 'add', at: 1, value: -4 }, '0102 616263 ffffffff'],
  [{ kind: 'copy', at: 0, from: 2 }, '0003 616263 00000003'],
  [{ kind: 'flip', at: 1, bit: 8 }, '0102 616363 00000003'],
  [{ kind: 'remove', at: 1, count: 9 }, '0102'],
  [{ kind: 'double', at: 1, count: 1 }, '0102 616263 616263 00000003'],
  [{ kind: 'swap', at: 1, with: 2 }, '0102 00000003 616263'],
  [{ kind: 'splice', at: 1, seed: 0, from: 2, count: 3 }, '0102 00000003 616263 00000003'],
  [{ kind: 'word', at: 1, word: 5, instead: true }, '0102 57 00000003'],
  [{ kind: 'word', at: 1, word: 5, instead: false }, '0102 57 616263 00000003'],
  [{ kind: 'pile', at: 1, times: 2 }, '0102 616263616263 616263 00000003'],
  [{ kind: 'cut', at: 3 }, '0102 61'],
  [{ kind: 'poke', at: 1, data: Uint8Array.of(9), instead: true }, '0102 610963 00000003'],
  [{ kind: 'poke', at: 1, data: Uint8Array.of(9), instead: false }, '0102 61096263 00000003'],
];

for (const [edit, hex] of EDITS) {
  t.test(
    `an edit: ${JSON.stringify(edit, (_, value: unknown) => (typeof value === 'bigint' ? String(value) : value))}`,
    async (t) => {
      t.equal(applyEdits({ seed: 0, edits: [edit] }, STOCK).toString('hex'), hex.replaceAll(' ', ''));
    },
  );
}

t.test('an input is no longer than it may be, and numbers have either byte order', async (t) => {
  const long = applyEdits({ seed: 0, edits: [{ kind: 'pile', at: 1, times: 20_000 }] }, STOCK);
  t.equal(long.length, 64);
  const little = { ...STOCK, seeds: [cut(Buffer.from('01000000', 'hex'), ['-4'])] };
  const added = applyEdits({ seed: 0, edits: [{ kind: 'add', at: 0, value: 1 }] }, little);
  t.equal(added.toString('hex'), '02000000');
});

t.test('JSON is cut so that a value can be another one, and keys stay what they are', async (t) => {
  const text = '{"a": [1, "b:c", -2.5e3, true, null], "d" : {}}';
  const pieces = json(text);
  t.equal(pieces.map(({ bytes }) => bytes.toString()).join(''), text);
  t.same(
    pieces.filter(({ kind }) => kind === 'value').map(({ bytes }) => bytes.toString()),
    ['1', '"b:c"', '-2.5e3', 'true', 'null'],
  );
});

t.test('each fuzzer has a name of its own, a seed, and bounds', async (t) => {
  const fuzzers = await allFuzzers();
  t.equal(new Set(fuzzers.map(({ name }) => name)).size, fuzzers.length);
  for (const { name, what, most } of fuzzers)
    t.ok(/^[a-z\d-]+$/.test(name) && what !== '' && most.bytes > 0, name);
});

t.test(
  'npm run fuzz lists what there is, runs one by its name, and refuses a name that there is not',
  async (t) => {
    const main = fileURLToPath(new URL('main.js', import.meta.url));
    const fuzz = (...args: string[]): { status: number | null; stdout: string; stderr: string } =>
      spawnSync(process.execPath, [main, ...args], { encoding: 'utf8', timeout: 60_000 });
    const names = (await allFuzzers()).map(({ name }) => name);
    const listed = fuzz('--list').stdout.trim().split('\n');
    t.same(
      listed.map((line) => line.split(' ')[0]),
      names,
    );
    t.match(fuzz('hello', '--seed', '9', '--batches', '2'), {
      status: 0,
      stdout: /^hello: 100\d inputs.*seeds 9 to 11$/m,
    });
    t.match(fuzz('helo'), { status: 2, stderr: 'no fuzzer helo' });
  },
);
