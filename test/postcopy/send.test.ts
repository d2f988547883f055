/** Postcopy into a destination by hand: what goes out, in which order, and what is refused. */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import t, { type Test } from 'tap';
import {
  readMappedRam,
  sendMigration,
  type PostcopyOptions,
  type PostcopyResult,
  type PostcopySession,
} from '../../src/index.js';
import { readPageRuns } from '../../src/mapped-ram/pages.js';
import { readBytes } from '../migration/captures.js';
import { eventually } from '../support/raw-channel.js';
import { within } from '../support/within.js';
import { PostcopyDestination, type Ways } from './destination.js';

const WAIT_MS = 20_000;
const PAGE = 4096;
const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'multifd-postcopy-'));
t.teardown(() => fs.rmSync(folder, { recursive: true, force: true }));
const file = path.join(folder, 'qemu.mig');
fs.writeFileSync(file, readBytes('q100-mappedram-multifd.mig'));
await fillMore();
const bytes = fs.readFileSync(file);

/** A small guest has a handful of pages: two of three are, each with its number. */
async function fillMore(): Promise<void> {
  const block = (await readMappedRam(file)).blocks.find(({ name }) => name === 'pc.ram');
  if (block === undefined) throw new Error('no pc.ram');
  const whole = fs.readFileSync(file);
  for (let page = 0; page < block.pageCount - 20; page++) {
    if (page % 3 === 0) continue;
    whole[block.bitmapOffset + (page >> 3)] |= 1 << (page & 7);
    whole.writeUInt32LE(page, block.pagesOffset + page * PAGE);
  }
  fs.writeFileSync(file, whole);
}

interface Scene {
  destination: PostcopyDestination;
  result: Promise<PostcopyResult>;
  session: Promise<PostcopySession>;
  abort: AbortController;
}

async function scene(t: Test, options: Partial<PostcopyOptions> = {}, ways: Ways = {}): Promise<Scene> {
  const destination = await PostcopyDestination.listen(t, ways);
  const abort = new AbortController();
  let has!: (session: PostcopySession) => void;
  const session = new Promise<PostcopySession>((resolve) => (has = resolve));
  const result = sendMigration({
    mode: 'postcopy',
    file,
    to: destination.address,
    signal: abort.signal,
    onSession: has,
    ...options,
  });
  result.catch(() => {});
  return { destination, result, session, abort };
}

interface Known {
  name: string;
  present: Set<number>;
  pageCount: number;
  pagesOffset: number;
}

async function known(): Promise<Known[]> {
  const handle = await fs.promises.open(file);
  try {
    const all: Known[] = [];
    for (const block of (await readMappedRam(file)).blocks) {
      const present = new Set<number>();
      for await (const run of readPageRuns(handle, block)) {
        for (let i = 0; run.present && i < run.count; i++) present.add(run.page + i);
      }
      all.push({ name: block.name, present, pageCount: block.pageCount, pagesOffset: block.pagesOffset });
    }
    return all;
  } finally {
    await handle.close();
  }
}

async function finish({ destination, result }: Scene): Promise<PostcopyResult> {
  const failed = result.then(() => {});
  await Promise.race([failed, eventually(() => destination.isWhole, 'END')]);
  destination.shut(0);
  return within(result, WAIT_MS, 'sendMigration()');
}

/** Each page of the file once, with its bytes, and no other. */
async function checkPages(t: Test, { records }: PostcopyDestination, zeros = 0): Promise<void> {
  const blocks = await known();
  const seen = new Set<string>();
  for (const { block, page, data } of records) {
    const { present, pagesOffset } = blocks.find(({ name }) => name === block) as Known;
    const key = `${block}/${page}`;
    if (seen.has(key)) t.fail(`${key} twice`);
    seen.add(key);
    if (present.has(page) !== (data !== undefined))
      t.fail(`${key}: a page that is not there, or ZERO for one that is`);
    const at = pagesOffset + page * PAGE;
    if (data !== undefined && !data.equals(bytes.subarray(at, at + PAGE))) t.fail(`${key}: other bytes`);
  }
  const all = blocks.reduce((sum, { present }) => sum + present.size, 0);
  t.equal(seen.size, all + zeros, 'all pages of the file, each once');
}

t.test('each page that the file has goes out once, and nothing else; SHUT 0 ends it', async (t) => {
  const it = await scene(t);
  const { stats } = await finish(it);
  await checkPages(t, it.destination);
  t.match(stats, { state: 'completed', pagesLeft: 0, pagesRequested: 0, zeroPages: 0 });
});

t.test(
  'what is asked for comes first, its neighbourhood next; an absent page is ZERO; again is dropped',
  async (t) => {
    // The background waits for ages.
    const it = await scene(t, { maxBandwidth: 1 });
    const { destination } = it;
    await destination.runs();
    const [ram] = (await known()).filter(({ present }) => present.size > 200);
    const pages = [...ram.present];
    const last = pages[pages.length - 1];
    let absent = ram.pageCount - 1;
    while (ram.present.has(absent)) absent--;
    const before = destination.records.length;
    destination.request(ram.name, last * PAGE);
    destination.request(undefined, absent * PAGE);
    destination.request(undefined, last * PAGE);
    const has = (page: number): boolean =>
      destination.records.slice(before).some((record) => record.block === ram.name && record.page === page);
    await eventually(() => has(last) && has(absent), 'both are there while the background waits');
    const session = await it.session;
    t.match(session.stats(), { pagesRequested: 2, zeroPages: 1 });
    t.ok(session.stats().pagesLeft > 0, 'others are not');
    const at = destination.records.length;
    session.maxBandwidth = 0;
    const { stats } = await finish(it);
    await checkPages(t, destination, 1);
    t.equal(stats.pagesRequested, 2);
    t.equal(stats.requestsRepeated, 1);
    t.ok(destination.records.length > at);
  },
);

t.test('all pages of a huge page go out one after the other, absent ones as ZERO', async (t) => {
  const blocks = await known();
  const huge = blocks.find(({ pageCount, present }) => pageCount % 16 === 0 && present.size > 200) as Known;
  const it = await scene(t, { hugePages: { [huge.name]: 16 * PAGE } });
  const { stats } = await finish(it);
  const records = it.destination.records.filter(({ block }) => block === huge.name);
  t.equal(records.length % 16, 0);
  let wrong = 0;
  for (const [i, { page }] of records.entries()) if (page % 16 !== i % 16) wrong++;
  t.equal(wrong, 0, 'host page by host page');
  t.equal(new Set(records.map(({ page }) => page)).size, records.length, 'each once');
  t.equal(records.filter(({ data }) => data !== undefined).length, huge.present.size);
  t.equal(stats.zeroPages, records.length - huge.present.size);
  const advise = it.destination.commands.find(({ command }) => command === 3);
  t.equal(advise?.data.readBigUInt64BE(0), BigInt(17 * PAGE), 'all page sizes are told');
});

const HOSTILE: { [what: string]: (destination: PostcopyDestination) => void } = {
  'outside its block': (it) => it.request('pc.ram', 2 ** 40),
  'of no block': (it) => it.request('nosuch', 0),
  'of a block that was never named': (it) => it.request(undefined, 0),
  'that is not aligned': (it) => it.request('pc.ram', 1),
  'of no bytes': (it) => it.request('pc.ram', 0, 0),
  'of two pages': (it) => it.request('pc.ram', 0, 2 * PAGE),
  'of a whole block': (it) => it.request('pc.ram', 0, 2 ** 32 - PAGE),
  'that is cut': (it) => it.say(4, Buffer.alloc(5)),
  'for a bitmap that nobody asked for': (it) => it.say(5, Buffer.from('\x06pc.ram')),
  'with an end before the last page': (it) => it.shut(0),
  'of an unknown type': (it) => it.say(9, Buffer.alloc(0)),
};

for (const [what, act] of Object.entries(HOSTILE)) {
  t.test(`a message ${what} is refused, and the guest is left to be recovered`, async (t) => {
    const it = await scene(t, { maxBandwidth: 1 });
    await it.destination.runs();
    act(it.destination);
    const error = await within(
      it.result.then(
        () => undefined,
        (thrown: unknown) => thrown,
      ),
      WAIT_MS,
      'the refusal',
    );
    t.match(error, { code: 'ERR_MULTIFD_POSTCOPY_PAUSED', cause: { code: 'ERR_MULTIFD_PROTOCOL' } });
    t.notOk(it.destination.isWhole, 'and never ended as if all were there');
  });
}

t.test('a SHUT 0 of a destination that was not told to run its guest is refused', async (t) => {
  const it = await scene(t, {}, { silent: [3] });
  await eventually(() => it.destination.isWhole, 'END');
  it.destination.shut(0);
  await t.rejects(within(it.result, WAIT_MS, 'the refusal'), {
    code: 'ERR_MULTIFD_PROTOCOL',
    message: /SHUT 0: received before PONG 3, expected after it; the destination has not said that it loaded/,
  });
});

t.test('requests without end cost no memory, and do not keep a stalled migration alive', async (t) => {
  const it = await scene(t, { stallTimeoutMs: 1500 }, { stops: true });
  await it.destination.runs();
  let sent = 0;
  const flood = setInterval(() => {
    for (let i = 0; i < 100 && !it.destination.socket.destroyed; i++, sent++)
      it.destination.request('pc.ram', 0);
  }, 5);
  t.teardown(() => clearInterval(flood));
  await t.rejects(within(it.result, WAIT_MS, 'the end'), {
    message: /postcopy-paused|completed|nothing has moved|done/,
  });
  clearInterval(flood);
});

t.test('a peer that is gone, and an abort, by where the guest is', async (t) => {
  const before = await scene(t, {}, { silent: [2] });
  await eventually(() => before.destination.commands.some(({ command }) => command === 3), 'ADVISE');
  before.destination.socket.destroy();
  await t.rejects(within(before.result, WAIT_MS, 'before RUN'), {
    message: /POSTCOPY_ADVISE: is capability postcopy-ram on/,
  });

  const aborted = await scene(t, {}, { silent: [2] });
  await eventually(() => aborted.destination.commands.some(({ command }) => command === 3), 'ADVISE');
  aborted.abort.abort(new Error('enough'));
  await t.rejects(within(aborted.result, WAIT_MS, 'abort'), {
    code: 'ERR_MULTIFD_ABORTED',
    message: /has not been started/,
  });
  t.notOk(aborted.destination.commands.some(({ command }) => command === 5));

  const after = await scene(t, { maxBandwidth: 1 });
  await after.destination.runs();
  await eventually(() => after.destination.records.length > 0, 'pages');
  after.destination.socket.destroy();
  await t.rejects(within(after.result, WAIT_MS, 'after RUN'), {
    code: 'ERR_MULTIFD_POSTCOPY_PAUSED',
    message: /migrate-recover/,
  });
});

t.test('a peer that is gone when it has been told to run, and has not answered', async (t) => {
  const it = await scene(t, {}, { silent: [3] });
  await it.destination.runs();
  const { state } = (await it.session).stats();
  t.equal(state, 'starting');
  it.destination.socket.destroy();
  await t.rejects(within(it.result, WAIT_MS, 'the error'), {
    code: 'ERR_MULTIFD_CONNECTION',
    message:
      /has not said that it loaded the devices.*query-migrate there says postcopy-paused: then.*--recover/,
  });
});

t.test('recover asks for each bitmap, resumes, and sends what is missing alone', async (t) => {
  const blocks = await known();
  const it = await scene(t, { recover: true });
  const { destination } = it;
  const [ram] = blocks.filter(({ present }) => present.size > 200);
  destination.onCommand = (command, data) => {
    if (command === 10) {
      const name = data.toString('latin1', 1);
      const { pageCount, present } = blocks.find((block) => block.name === name) as Known;
      const bitmap = Buffer.alloc(8 * Math.ceil(pageCount / 64));
      // The destination has every second one.
      for (const page of present) if (page % 2 === 0) bitmap[page >> 3] |= 1 << (page & 7);
      destination.say(5, data);
      const size = Buffer.alloc(8);
      size.writeBigUInt64BE(BigInt(bitmap.length));
      destination.socket.write(Buffer.concat([size, bitmap, Buffer.from('0123456789abcdef', 'hex')]));
    }
    if (command === 9) destination.say(6, Buffer.from([0, 0, 0, 1]));
  };
  await finish(it);
  t.equal(destination.commands.filter(({ command }) => command === 10).length, blocks.length);
  const odd = [...ram.present].filter((page) => page % 2 === 1);
  t.same(
    destination.records.filter(({ block }) => block === ram.name).map(({ page }) => page),
    odd,
  );
});

t.test(
  'a bitmap of another size is refused before anything is sent, and the guest stays paused',
  async (t) => {
    const it = await scene(t, { recover: true });
    it.destination.onCommand = (command, data) => {
      if (command !== 10) return;
      it.destination.say(5, data);
      it.destination.socket.write(Buffer.from('0000ffffffffffff', 'hex'));
    };
    await t.rejects(within(it.result, WAIT_MS, 'the refusal'), {
      code: 'ERR_MULTIFD_PROTOCOL',
      message: /RECV_BITMAP.*stays postcopy-paused/,
    });
    t.equal(it.destination.records.length, 0);
  },
);

t.test('a file that becomes shorter is told, and the stream not ended', async (t) => {
  const cut = path.join(folder, 'cut.mig');
  fs.copyFileSync(file, cut);
  const it = await scene(t, { file: cut, maxBandwidth: 1 });
  await it.destination.runs();
  const session = await it.session;
  // By the destination's PONG: before it nobody here knows that the guest runs.
  await eventually(() => session.stats().state === 'running', 'that the guest runs');
  fs.truncateSync(cut, 2 ** 20);
  session.maxBandwidth = 0;
  await t.rejects(within(it.result, WAIT_MS, 'the error'), {
    code: 'ERR_MULTIFD_POSTCOPY_PAUSED',
    message: /has become shorter/,
  });
  t.notOk(it.destination.isWhole);
});

t.test('options of channels are refused, and modes that are none', async (t) => {
  const options = {
    mode: 'postcopy',
    file,
    to: 'unix:/nosuch.sock',
    channels: 2,
  } as unknown as PostcopyOptions;
  await t.rejects(sendMigration(options), {
    code: 'ERR_MULTIFD_OPTION',
    message: /channels.*one plain connection/,
  });
  await t.rejects(sendMigration({ ...options, mode: 'other' } as unknown as PostcopyOptions), {
    message: /option mode: given "other", allowed 'precopy' or 'postcopy'/,
  });
});

t.test('a file that cannot be read while the guest runs is not said to go on as it is', async (t) => {
  const copy = path.join(t.testdir({}), 'vm.mig');
  fs.copyFileSync(file, copy);
  const { destination, result } = await scene(t, { file: copy, maxBandwidth: 1 });
  await destination.runs();
  const block = (await readMappedRam(copy)).blocks.find(({ name }) => name === 'pc.ram');
  if (block === undefined) throw new Error('no pc.ram');
  const page = block.pageCount - 22;
  fs.truncateSync(copy, block.pagesOffset + page * PAGE);
  destination.request('pc.ram', page * PAGE);
  destination.request('pc.ram', (page + 1) * PAGE);
  const error = (await within(
    result.then(
      () => undefined,
      (thrown: unknown) => thrown,
    ),
    WAIT_MS,
    'the end',
  )) as Error & { code: string };
  t.equal(error.code, 'ERR_MULTIFD_POSTCOPY_PAUSED');
  t.match(
    error.message,
    /could not be read from the file.*goes on only when they can, or with a sound copy of it/,
  );
  t.notMatch(error.message, /nothing is lost/);
});
