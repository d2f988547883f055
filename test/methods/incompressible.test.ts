/**
 * Pages that travel as they are: how they are told, and that what the sending halves make of them decodes, packet by packet,
 * with every receiving half and with decoders that know nothing of this project.
 */
import crypto from 'node:crypto';
import { once } from 'node:events';
import fs from 'node:fs';
import zlib from 'node:zlib';
import { Decompress } from 'fzstd';
import t from 'tap';
import { inBlocks, isIncompressible } from '../../src/methods/incompressible.js';
import type { ReceiveMethod, SendMethod } from '../../src/methods/contract.js';
import { createZlibReceiver, createZlibSender } from '../../src/methods/zlib.js';
import { createZstdReceiver, createZstdSender, zstdBackends } from '../../src/methods/zstd.js';
import { Random } from '../support/random.js';

const PAGE = 4096;
/** How a frame of raw blocks begins. */
const RAW_FRAME = Buffer.from('28b52ffd0048', 'hex');

function count(bytes: Buffer, size: number): number {
  let told = 0;
  for (let at = 0; at + size <= bytes.length; at += size) if (isIncompressible(bytes, at, size)) told++;
  return told;
}

t.test('random pages are told, of every page size', (t) => {
  for (const size of [4096, 16384, 65536]) {
    const pages = 500;
    const bytes = Buffer.alloc(pages * size);
    new Random(size).bytes(bytes);
    t.ok(count(bytes, size) >= pages * 0.99, `${count(bytes, size)} of ${pages} pages of ${size}`);
  }
  t.end();
});

t.test('compressed bytes are told as well', (t) => {
  const node = fs.readFileSync(process.execPath).subarray(0, 2 ** 23);
  const bytes = zlib.deflateRawSync(node, { level: 6 });
  const pages = Math.floor(bytes.length / PAGE);
  t.ok(count(bytes, PAGE) > pages * 0.8, `${count(bytes, PAGE)} of ${pages}`);
  t.end();
});

t.test('what a codec makes smaller is not', (t) => {
  const node = fs.readFileSync(process.execPath).subarray(2 ** 24, 2 ** 25);
  // Of program bytes, those pages that are told must gain hardly anything.
  let told = 0;
  let saved = 0;
  for (let at = 0; at < node.length; at += PAGE) {
    if (!isIncompressible(node, at, PAGE)) continue;
    told += PAGE;
    saved += PAGE - Math.min(PAGE, zlib.deflateRawSync(node.subarray(at, at + PAGE), { level: 1 }).length);
  }
  t.ok(saved <= told * 0.1, `${saved} of ${told} bytes could have been saved, of ${node.length}`);

  const pages: Record<string, (i: number) => number> = {
    zeroes: () => 0,
    ones: () => 0xff,
    'a ramp': (i) => i & 0xff,
    'a slow ramp': (i) => (i >>> 4) & 0xff,
    'words that count up': (i) => ((i & 3) === 0 ? i >>> 2 : 0) & 0xff,
    'random hexadecimal digits': (i) => 0x30 + (crypto.createHash('md5').update(String(i)).digest()[0] & 15),
  };
  for (const [name, byte] of Object.entries(pages)) {
    const bytes = Buffer.from(Array.from({ length: PAGE }, (_, i) => byte(i)));
    t.notOk(isIncompressible(bytes, 0, PAGE), name);
  }
  const half = crypto.randomBytes(PAGE).fill(0, PAGE / 2);
  t.notOk(isIncompressible(half, 0, PAGE), 'half a page of random bytes');
  t.end();
});

t.test('blocks are cut at their size, whatever the pieces', (t) => {
  const random = new Random(3);
  for (let round = 0; round < 200; round++) {
    const pieces = Array.from({ length: 1 + random.below(5) }, () =>
      Buffer.alloc(1 + random.below(40), random.below(256)),
    );
    const all = Buffer.concat(pieces);
    const limit = 1 + random.below(50);
    const headers: [number, boolean][] = [];
    const mark = Buffer.from('|');
    const out = inBlocks(pieces, limit, (bytes, last) => {
      headers.push([bytes, last]);
      return mark;
    });
    const bodies: Buffer[] = [];
    for (const piece of out) {
      if (piece === mark) bodies.push(Buffer.alloc(0));
      else bodies.push(Buffer.concat([bodies.pop() as Buffer, piece]));
    }
    t.same(
      bodies.map((body) => body.length),
      headers.map(([bytes]) => bytes),
    );
    t.ok(headers.slice(0, -1).every(([bytes, last]) => bytes === limit && !last));
    t.equal(headers.at(-1)?.[1], true);
    t.ok(Buffer.concat(bodies).equals(all));
  }
  t.end();
});

interface Packet {
  packed: Buffer;
  raw: Buffer[];
}

/** Packets with packed pages, raw ones, and both, in every order; pages repeat, so that a history would be used. */
function packets(seed: number, rounds: number): Packet[] {
  const random = new Random(seed);
  const text = Buffer.from('Owned by the channel until the slot is empty again. '.repeat(4000));
  const noise = Buffer.alloc(2 ** 19);
  random.bytes(noise);
  return Array.from({ length: rounds }, () => {
    const kind = random.below(4);
    const packedPages = kind === 1 ? 0 : 1 + random.below(30);
    const at = random.below(1000);
    const packed = Buffer.from(text.subarray(at, at + packedPages * PAGE));
    const raw: Buffer[] = [];
    for (let left = kind === 0 ? 0 : 1 + random.below(60); left > 0;) {
      const pages = Math.min(left, 1 + random.below(40));
      const from = PAGE * random.below(60);
      raw.push(noise.subarray(from, from + pages * PAGE));
      left -= pages;
    }
    return { packed, raw };
  });
}

async function payloadOf(sender: SendMethod, { packed, raw }: Packet): Promise<Buffer> {
  const made = await sender.compress(packed, raw.length > 0);
  const pieces = raw.length > 0 ? sender.raw(raw) : [];
  // Copied: the sender's buffers are valid until the call after the next one.
  return Buffer.concat([made, ...pieces]);
}

function wholeOf({ packed, raw }: Packet): Buffer {
  return Buffer.concat([packed, ...raw]);
}

const SENDERS: Record<string, () => SendMethod> = {
  'zlib, one stream': () => createZlibSender(1, true),
  'zlib, one stream, level 0': () => createZlibSender(0, true),
  'zlib, one stream, level 9': () => createZlibSender(9, true),
  'zlib, a packet at a time': () => createZlibSender(1, false),
  ...Object.fromEntries(
    zstdBackends().map((backend) => [`zstd by ${backend}`, () => createZstdSender(1, backend)]),
  ),
};

const RECEIVERS: Record<'zlib' | 'zstd', Record<string, () => ReceiveMethod>> = {
  zlib: {
    'node:zlib': () => createZlibReceiver(PAGE, true),
    fflate: () => createZlibReceiver(PAGE, false),
  },
  zstd: Object.fromEntries(
    zstdBackends().map((backend) => [backend, () => createZstdReceiver(PAGE, backend)]),
  ),
};

for (const [name, create] of Object.entries(SENDERS)) {
  const method = name.startsWith('zlib') ? 'zlib' : 'zstd';
  for (const [other, createReceiver] of Object.entries(RECEIVERS[method])) {
    t.test(`${name}: decoded by ${other}, packet by packet`, async (t) => {
      const sender = create();
      const receiver = createReceiver();
      for (const [i, packet] of packets(name.length, 60).entries()) {
        const whole = wholeOf(packet);
        const pages = Buffer.alloc(whole.length, 0xa5);
        const own = await receiver.decompress(await payloadOf(sender, packet), pages);
        const decoded = own instanceof Buffer ? own : pages;
        if (!decoded.equals(whole))
          t.fail(`packet ${i}: ${packet.packed.length} packed, ${packet.raw.length} raw`);
      }
      t.pass('60 packets');
      sender.close();
      receiver.close();
    });
  }

  t.test(`${name}: decoded by a stranger as one stream`, async (t) => {
    const sender = create();
    const all = packets(7 * name.length, 40);
    const payloads: Buffer[] = [];
    for (const packet of all) payloads.push(await payloadOf(sender, packet));
    sender.close();
    const expected = Buffer.concat(all.map(wholeOf));
    const decoded: Uint8Array[] = [];
    if (method === 'zlib') {
      // zlib's own stream, which knows nothing of packets; without an end to its stream it is only flushed.
      const inflate = zlib.createInflate({ finishFlush: zlib.constants.Z_SYNC_FLUSH });
      inflate.on('data', (chunk: Buffer) => decoded.push(chunk));
      inflate.end(Buffer.concat(payloads));
      await once(inflate, 'end');
    } else {
      for (const [i, payload] of payloads.entries()) {
        // Frame after frame: the first ends where the second, of raw blocks, begins.
        const split = all[i].raw.length > 0 && all[i].packed.length > 0 ? payload.lastIndexOf(RAW_FRAME) : 0;
        for (const frame of [payload.subarray(0, split), payload.subarray(split)]) {
          if (frame.length > 0)
            new Decompress((chunk) => decoded.push(chunk)).push(Uint8Array.from(frame), true);
        }
      }
    }
    t.ok(Buffer.concat(decoded).equals(expected));
  });
}

t.test('raw blocks cost next to nothing', async (t) => {
  for (const create of [() => createZlibSender(1), () => createZstdSender(1, 'binding')]) {
    const sender = create();
    const raw = [crypto.randomBytes(2 ** 19)];
    const payload = await payloadOf(sender, { packed: Buffer.alloc(0), raw });
    t.ok(payload.length <= 2 ** 19 + 64, `${payload.length} bytes`);
    sender.close();
  }
});
