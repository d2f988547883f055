/** What libvirt has saved, sent: in each format, into a receiver of ours; cut, spoiled, and without what unpacks it. */
import { randomBytes } from 'node:crypto';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { Readable } from 'node:stream';
import zlib from 'node:zlib';
import t, { type Test } from 'tap';
import {
  type Address,
  type ReceivedMigration,
  type SendMigrationOptions,
  type SentMigration,
  describeMigrationFile,
  readMappedRam,
  receiveMigration,
  sendMigration,
} from '../../src/index.js';
import { ByteReader } from '../../src/stream/byte-reader.js';
import { readMainStream } from '../../src/stream/main-stream.js';
import type { MainItem } from '../../src/stream/records.js';
import { encodeEos, encodeFooter, encodePageRecord, encodeSection } from '../../src/stream/main-writer.js';
import { encodePong } from '../../src/stream/return-path.js';
import { FORMATS, HEAD, NAME, RAW, STREAM, UUID, imageOf, pack, readImage } from '../libvirt/images.js';
import { eventually } from '../support/raw-channel.js';
import { within } from '../support/within.js';
import { ramOf, tailOf } from './captures.js';
import { HandDestination, SHUT_0, SHUT_1 } from './peers.js';

const WAIT_MS = 20_000;
const PAGE = 4096;
const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'multifd-saved-'));
t.teardown(() => fs.rmSync(folder, { recursive: true, force: true }));
let files = 0;

function write(image: Buffer): string {
  const file = path.join(folder, `vm${files++}.save`);
  fs.writeFileSync(file, image);
  return file;
}

interface Moved {
  sent: SentMigration;
  received: ReceivedMigration;
  out: string;
}

async function move(file: string, options: Partial<SendMigrationOptions> = {}): Promise<Moved> {
  const out = path.join(folder, `vm${files++}.mig`);
  let listen!: (address: Address) => void;
  const listening = new Promise<Address>((resolve) => (listen = resolve));
  const abort = new AbortController();
  const receiving = receiveMigration({
    address: 'tcp:127.0.0.1:0',
    out,
    onListening: listen,
    signal: abort.signal,
  });
  receiving.catch(() => {});
  try {
    const to = await listening;
    const sent = await within(sendMigration({ file, to, ...options }), WAIT_MS, 'sendMigration()');
    return { sent, received: await within(receiving, WAIT_MS, 'receiveMigration()'), out };
  } catch (error) {
    abort.abort();
    await receiving.catch(() => {});
    throw error;
  }
}

/** The RAM of the raw image: what it comes out as, once. */
const plain = await move(write(RAW));
const RAM = await ramOf(plain.out);
const TAIL = await tailOf(plain.out);

t.test('a raw image: all of its pages, its devices, its uuid, and what libvirt says of it', async (t) => {
  const { sent, received, out } = plain;
  t.match(sent, {
    machine: 'pc-i440fx-9.2',
    libvirt: { name: NAME, uuid: UUID, format: 'raw', wasRunning: false },
    records: { pages: 114, zeroPages: 4112 },
    channelBytes: 0,
  });
  t.equal(received.uuid, UUID, 'the channels have said it');
  t.equal(received.returnPath, true);
  t.same((await readMappedRam(out)).problems, []);
  // Its head is plain: the reset vector's jump at the end of the BIOS.
  const bios = await ramOf(out, 'pc.bios');
  t.equal(bios[bios.length - 16], 0xea);
  t.ok(STREAM.includes(bios.subarray(-PAGE)), 'a page of the file, byte for byte');
  // Up to the description, where a mapped-ram file has its capability.
  t.ok(STREAM.includes(TAIL.subarray(0, TAIL.indexOf('{"') - 4)), 'the devices as the file has them');
});

for (const format of FORMATS.slice(1, -1)) {
  t.test(`an image packed by ${format} is sent as the raw one is`, async (t) => {
    const packed = pack(format, STREAM);
    if (packed === undefined) {
      t.comment(`program ${format} is not to be had here`);
      const file = write(imageOf(format, STREAM));
      await t.rejects(move(file), { code: 'ERR_MULTIFD_RUNTIME', message: new RegExp(`package ${format}`) });
      return;
    }
    const file = write(imageOf(format, packed));
    const { sent, out } = await move(file);
    t.equal(sent.libvirt?.format, format);
    t.ok((await ramOf(out)).equals(RAM), 'RAM');
    t.ok((await tailOf(out)).equals(TAIL), 'devices');
    const described = await describeMigrationFile(file);
    t.match(described, { kind: 'main-stream', pageRecords: 114, libvirt: { format, name: NAME } });
    t.match(described, { problem: undefined });
  });
}

t.test('an image packed by lzop is unpacked by that program, as libvirt does it', async (t) => {
  const bin = t.testdir({});
  // What it has packed only itself unpacks; here another program stands in for it, and says what it was called with.
  const script = `#!/bin/sh\necho "$@" > ${bin}/args\nexec gzip -dc\n`;
  fs.writeFileSync(path.join(bin, 'lzop'), script, { mode: 0o755 });
  const { PATH } = process.env;
  process.env.PATH = `${bin}:${PATH}`;
  t.teardown(() => (process.env.PATH = PATH));
  const { sent, out } = await move(write(imageOf('lzop', zlib.gzipSync(STREAM, { level: 1 }))));
  t.equal(sent.libvirt?.format, 'lzop');
  t.ok((await ramOf(out)).equals(RAM), 'RAM');
  t.equal(fs.readFileSync(path.join(bin, 'args'), 'utf8'), '-dc\n');
});

t.test('data that is packed otherwise than the head says is refused, whichever unpacks it', async (t) => {
  const kinds = ['gzip', 'xz', 'zstd'].map((format): [string, Buffer | undefined] => [
    format,
    pack(format, STREAM),
  ]);
  kinds.push(['sparse', readImage('sparse').subarray(HEAD.length)]);
  for (const said of FORMATS) {
    for (const [is, data] of kinds) {
      if (is === said || data === undefined) continue;
      const file = write(imageOf(said, data));
      await t.rejects(move(file), { code: /^ERR_MULTIFD_(STREAM|EOF|RUNTIME)$/ }, `said ${said}, is ${is}`);
      fs.rmSync(file);
    }
  }
});

t.test('a sparse image is a mapped-ram file behind its head, sent over the channels', async (t) => {
  const file = write(readImage('sparse'));
  const { sent, received, out } = await move(file);
  t.match(sent, { libvirt: { format: 'sparse', name: NAME }, records: undefined });
  t.ok(sent.channelBytes > 16 * 2 ** 20);
  t.equal(received.uuid, UUID);
  const described = await describeMigrationFile(file);
  t.match(described, { kind: 'mapped-ram', offset: HEAD.length, problems: [], libvirt: { name: NAME } });
  // Saved a moment later, in the same BIOS.
  t.ok((await ramOf(out, 'pc.bios')).equals(await ramOf(plain.out, 'pc.bios')));
});

t.test('a page that comes twice ends as it came last, in a section of its own as well', async (t) => {
  const items: MainItem[] = [];
  for await (const item of readMainStream(new ByteReader(Readable.from([STREAM])))) items.push(item);
  const sections = items.filter((item) => item.kind === 'section');
  const id = sections[0].sectionId;
  const page = (fill: number): Buffer =>
    Buffer.concat([encodePageRecord('pc.ram', 8 * PAGE, false), Buffer.alloc(PAGE, fill)]);
  const end = Buffer.concat([encodeEos(), encodeFooter(id)]);
  const zero = Buffer.concat([Buffer.from('0000000000009002', 'hex'), Buffer.from('\x06pc.ram\0', 'latin1')]);
  const more = [page(1), Buffer.concat([page(2), zero, page(3)])].map((body) =>
    Buffer.concat([encodeSection('part', id), body, end]),
  );
  for (const [where, i] of [
    ['before the rest', sections[1].at],
    ['behind it', sections[sections.length - 1].at],
  ] as const) {
    const stream = Buffer.concat([STREAM.subarray(0, i), ...more, STREAM.subarray(i)]);
    const { out } = await move(write(imageOf('gzip', zlib.gzipSync(stream))));
    const expected = Buffer.from(RAM);
    if (where === 'behind it') {
      expected.fill(3, 8 * PAGE, 9 * PAGE);
      expected.fill(0, 9 * PAGE, 10 * PAGE);
    }
    t.ok((await ramOf(out)).equals(expected), where);
  }
});

t.test('an older destination has its sync points at each EOS, and the guest is the same', async (t) => {
  const { out } = await move(write(RAW), { peer: '7.2' });
  t.ok((await ramOf(out)).equals(RAM));
});

t.test('padding behind the end, plain or packed, is not sent', async (t) => {
  const padded = Buffer.concat([STREAM, Buffer.alloc(200_000, 0xa5)]);
  for (const image of [imageOf('raw', padded), imageOf('gzip', zlib.gzipSync(padded))]) {
    const { out } = await move(write(image));
    t.ok((await tailOf(out)).equals(TAIL));
    t.equal((await readMappedRam(out)).unreadBytes, 0);
  }
});

/** Spoilt where the checksum alone tells it, in the trailer, which is far behind the end of the stream. */
const spoilt = zlib.gzipSync(Buffer.concat([STREAM, randomBytes(2 ** 21)]), { level: 1 });
spoilt[spoilt.length - 6] ^= 1;
const packed = zlib.gzipSync(STREAM);

const BROKEN: [name: string, image: Buffer, code: string, message: RegExp][] = [
  [
    'cut in its RAM',
    imageOf('raw', STREAM.subarray(0, STREAM.length >> 1)),
    'ERR_MULTIFD_EOF',
    /save image, unpacked ended at byte/,
  ],
  [
    'cut in its devices',
    imageOf('raw', STREAM.subarray(0, -TAIL.length + 5000)),
    'ERR_MULTIFD_EOF',
    /the file may be cut/,
  ],
  ['packed and cut', imageOf('gzip', packed.subarray(0, -5000)), 'ERR_MULTIFD_STREAM', /its end is missing/],
  ['packed, with a wrong checksum', imageOf('gzip', spoilt), 'ERR_MULTIFD_STREAM', /incorrect data check/],
  ['said to be gzip, and raw', imageOf('gzip', STREAM), 'ERR_MULTIFD_STREAM', /no whole gzip/],
  ['said to be xz, and raw', imageOf('xz', STREAM), 'ERR_MULTIFD_STREAM', /program xz: received exit code 1/],
  ['said to be raw, and gzip', imageOf('raw', packed), 'ERR_MULTIFD_STREAM', /magic/],
  [
    'not finished',
    Buffer.concat([Buffer.from('LibvirtQemudPart'), RAW.subarray(16)]),
    'ERR_MULTIFD_STREAM',
    /Part/,
  ],
  [
    'a mapped-ram file that is said to be raw',
    imageOf('raw', readImage('sparse').subarray(HEAD.length)),
    'ERR_MULTIFD_STREAM',
    /mapped-ram: received on/,
  ],
];

for (const [name, image, code, message] of BROKEN) {
  t.test(`${name}: refused, and no destination has the guest`, async (t) => {
    const file = write(image);
    const before = fs.readdirSync(folder).length;
    await t.rejects(move(file), { name: 'MultifdError', code, message });
    t.equal(fs.readdirSync(folder).length, before, 'the receiver has kept nothing');
    const described = describeMigrationFile(file);
    if (/^(cut|packed|a mapped)/.test(name))
      t.match(await described, { problem: { code, message } }, 'inspect says the same');
    else await t.rejects(described, { name: 'MultifdError' });
  });
}

t.test('a program that says nothing more is ended when it has been silent for too long', async (t) => {
  const bin = t.testdir({});
  const pid = path.join(bin, 'pid');
  fs.writeFileSync(path.join(bin, 'xz'), `#!/bin/sh\necho $$ > ${pid}\nexec sleep 60\n`, { mode: 0o755 });
  const { PATH } = process.env;
  process.env.PATH = `${bin}:${PATH}`;
  t.teardown(() => (process.env.PATH = PATH));
  const file = write(imageOf('xz', STREAM));
  await t.rejects(move(file, { stallTimeoutMs: 500 }), {
    code: 'ERR_MULTIFD_STALL',
    message: /program xz has unpacked nothing for 500 ms/,
  });
  const id = Number(fs.readFileSync(pid, 'utf8'));
  t.throws(() => process.kill(id, 0), { code: 'ESRCH' }, 'it is gone');
});

t.test('a program that is not there is named, with its package', async (t) => {
  const { PATH } = process.env;
  process.env.PATH = t.testdir({});
  t.teardown(() => (process.env.PATH = PATH));
  await t.rejects(move(write(imageOf('xz', STREAM))), {
    code: 'ERR_MULTIFD_RUNTIME',
    message: /expected program xz to unpack it: install it \(Debian: package xz-utils\)/,
  });
});

t.test('directIo is for sparse images alone', async (t) => {
  await t.rejects(move(write(RAW), { directIo: true }), {
    code: 'ERR_MULTIFD_STREAM',
    message: /directIo: received a save image of libvirt in format raw, expected format sparse/,
  });
});

t.test(
  'an abort, or a destination that refuses, ends it; a SHUT 0 that comes early is refused',
  async (t) => {
    const file = write(RAW);
    const scene = async (t: Test, act: (destination: HandDestination, abort: AbortController) => void) => {
      const destination = await HandDestination.listen(t);
      const abort = new AbortController();
      const sending = sendMigration({ file, to: destination.address, signal: abort.signal });
      sending.catch(() => {});
      await destination.has(STREAM.length - 1000);
      act(destination, abort);
      return { destination, sending };
    };
    const one = await scene(t, (_, abort) => abort.abort(new Error('enough')));
    await t.rejects(within(one.sending, WAIT_MS, 'sendMigration()'), { code: 'ERR_MULTIFD_ABORTED' });
    await eventually(() => one.destination.open === 0, 'every connection is closed');
    const two = await scene(t, (destination) => destination.main.write(SHUT_1));
    await t.rejects(within(two.sending, WAIT_MS, 'sendMigration()'), { code: 'ERR_MULTIFD_STREAM' });
    const three = await scene(t, (destination) => destination.main.write(SHUT_0));
    t.match(await within(three.sending, WAIT_MS, 'sendMigration()'), { records: { pages: 114 } });
    const early = await HandDestination.listen(t);
    early.onChannel = () => early.main.write(SHUT_0);
    await t.rejects(within(sendMigration({ file, to: early.address }), WAIT_MS, 'sendMigration()'), {
      message: /SHUT 0: received before the devices' state/,
    });
    await eventually(() => early.open === 0, 'every connection is closed');
  },
);

t.test('a destination that reads nothing stalls the migration, whatever it says meanwhile', async (t) => {
  const items: MainItem[] = [];
  for await (const item of readMainStream(new ByteReader(Readable.from([STREAM])))) items.push(item);
  const [{ sectionId }, { at }] = items.filter((item) => item.kind === 'section');
  const page = Buffer.concat([encodePageRecord('pc.ram', 0, false), Buffer.alloc(PAGE, 1)]);
  // More than sockets hold.
  const pages = Array<Buffer>(6000).fill(page);
  const more = [encodeSection('part', sectionId), ...pages, encodeEos(), encodeFooter(sectionId)];
  const file = write(imageOf('raw', Buffer.concat([STREAM.subarray(0, at), ...more, STREAM.subarray(at)])));
  const destination = await HandDestination.listen(t);
  destination.onChannel = () => destination.main.pause();
  const saying = setInterval(() => destination.main?.write(encodePong(0)), 50);
  t.teardown(() => clearInterval(saying));
  const sending = sendMigration({ file, to: destination.address, stallTimeoutMs: 500 });
  await t.rejects(within(sending, WAIT_MS, 'sendMigration()'), {
    code: 'ERR_MULTIFD_STALL',
    message: /nothing has moved/,
  });
});
