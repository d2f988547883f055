/** The system's libzstd: what it makes and reads, that it writes nowhere else, what its errors become, and who frees what. */
import t, { type Test } from 'tap';
import { MultifdError } from '../../src/errors.js';
import { findKoffi } from '../../src/native/koffi.js';
import {
  ZstdCompressor,
  ZstdDecompressor,
  findLibzstd,
  openLibzstd,
  whyNoLibzstd,
  type Libzstd,
} from '../../src/native/libzstd.js';
import { Random } from '../support/random.js';

const PAGE = 4096;
const CANARY = 0xa5;
const NO_ROOM = 2 ** 64 - 70;

/** Where there is none, that is said; the rest of such a test has nothing to look at. */
function library(t: Test): Libzstd | undefined {
  const found = findLibzstd();
  if (found === undefined) t.match(whyNoLibzstd(), /koffi|libzstd\.so\.1 cannot be used/);
  return found;
}

/** Compressible pages, none like the other. */
function content(pages: number, seed: number): Buffer {
  const random = new Random(seed);
  const bytes = Buffer.alloc(pages * PAGE);
  for (let at = 0; at + 16 <= bytes.length; at += 16)
    bytes.write(`${random.below(1000)} of a guest`.slice(0, 16), at);
  return bytes;
}

/** Memory with canaries around it. */
function guarded(length: number): { inside: Buffer; touched: () => boolean } {
  const all = Buffer.from(new SharedArrayBuffer(length + 2 * PAGE)).fill(CANARY);
  const inside = all.subarray(PAGE, PAGE + length);
  const rest = [all.subarray(0, PAGE), all.subarray(PAGE + length)];
  return { inside, touched: () => rest.some((bytes) => bytes.some((byte) => byte !== CANARY)) };
}

/** Decodes a stretch as far as it goes. @returns bytes in `output` */
function decode(decompressor: ZstdDecompressor, input: Buffer, output: Buffer): number | undefined {
  let read = 0;
  let filled = 0;
  while (read < input.length) {
    if (!decompressor.run(input, read, output, filled)) return undefined;
    const nowRead = input.length - decompressor.inputLeft;
    const nowFilled = output.length - decompressor.outputLeft;
    if (nowRead === read && nowFilled === filled) break;
    read = nowRead;
    filled = nowFilled;
  }
  return filled;
}

/** A library that answers what the test says, and keeps what it is asked. */
function stub(answers: Partial<Record<keyof Libzstd, number | bigint>> = {}) {
  const asked: string[] = [];
  const names: (keyof Libzstd)[] = [
    'ZSTD_versionNumber',
    'ZSTD_createCCtx',
    'ZSTD_freeCCtx',
    'ZSTD_CCtx_setParameter',
    'ZSTD_compress2',
    'ZSTD_createDCtx',
    'ZSTD_freeDCtx',
    'ZSTD_decompressStream',
  ];
  const calls = Object.fromEntries(
    names.map((name) => [
      name,
      (...args: unknown[]) => {
        asked.push(args.length > 0 ? `${name} ${String(args[0])}` : name);
        return answers[name] ?? (name.includes('create') ? 4096 : 0);
      },
    ]),
  );
  const fake = {
    ...calls,
    ZSTD_isError: (result: number | bigint) => (Number(result) >= 2 ** 63 ? 1 : 0),
    ZSTD_getErrorName: () => 'as the test wants',
    address: () => 65536n,
  };
  return { fake: fake as unknown as Libzstd, asked };
}

t.test(
  'packets of one channel, compressed and read by kept contexts, from shared memory to shared memory',
  (t) => {
    const found = library(t);
    if (found !== undefined) {
      const compressor = new ZstdCompressor(found, 1);
      const decompressor = new ZstdDecompressor(found);
      const payload = Buffer.alloc(2 ** 20);
      for (let packet = 0; packet < 20; packet++) {
        const pages = Buffer.from(new SharedArrayBuffer((1 + ((packet * 37) % 128)) * PAGE));
        content(pages.length / PAGE, packet).copy(pages);
        const size = compressor.compress(pages, payload);
        const { inside, touched } = guarded(pages.length);
        t.equal(decode(decompressor, payload.subarray(0, size), inside), pages.length);
        t.ok(inside.equals(pages) && !touched() && size < pages.length, `packet ${packet}: ${size} bytes`);
      }
      compressor.close();
      decompressor.close();
    }
    t.end();
  },
);

t.test('the level is heard', (t) => {
  const found = library(t);
  if (found !== undefined) {
    const pages = content(128, 1);
    const sizes = [1, 9, 19].map((level) => {
      const compressor = new ZstdCompressor(found, level);
      const size = compressor.compress(pages, Buffer.alloc(2 ** 20));
      compressor.close();
      return size;
    });
    t.ok(sizes[0] > sizes[1] && sizes[1] > sizes[2], sizes.join(' > '));
  }
  t.end();
});

t.test(
  'what does not fit is a typed error, nothing behind it is written, and the next packet is well',
  (t) => {
    const found = library(t);
    if (found !== undefined) {
      const compressor = new ZstdCompressor(found, 1);
      const pages = content(8, 2);
      for (const room of [0, 1, 20, 1000]) {
        const { inside, touched } = guarded(room);
        t.throws(() => compressor.compress(pages, inside), {
          code: 'ERR_MULTIFD_COMPRESS',
          message: `zstd: 32768 bytes into ${room}: Destination buffer is too small`,
        });
        t.notOk(touched());
      }
      t.ok(compressor.compress(pages, Buffer.alloc(40000)) > 0);
      compressor.close();
    }
    t.end();
  },
);

t.test('whatever is corrupt ends in a failure or in pages, and no byte outside of them is written', (t) => {
  const found = library(t);
  if (found !== undefined) {
    const random = new Random(3);
    const compressor = new ZstdCompressor(found, 3);
    const frame = Buffer.alloc(2 ** 16);
    const size = compressor.compress(content(8, 3), frame);
    compressor.close();
    let failed = 0;
    for (let n = 0; n < 3000; n++) {
      const wrong = Buffer.from(frame.subarray(0, size));
      // The header's content size is left out of it: too much is promised by too small an output as well.
      wrong[random.below(n % 2 === 0 ? size : 60)] ^= 1 << random.below(8);
      const { inside, touched } = guarded(PAGE * (n % 9));
      const decompressor = new ZstdDecompressor(found);
      if (decode(decompressor, wrong, inside) === undefined) {
        failed++;
        t.match(decompressor.failure, /./);
      }
      decompressor.close();
      if (touched()) t.fail(`mutant ${n} has written outside`);
    }
    t.ok(failed > 500, `${failed} of 3000 fail`);
  }
  t.end();
});

t.test('what is left over of the output is told, so that bytes beyond it can be asked for', (t) => {
  const found = library(t);
  if (found !== undefined) {
    const compressor = new ZstdCompressor(found, 1);
    const frame = Buffer.alloc(2 ** 16);
    const pages = content(2, 4);
    const payload = frame.subarray(0, compressor.compress(pages, frame));
    compressor.close();
    const decompressor = new ZstdDecompressor(found);
    const { inside, touched } = guarded(PAGE);
    decode(decompressor, payload, inside);
    t.same([decompressor.failure, decompressor.outputLeft, touched()], [undefined, 0, false]);
    const probe = Buffer.alloc(1);
    t.ok(decompressor.run(Buffer.alloc(0), 0, probe, 0));
    t.same([decompressor.outputLeft, probe[0]], [0, pages[PAGE]], 'there is more');
    decompressor.close();
  }
  t.end();
});

t.test('no library, or too old a one, is told with its version', (t) => {
  const koffi = (version: number) => ({
    load: (file: string | null, options?: { deep?: boolean }) => {
      t.same([file, options], ['libzstd.so.1', { deep: true }]);
      return { func: () => () => version };
    },
    address: () => 0n,
  });
  t.throws(() => openLibzstd(koffi(10503)), { message: 'received version 1.5.3, expected at least 1.5.4' });
  t.doesNotThrow(() => openLibzstd(koffi(10504)));
  t.doesNotThrow(() => openLibzstd(koffi(20000)));
  const nowhere = {
    load: () => {
      throw new Error('no such file');
    },
    address: () => 0n,
  };
  t.throws(() => openLibzstd(nowhere), { message: 'no such file' });
  if (findKoffi() === undefined) t.match(whyNoLibzstd(), /koffi|Linux/, 'without koffi its sentence');
  t.end();
});

t.test('each error of the library is a typed one, and its context is freed', (t) => {
  const none = stub({ ZSTD_createCCtx: 0, ZSTD_createDCtx: 0n });
  const noMemory = { code: 'ERR_MULTIFD_RUNTIME', message: /^libzstd has no memory for a context that / };
  t.throws(() => new ZstdCompressor(none.fake, 1), noMemory);
  t.throws(() => new ZstdDecompressor(none.fake), noMemory);
  t.same(none.asked, ['ZSTD_createCCtx', 'ZSTD_createDCtx'], 'nothing is freed that is not there');

  const level = stub({ ZSTD_CCtx_setParameter: NO_ROOM });
  t.throws(() => new ZstdCompressor(level.fake, 7), {
    code: 'ERR_MULTIFD_COMPRESS',
    message: 'zstd: level 7: as the test wants',
  });
  t.same(level.asked.slice(1), ['ZSTD_CCtx_setParameter 4096', 'ZSTD_freeCCtx 4096']);

  const failing = stub({ ZSTD_compress2: NO_ROOM, ZSTD_decompressStream: NO_ROOM });
  const compressor = new ZstdCompressor(failing.fake, 1);
  t.throws(() => compressor.compress(Buffer.alloc(3), Buffer.alloc(5)), {
    code: 'ERR_MULTIFD_COMPRESS',
    message: 'zstd: 3 bytes into 5: as the test wants',
  });
  compressor.close();
  const decompressor = new ZstdDecompressor(failing.fake);
  t.notOk(decompressor.run(Buffer.alloc(3), 0, Buffer.alloc(5), 0));
  t.equal(decompressor.failure, 'as the test wants');
  decompressor.close();
  t.same(
    failing.asked.filter((call) => call.includes('free')),
    ['ZSTD_freeCCtx 4096', 'ZSTD_freeDCtx 4096'],
  );
  t.end();
});

t.test('a context is freed once, and nothing is called with it afterwards', (t) => {
  const { fake, asked } = stub();
  const compressor = new ZstdCompressor(fake, 1);
  const decompressor = new ZstdDecompressor(fake);
  for (let i = 0; i < 3; i++) {
    compressor.close();
    decompressor.close();
  }
  const before = asked.length;
  const closed = { code: 'ERR_MULTIFD_STATE', message: 'the zstd context is closed' };
  t.throws(() => compressor.compress(Buffer.alloc(1), Buffer.alloc(1)), closed);
  t.throws(() => decompressor.run(Buffer.alloc(1), 0, Buffer.alloc(1), 0), closed);
  t.throws(() => decompressor.run(Buffer.alloc(1), 0, Buffer.alloc(1), 0), MultifdError);
  t.equal(asked.length, before);
  t.same(
    asked.filter((call) => call.includes('free')),
    ['ZSTD_freeCCtx 4096', 'ZSTD_freeDCtx 4096'],
  );
  t.end();
});
