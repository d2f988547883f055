/** The file that a migration is received into: whose it is, who may read it, and when it has its name. */
import { spawn, execFileSync, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import { open, type FileHandle } from 'node:fs/promises';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { receiveMigration, type Address, type ReceiveMigrationOptions } from '../../src/index.js';
import { OutputFile } from '../../src/migration/output-file.js';
import { within } from '../support/within.js';
import { eventually } from '../support/raw-channel.js';
import { CAPTURES, PC_RAM, play, ramOf, streamsOf } from './captures.js';

const WAIT_MS = 20_000;
const capture = CAPTURES[0];
const streams = streamsOf(capture);
const RETURN_PATH = Buffer.from('0800010000', 'hex');
const SHUT_0 = '000100' + '0400000000';

function folder(t: Test): string {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'multifd-output-'));
  t.teardown(() => fs.rmSync(directory, { recursive: true, force: true }));
  return directory;
}

interface Listening {
  address: Address;
  result: ReturnType<typeof receiveMigration>;
}

async function receive(out: string, more: Partial<ReceiveMigrationOptions> = {}): Promise<Listening> {
  let result!: Listening['result'];
  const address = await new Promise<Address>((resolve, reject) => {
    const onListening = resolve;
    result = receiveMigration({ address: { port: 0 }, channels: 2, out, onListening, ...more });
    result.catch(reject);
  });
  return { address, result };
}

/** OPEN_RETURN_PATH behind the configuration: header 8, 07, length, name. */
function askedMain(): Buffer {
  const { main } = streams;
  const configured = 8 + 1 + 4 + main.readUInt32BE(9);
  return Buffer.concat([main.subarray(0, configured), RETURN_PATH, main.subarray(configured)]);
}

/** Connections that stay open behind all that they send, as those of a source that waits to be told. */
async function playAndWait(t: Test, address: Address): Promise<{ sockets: net.Socket[]; back: Buffer[] }> {
  const back: Buffer[] = [];
  const sockets: net.Socket[] = [];
  for (const [index, bytes] of [askedMain(), ...streams.channels].entries()) {
    const socket = net.connect(address as net.NetConnectOpts).on('error', () => {});
    sockets.push(socket);
    socket.on('data', (chunk) => index === 0 && back.push(chunk));
    socket.write(bytes);
  }
  t.teardown(() => sockets.forEach((socket) => socket.destroy()));
  return { sockets, back };
}

/** Calls `before` in place of the n-th fsync from now on: 1 is the file's, 2 its folder's. */
async function atSync(
  t: Test,
  n: number,
  before: (sync: () => Promise<void>) => Promise<void>,
): Promise<void> {
  const handle = await open(os.tmpdir(), 'r');
  const prototype = Object.getPrototypeOf(handle) as FileHandle;
  await handle.close();
  // eslint-disable-next-line @typescript-eslint/unbound-method -- it is called with the handle's `this`
  const { sync } = prototype;
  let count = 0;
  prototype.sync = function (this: FileHandle) {
    count++;
    return count === n ? before(() => sync.call(this)) : sync.call(this);
  };
  t.teardown(() => (prototype.sync = sync));
}

// ---- whose file ----

t.test('a second receiver of one file is refused while the first lives, overwrite or not', async (t) => {
  const out = path.join(folder(t), 'vm.mig');
  const first = await receive(out);
  for (const overwrite of [false, true]) {
    await t.rejects(receiveMigration({ address: { port: 0 }, out, overwrite }), {
      code: 'ERR_MULTIFD_IO',
      message: /is being received by another process/,
    });
  }
  await play(first.address, streams);
  await within(first.result, WAIT_MS, 'the first one');
  t.ok((await ramOf(out)).equals(PC_RAM));
  t.same(fs.readdirSync(path.dirname(out)), ['vm.mig'], 'lock and partial file are gone');
  const again = await receive(out, { overwrite: true });
  await play(again.address, streams);
  await within(again.result, WAIT_MS, 'a later one');
});

/** As a killed receiver leaves it: a socket that nobody listens on. */
async function deadLock(out: string): Promise<void> {
  const server = net.createServer().listen(`${out}.away`);
  await once(server, 'listening');
  fs.renameSync(`${out}.away`, `${out}.lock`);
  server.close();
  await once(server, 'close');
}

t.test('of several that take over a dead lock at once one gets it', async (t) => {
  const out = path.join(folder(t), 'vm.mig');
  for (let round = 0; round < 10; round++) {
    await deadLock(out);
    const taken = await Promise.allSettled(Array.from({ length: 4 }, () => OutputFile.make(out, true)));
    const got = taken.filter((one) => one.status === 'fulfilled');
    t.equal(got.length, 1, `round ${round}`);
    for (const one of taken) {
      if (one.status === 'rejected') t.match(one.reason, { message: /is being received by another process/ });
    }
    for (const one of got) await one.value.giveUp();
    t.same(fs.readdirSync(path.dirname(out)), [], 'nothing is left');
  }
});

t.test('a relative path means the same file wherever the process goes', async (t) => {
  const [before, elsewhere] = [folder(t), folder(t)];
  const cwd = process.cwd();
  t.teardown(() => process.chdir(cwd));
  process.chdir(before);
  const { address, result } = await receive('vm.mig', { onStart: () => process.chdir(elsewhere) });
  await play(address, streams);
  await within(result, WAIT_MS, 'receive');
  t.same(fs.readdirSync(before), ['vm.mig']);
  t.same(fs.readdirSync(elsewhere), []);
});

t.test(
  'a path too long for a socket has its lock beside it, and keeps a second one out as well',
  async (t) => {
    const out = path.join(folder(t), 'x'.repeat(120), 'vm.mig');
    fs.mkdirSync(path.dirname(out));
    const first = await OutputFile.make(out, false);
    t.same(fs.readdirSync(path.dirname(out)), ['vm.mig.lock', 'vm.mig.part']);
    await t.rejects(OutputFile.make(out, true), { message: /is being received by another process/ });
    await first.giveUp();
    await (await OutputFile.make(out, false)).giveUp();
    t.same(fs.readdirSync(path.dirname(out)), []);
  },
);

t.test('a folder that is reached by a link, or by a longer path, has the same lock', async (t) => {
  const directory = folder(t);
  const long = path.join(directory, 'y'.repeat(120));
  fs.symlinkSync(directory, long);
  const first = await OutputFile.make(path.join(directory, 'vm.mig'), false);
  await t.rejects(OutputFile.make(path.join(long, 'vm.mig'), true), {
    message: /is being received by another/,
  });
  await first.giveUp();
});

t.test('what is no lock is not taken for one', async (t) => {
  const out = path.join(folder(t), 'vm.mig');
  fs.writeFileSync(`${out}.lock`, 'mine');
  await t.rejects(OutputFile.make(out, true), { code: 'ERR_MULTIFD_IO', message: /is no socket.*remove it/ });
  t.equal(fs.readFileSync(`${out}.lock`, 'utf8'), 'mine');
});

t.test('pages go into the file that was made, not into what has its name by now', async (t) => {
  const out = path.join(folder(t), 'vm.mig');
  const { address, result } = await receive(out, {
    onStart: () => {
      fs.rmSync(`${out}.part`);
      fs.writeFileSync(`${out}.part`, Buffer.alloc(1024));
    },
  });
  await play(address, streams);
  await t.rejects(within(result, WAIT_MS, 'receive'), {
    code: 'ERR_MULTIFD_IO',
    message: /is another file by now/,
  });
  t.ok(
    fs.readFileSync(`${out}.part`).equals(Buffer.alloc(1024)),
    'not written to, not removed, not promoted',
  );
  t.notOk(fs.existsSync(out));
});

t.test('OUT.part that is a link is not followed', async (t) => {
  const out = path.join(folder(t), 'vm.mig');
  const target = `${out}.target`;
  fs.writeFileSync(target, 'precious');
  fs.symlinkSync(target, `${out}.part`);
  await t.rejects(OutputFile.make(out, false), {
    code: 'ERR_MULTIFD_IO',
    message: /exists, and whoever made it/,
  });
  await t.rejects(OutputFile.make(out, true), { code: 'ERR_MULTIFD_IO', message: /is a link/ });
  t.equal(fs.readFileSync(target, 'utf8'), 'precious');
});

t.test('only regular files are overwritten; of a link it is the link that is replaced', async (t) => {
  const directory = folder(t);
  const pipe = path.join(directory, 'pipe');
  execFileSync('mkfifo', [pipe]);
  const socket = path.join(directory, 'socket');
  const server = net.createServer().listen(socket);
  await once(server, 'listening');
  t.teardown(() => server.close());
  for (const [out, what] of [
    [pipe, /is a pipe/],
    [socket, /is a socket/],
    ['/dev/null', /is a device/],
    [directory, /is a directory/],
  ] as const) {
    for (const overwrite of [false, true]) {
      await t.rejects(OutputFile.make(out, overwrite), { code: 'ERR_MULTIFD_IO', message: what });
    }
  }
  const target = path.join(directory, 'target');
  const link = path.join(directory, 'link');
  fs.writeFileSync(target, 'precious');
  fs.symlinkSync(target, link);
  const { address, result } = await receive(link, { overwrite: true });
  await play(address, streams);
  await within(result, WAIT_MS, 'receive');
  t.ok(fs.lstatSync(link).isFile());
  t.equal(fs.readFileSync(target, 'utf8'), 'precious');
});

// ---- who may read it ----

t.test("a guest's memory is its owner's alone, whatever the umask and whatever it replaces", async (t) => {
  for (const umask of [0o000, 0o022, 0o277]) {
    const out = path.join(folder(t), 'vm.mig');
    fs.writeFileSync(out, 'older');
    fs.chmodSync(out, 0o666);
    const before = process.umask(umask);
    t.teardown(() => process.umask(before));
    let partial = 0;
    const { address, result } = await receive(out, {
      overwrite: true,
      onStart: () => (partial = fs.statSync(`${out}.part`).mode & 0o777),
    });
    process.umask(before);
    await play(address, streams);
    await within(result, WAIT_MS, 'receive');
    t.equal(partial, 0o600, `partial, umask ${umask.toString(8)}`);
    t.equal(fs.statSync(out).mode & 0o777, 0o600, 'final');
  }
});

// ---- the moment ----

for (const how of ['an abort', 'garbage on a channel', 'a page behind the last SYNC'] as const) {
  for (const step of [1, 2]) {
    const when = step === 1 ? 'before the rename' : 'after the rename';
    t.test(`${how} ${when}: the call, the source and the disk agree`, async (t) => {
      const out = path.join(folder(t), 'vm.mig');
      const abort = new AbortController();
      const { address, result } = await receive(out, { signal: abort.signal });
      const { sockets, back } = await playAndWait(t, address);
      await atSync(t, step, async (sync) => {
        if (how === 'an abort') abort.abort(new Error('enough'));
        else if (how === 'garbage on a channel') sockets[1].write(Buffer.alloc(2000, 0x41));
        else sockets[1].write(packetOfData(streams.channels[0]));
        await new Promise((resolve) => setTimeout(resolve, 100));
        await sync();
      });
      if (how === 'an abort' && step === 1) {
        await t.rejects(within(result, WAIT_MS, 'receive'), { code: 'ERR_MULTIFD_ABORTED' });
        t.same(fs.readdirSync(path.dirname(out)), []);
        t.notOk(Buffer.concat(back).toString('hex').endsWith(SHUT_0), 'the source was not told');
        return;
      }
      await within(result, WAIT_MS, 'receive');
      t.ok((await ramOf(out)).equals(PC_RAM), 'RAM is what it was at the last SYNC');
      await eventually(() => Buffer.concat(back).toString('hex').endsWith(SHUT_0), 'the source is told');
      t.same(fs.readdirSync(path.dirname(out)), ['vm.mig']);
    });
  }
}

/** The first packet that has pages, its payload turned over. */
function packetOfData(channel: Buffer): Buffer {
  for (let at = 64; at < channel.length;) {
    const pages = channel.readUInt32BE(at + 16);
    const end = at + 1344 + pages * 4096;
    if (pages > 0) {
      const packet = Buffer.from(channel.subarray(at, end));
      for (let i = 1344; i < packet.length; i++) packet[i] ^= 0xff;
      return packet;
    }
    at = end;
  }
  throw new Error('the capture has no page');
}

t.test(
  'an abort while the whole file goes to disk: a source that has given its guest up loses nothing',
  async (t) => {
    const out = path.join(folder(t), 'vm.mig');
    const abort = new AbortController();
    const { address, result } = await receive(out, { signal: abort.signal });
    await atSync(t, 1, async (sync) => {
      abort.abort(new Error('enough'));
      await sync();
    });
    await play(address, streams);
    await t.rejects(within(result, WAIT_MS, 'receive'), {
      code: 'ERR_MULTIFD_ABORTED',
      message: /; the whole file is kept as .*vm\.mig\.part$/,
      kept: `${out}.part`,
    });
    t.same(fs.readdirSync(path.dirname(out)), ['vm.mig.part']);
    t.ok((await ramOf(`${out}.part`)).equals(PC_RAM));
  },
);

t.test('a disk that needs longer than stallTimeoutMs is not a source that stalls', async (t) => {
  const out = path.join(folder(t), 'vm.mig');
  const { address, result } = await receive(out, { stallTimeoutMs: 600 });
  await atSync(t, 1, async (sync) => {
    await sleep(1500);
    await sync();
  });
  await play(address, streams);
  await within(result, WAIT_MS, 'receive');
  t.ok((await ramOf(out)).equals(PC_RAM));
});

t.test('a source that ends its main stream before it is told: its name is taken back', async (t) => {
  const out = path.join(folder(t), 'vm.mig');
  const { address, result } = await receive(out);
  let sockets: net.Socket[] = [];
  await atSync(t, 2, async (sync) => {
    t.ok(fs.existsSync(out), 'it has its name');
    sockets[0].end();
    await once(sockets[0], 'finish');
    await sync();
  });
  const source = await playAndWait(t, address);
  sockets = source.sockets;
  await t.rejects(within(result, WAIT_MS, 'receive'), {
    code: 'ERR_MULTIFD_CONNECTION',
    message: /^the source closed its main stream before it was told; the whole file is kept as/,
  });
  t.equal(Buffer.concat(source.back).includes(Buffer.from(SHUT_0, 'hex')), false, 'it was not told');
  t.same(fs.readdirSync(path.dirname(out)), ['vm.mig.part']);
});

t.test('a file that somebody replaced is not said to be kept', async (t) => {
  const out = path.join(folder(t), 'vm.mig');
  const { address, result } = await receive(out);
  await atSync(t, 1, async (sync) => {
    fs.rmSync(`${out}.part`);
    fs.writeFileSync(`${out}.part`, 'mine');
    await sync();
  });
  await play(address, streams);
  await t.rejects(within(result, WAIT_MS, 'receive'), {
    code: 'ERR_MULTIFD_IO',
    message: /another file by now: somebody replaced it; the whole file is lost: what is .* now is not it/,
  });
  t.equal(fs.readFileSync(`${out}.part`, 'utf8'), 'mine');
});

t.test('a source that keeps its connection open behind the end does not keep the call', async (t) => {
  const out = path.join(folder(t), 'vm.mig');
  const { address, result } = await receive(out);
  const closed: Promise<unknown>[] = [];
  for (const bytes of [streams.main, ...streams.channels]) {
    const socket = net.connect({ ...(address as net.TcpNetConnectOpts), allowHalfOpen: true });
    t.teardown(() => socket.destroy());
    socket.on('error', () => {});
    socket.resume();
    closed.push(once(socket, 'end'));
    socket.end(bytes);
  }
  await within(result, WAIT_MS, 'receive');
  await within(Promise.all(closed), WAIT_MS, 'its connections are closed');
});

t.test("a folder's fsync that is not known here costs nothing", async (t) => {
  const out = path.join(folder(t), 'vm.mig');
  const { address, result } = await receive(out);
  await atSync(t, 2, () => Promise.reject(Object.assign(new Error('not here'), { code: 'EINVAL' })));
  await play(address, streams);
  await within(result, WAIT_MS, 'receive');
  t.ok((await ramOf(out)).equals(PC_RAM));
});

t.test("a folder's fsync that fails: the name is taken back, the source is not told", async (t) => {
  const out = path.join(folder(t), 'vm.mig');
  const { address, result } = await receive(out);
  await atSync(t, 2, () => Promise.reject(Object.assign(new Error('disk'), { code: 'EIO' })));
  const { back } = await playAndWait(t, address);
  await t.rejects(within(result, WAIT_MS, 'receive'), {
    code: 'ERR_MULTIFD_IO',
    message: /kept as .*\.part/,
  });
  t.same(fs.readdirSync(path.dirname(out)), ['vm.mig.part']);
  t.ok((await ramOf(`${out}.part`)).equals(PC_RAM));
  t.notOk(Buffer.concat(back).toString('hex').endsWith(SHUT_0));
});

t.test('a name that came into being meanwhile is not taken; what is whole is kept', async (t) => {
  const out = path.join(folder(t), 'vm.mig');
  const { address, result } = await receive(out, { onStart: () => fs.writeFileSync(out, 'precious') });
  await play(address, streams);
  await t.rejects(within(result, WAIT_MS, 'receive'), {
    code: 'ERR_MULTIFD_IO',
    message: /exists already.*kept as/,
  });
  t.equal(fs.readFileSync(out, 'utf8'), 'precious');
  t.ok((await ramOf(`${out}.part`)).equals(PC_RAM), 'the source without return path has given its guest up');
});

// ---- killed ----

/** Receives in a process of its own, which stands still at the n-th fsync (0: at the first bytes). */
async function receiveElsewhere(
  t: Test,
  out: string,
  step: number,
): Promise<{ child: ChildProcess; address: Address }> {
  const script = `
    import { open } from 'node:fs/promises';
    const { receiveMigration } = await import(${JSON.stringify(new URL('../../src/index.js', import.meta.url).href)});
    const handle = await open('.', 'r');
    const prototype = Object.getPrototypeOf(handle);
    const { sync } = prototype;
    let count = 0;
    prototype.sync = function () {
      if (++count !== ${step}) return sync.call(this);
      console.log('there');
      return new Promise(() => {});
    };
    await receiveMigration({
      address: { port: 0 }, out: ${JSON.stringify(out)},
      onListening: (address) => console.log(JSON.stringify(address)),
      onStart: () => ${step} === 0 && console.log('there'),
    });`;
  const child = spawn(process.execPath, ['--input-type=module', '-e', script], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  t.teardown(() => child.kill('SIGKILL'));
  let said = '';
  child.stdout.on('data', (chunk: Buffer) => (said += chunk.toString()));
  await eventually(() => said.includes('\n'), 'it listens');
  const address = JSON.parse(said.slice(0, said.indexOf('\n'))) as Address;
  const { sockets } = await play(address, streams);
  t.teardown(() => sockets.forEach((socket) => socket.destroy()));
  await eventually(() => said.includes('there'), 'it is there');
  return { child, address };
}

for (const [step, when, left] of [
  [0, 'while pages come', 'vm.mig.part'],
  [1, 'before the rename', 'vm.mig.part'],
  [2, 'after the rename', 'vm.mig'],
] as const) {
  t.test(`killed ${when}: what is left is told from what lives, and taken over`, async (t) => {
    const out = path.join(folder(t), 'vm.mig');
    const { child } = await receiveElsewhere(t, out, step);
    await t.rejects(
      OutputFile.make(out, true),
      { message: /is being received by another process/ },
      'it lives',
    );
    const gone = once(child, 'exit');
    child.kill('SIGKILL');
    await gone;
    t.same(
      fs.readdirSync(path.dirname(out)).filter((name) => !name.endsWith('.lock')),
      [left],
    );
    if (step === 2) t.ok((await ramOf(out)).equals(PC_RAM), 'whole');
    const message = step === 2 ? /exists already/ : /whoever made it has ended/;
    await t.rejects(OutputFile.make(out, false), { code: 'ERR_MULTIFD_IO', message });
    const { address, result } = await receive(out, { overwrite: true });
    await play(address, streams);
    await within(result, WAIT_MS, 'receive');
    t.ok((await ramOf(out)).equals(PC_RAM));
    t.same(fs.readdirSync(path.dirname(out)), ['vm.mig']);
  });
}
