/** The hint beside a file: what is kept in it, what goes ahead because of it, and one that is of no use. */
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import t, { type Test } from 'tap';
import { readMappedRam, sendMigration, type PostcopyOptions, type PostcopyResult } from '../../src/index.js';
import { MAX_HOT_PAGES, checkOf } from '../../src/postcopy/hot-file.js';
import { readBytes } from '../migration/captures.js';
import { eventually } from '../support/raw-channel.js';
import { within } from '../support/within.js';
import { PostcopyDestination } from './destination.js';

const WAIT_MS = 20_000;
const PAGE = 4096;
const RAM = 'pc.ram';
const LISTEN = 4;
const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'multifd-hot-'));
t.teardown(() => fs.rmSync(folder, { recursive: true, force: true }));
let files = 0;

/** Two of three pages are there, each with its number. */
async function newFile(): Promise<string> {
  const file = path.join(folder, `${files++}.mig`);
  fs.writeFileSync(file, readBytes('q100-mappedram-multifd.mig'));
  const block = (await readMappedRam(file)).blocks.find(({ name }) => name === RAM);
  if (block === undefined) throw new Error(`no ${RAM}`);
  const whole = fs.readFileSync(file);
  for (let page = 0; page < block.pageCount; page++) {
    const bit = 1 << (page & 7);
    const at = block.bitmapOffset + (page >> 3);
    if (page % 3 === 0) whole[at] &= ~bit;
    else whole[at] |= bit;
    if (page % 3 !== 0) whole.writeUInt32LE(page + 1, block.pagesOffset + page * PAGE);
  }
  fs.writeFileSync(file, whole);
  return file;
}

interface Start {
  destination: PostcopyDestination;
  result: PostcopyResult;
  /** How many records had come when the guest was told to listen. */
  early: number;
  warnings: string[];
}

/** @param asks for these pages of pc.ram while nothing else comes */
async function start(
  t: Test,
  file: string,
  asks: readonly number[],
  options: Partial<PostcopyOptions> = {},
): Promise<Start> {
  const destination = await PostcopyDestination.listen(t);
  const warnings: string[] = [];
  let early = NaN;
  destination.onCommand = (command) => {
    if (command === LISTEN) early = destination.records.length;
  };
  let free!: () => void;
  const result = sendMigration({
    mode: 'postcopy',
    file,
    to: destination.address,
    hot: true,
    maxBandwidth: 1,
    onSession: (session) => (free = () => (session.maxBandwidth = 0)),
    onWarning: (message) => warnings.push(message),
    ...options,
  });
  result.catch(() => {});
  await destination.runs();
  for (const page of asks) destination.request(RAM, page * PAGE);
  const has = (page: number): boolean => destination.records.some((record) => record.page === page);
  await eventually(() => asks.every(has), 'what was asked for');
  free();
  await Promise.race([result.then(() => {}), eventually(() => destination.isWhole, 'END')]);
  destination.shut(0);
  return { destination, result: await within(result, WAIT_MS, 'sendMigration()'), early, warnings };
}

const pagesOf = ({ destination }: Start, from: number, to?: number): number[] =>
  destination.records
    .slice(from, to)
    .filter(({ block }) => block === RAM)
    .map(({ page }) => page);

function checkWhole(t: Test, { destination, result }: Start): void {
  const keys = destination.records.map(({ block, page }) => `${block}/${page}`);
  t.equal(new Set(keys).size, keys.length, 'each page once');
  for (const { block, page, data } of destination.records) {
    if (block !== RAM || (data === undefined ? page % 3 === 0 : data.readUInt32LE(0) === page + 1)) continue;
    t.fail(`page ${page} is wrong`);
  }
  const present = result.blocks.reduce((sum, block) => sum + block.presentPages, 0);
  t.equal(destination.records.filter(({ data }) => data !== undefined).length, present, 'all of them');
}

t.test('what a guest asks for is kept, and goes out before the guest runs the next time', async (t) => {
  const file = await newFile();
  const mask = process.umask(0);
  const first = await start(t, file, [700, 300, 303, 500]).finally(() => process.umask(mask));
  t.equal(first.early, 0);
  checkWhole(t, first);
  t.equal(fs.statSync(`${file}.hot`).mode & 0o777, 0o600, 'for its owner alone, whatever the umask');
  t.match(JSON.parse(fs.readFileSync(`${file}.hot`, 'utf8')), {
    'multifd-hot': 1,
    pageSize: PAGE,
    pages: [[RAM, 700, 300, 303, 500]],
  });
  t.same(
    fs.readdirSync(folder).filter((name) => name.startsWith(path.basename(file))),
    [path.basename(file), `${path.basename(file)}.hot`],
    'and nothing else',
  );

  const second = await start(t, file, [801]);
  t.equal(second.early, 4, 'before the guest runs');
  t.same(pagesOf(second, 0, 4), [300, 303, 500, 700], 'in the order of the file, the absent one too');
  t.same(pagesOf(second, 4, 5), [801], 'what is asked for next');
  t.match(second.result.stats, { pagesHot: 4, pagesRequested: 1, pagesLeft: 0 });
  checkWhole(t, second);
  t.match(JSON.parse(fs.readFileSync(`${file}.hot`, 'utf8')), { pages: [[RAM, 700, 300, 303, 500, 801]] });
  t.same([...first.warnings, ...second.warnings], []);
});

t.test('without the option nothing is read, and nothing written', async (t) => {
  const file = await newFile();
  const none = await start(t, file, [700], { hot: false });
  t.notOk(fs.existsSync(`${file}.hot`));
  await start(t, file, [700]);
  const before = fs.readFileSync(`${file}.hot`);
  const again = await start(t, file, [500], { hot: false });
  t.equal(again.early, 0);
  t.match([none.result.stats, again.result.stats], [{ pagesHot: 0 }, { pagesHot: 0 }]);
  t.same(fs.readFileSync(`${file}.hot`), before);
});

t.test(
  'maxHot holds the start back no longer; the others go ahead of all that nobody asks for',
  async (t) => {
    const file = await newFile();
    const asked = Array.from({ length: 200 }, (_, i) => 3 * (200 - i) + 1);
    await start(t, file, asked);
    const bound = await start(t, file, [], { maxHot: 64 * PAGE });
    t.equal(bound.early, 64);
    checkWhole(t, bound);
    t.same(pagesOf(bound, 0, 200).sort(), asked.sort(), 'all 200 come first');
    const none = await start(t, file, [], { maxHot: 0 });
    t.equal(none.early, 0);
    t.same(pagesOf(none, 0, 200).sort(), asked, 'the same behind RUN');
  },
);

t.test('of huge pages all pages go ahead, one after the other', async (t) => {
  const file = await newFile();
  await start(t, file, [700, 20]);
  const second = await start(t, file, [], { hugePages: { [RAM]: 16 * PAGE }, maxHot: PAGE });
  t.equal(second.early, 16, 'one that has been begun is ended');
  t.same(
    pagesOf(second, 0, 16),
    Array.from({ length: 16 }, (_, i) => 16 + i),
  );
  t.same(pagesOf(second, 16, 17), [688], 'the other next');
  t.equal(second.result.stats.pagesHot, 32);
});

/** What may stand where the hint is expected. */
const USELESS: { [what: string]: [make: (hint: string) => void, message: RegExp] } = {
  'of another file': [
    (hint) => fs.writeFileSync(hint, fs.readFileSync(hint, 'utf8').replace(/sha256:.../, 'sha256:000')),
    /of another file, or of an earlier state/,
  ],
  'cut off': [(hint) => fs.truncateSync(hint, 100), /damaged/],
  'of a later version': [
    (hint) =>
      fs.writeFileSync(hint, fs.readFileSync(hint, 'utf8').replace('"multifd-hot":1', '"multifd-hot":2')),
    /not of version 1/,
  ],
  'of pages that the file cannot have': [
    (hint) => fs.writeFileSync(hint, fs.readFileSync(hint, 'utf8').replace(',700', ',7000000')),
    /pages that are not in the file/,
  ],
  'of pages that are no numbers': [
    (hint) => fs.writeFileSync(hint, fs.readFileSync(hint, 'utf8').replace(',700', ',"x"')),
    /pages that are not in the file/,
  ],
  'of a block that the file does not have': [
    (hint) => fs.writeFileSync(hint, fs.readFileSync(hint, 'utf8').replace(RAM, 'no.ram')),
    /a block that is not in the file/,
  ],
  'with a bit of it flipped': [
    (hint) => fs.writeFileSync(hint, fs.readFileSync(hint, 'utf8').replace(',700', ',708')),
    /it is damaged/,
  ],
  'that is another kind of JSON': [(hint) => fs.writeFileSync(hint, 'null'), /not of version 1/],
  'without pages': [
    (hint) => fs.writeFileSync(hint, fs.readFileSync(hint, 'utf8').replace(/"pages".*/, '"pages":7}')),
    /damaged/,
  ],
  'that is huge': [(hint) => fs.truncateSync(hint, 2 ** 40), /expected at most/],
  'that is a link': [
    (hint) => {
      fs.renameSync(hint, `${hint}.real`);
      fs.symlinkSync(`${hint}.real`, hint);
    },
    /it is a link/,
  ],
  'that is a folder': [
    (hint) => {
      fs.rmSync(hint);
      fs.mkdirSync(hint);
    },
    /no regular file/,
  ],
  'that is a pipe': [
    (hint) => {
      fs.rmSync(hint);
      execFileSync('mkfifo', [hint]);
    },
    /no regular file/,
  ],
};

for (const [what, [make, message]] of Object.entries(USELESS)) {
  t.test(`a hint ${what} is left aside with a warning, and the guest starts`, async (t) => {
    const file = await newFile();
    const hint = `${file}.hot`;
    await start(t, file, [700, 300]);
    make(hint);
    const again = await start(t, file, []);
    t.equal(again.early, 0);
    t.equal(again.warnings.length, 1);
    t.match(again.warnings[0], message);
    t.match(again.warnings[0], /\.hot" is left aside/);
    checkWhole(t, again);
  });
}

t.test('another park to the same name makes a hint stale, with the same pages too', async (t) => {
  const file = await newFile();
  await start(t, file, [700]);
  const { tailOffset } = await readMappedRam(file);
  const whole = fs.readFileSync(file);
  // In the devices' first bytes, behind the section's head.
  whole[(tailOffset as number) + 60] ^= 1;
  fs.writeFileSync(file, whole);
  const again = await start(t, file, []);
  t.match(again.warnings, [/earlier state/]);
});

t.test('what is not a hint is not replaced, nor what a link points to', async (t) => {
  const file = await newFile();
  const hint = `${file}.hot`;
  fs.writeFileSync(hint, 'a list of hot dogs');
  const foreign = await start(t, file, [700]);
  t.match(foreign.warnings, [/left aside/, /not kept: there is another file of this name/]);
  t.equal(fs.readFileSync(hint, 'utf8'), 'a list of hot dogs');
  fs.rmSync(hint);
  const target = path.join(folder, 'target');
  fs.writeFileSync(target, 'somebody');
  fs.symlinkSync(target, hint);
  const linked = await start(t, file, [700]);
  t.match(linked.warnings, [/it is a link/, /not kept: it is a link/]);
  t.equal(fs.readFileSync(target, 'utf8'), 'somebody');
  t.ok(fs.lstatSync(hint).isSymbolicLink());
});

t.test('a hint that cannot be kept is a warning', async (t) => {
  const there = path.join(folder, 'there');
  fs.mkdirSync(there);
  const file = path.join(there, 'vm.mig');
  fs.renameSync(await newFile(), file);
  const away = await start(t, file, [700], {
    onRunning: () => fs.renameSync(there, path.join(folder, 'elsewhere')),
  });
  t.match(away.warnings, [/not kept: .*ENOENT/]);
  t.equal(away.result.stats.state, 'completed');
});

t.test('a connection that breaks leaves a hint of what was asked for until then', async (t) => {
  const file = await newFile();
  const destination = await PostcopyDestination.listen(t);
  const abort = new AbortController();
  const result = sendMigration({
    mode: 'postcopy',
    file,
    to: destination.address,
    hot: true,
    maxBandwidth: 1,
    signal: abort.signal,
  });
  result.catch(() => {});
  await destination.runs();
  destination.request(RAM, 700 * PAGE);
  await eventually(() => destination.records.some(({ page }) => page === 700), 'the page');
  abort.abort();
  await t.rejects(within(result, WAIT_MS, 'the abort'), { code: 'ERR_MULTIFD_ABORTED' });
  t.match(JSON.parse(fs.readFileSync(`${file}.hot`, 'utf8')), { pages: [[RAM, 700]] });
});

t.test('a hint has a bound', async (t) => {
  const file = await newFile();
  await start(t, file, [700]);
  const hint = JSON.parse(fs.readFileSync(`${file}.hot`, 'utf8')) as Record<string, unknown>;
  // The same page over and over, and one more.
  hint.pages = [[RAM, ...Array<number>(MAX_HOT_PAGES).fill(700), 500]];
  hint.check = checkOf(hint.file, hint.pageSize, hint.pages);
  fs.writeFileSync(`${file}.hot`, JSON.stringify(hint));
  const again = await start(t, file, []);
  t.equal(again.early, 1);
});

t.test('options that are none are refused', async (t) => {
  const options = { mode: 'postcopy', file: 'x', to: 'unix:/nosuch.sock' } as const;
  await t.rejects(sendMigration({ ...options, hot: 'yes' as unknown as boolean }), {
    code: 'ERR_MULTIFD_OPTION',
    message: /option hot: given "yes", allowed true or false/,
  });
  await t.rejects(sendMigration({ ...options, maxHot: -1 }), {
    code: 'ERR_MULTIFD_OPTION',
    message: /option maxHot: given -1, allowed an integer from 0/,
  });
  await t.rejects(sendMigration({ ...options, onWarning: 7 as unknown as () => void }), {
    code: 'ERR_MULTIFD_OPTION',
  });
});
