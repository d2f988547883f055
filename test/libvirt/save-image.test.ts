/** The head of libvirt's save images, its own ones and such as lie. */
import { setImmediate as turnEventLoop } from 'node:timers/promises';
import t from 'tap';
import { readSaveImage } from '../../src/libvirt/save-image.js';
import { describeDomain } from '../../src/libvirt/domain-xml.js';
import { MultifdError } from '../../src/errors.js';
import { Random } from '../support/random.js';
import { FORMATS, HEAD, HEADER_BYTES, NAME, RAW, UUID, readImage } from './images.js';

/** A file that notes what is asked of it. */
class Bytes {
  readonly #bytes: Buffer;
  most = 0;

  constructor(bytes: Buffer) {
    this.#bytes = bytes;
  }

  async read(into: Buffer, at: number, length: number, position: number): Promise<{ bytesRead: number }> {
    this.most = Math.max(this.most, into.length);
    return { bytesRead: this.#bytes.copy(into, at, position, position + length) };
  }

  async stat(): Promise<{ size: number }> {
    return { size: this.#bytes.length };
  }
}

function changed(change: (head: Buffer) => void): Bytes {
  const bytes = Buffer.from(RAW);
  change(bytes);
  return new Bytes(bytes);
}

t.test('a real image: name, uuid, format, and where the stream begins', async (t) => {
  for (const format of ['raw', 'sparse'] as const) {
    const bytes = readImage(format);
    const image = await readSaveImage(new Bytes(bytes));
    t.match(image, { format, name: NAME, uuid: UUID, wasRunning: false, streamOffset: HEAD.length });
    t.match(image?.xml, /^<domain type='qemu'>[^]*<\/domain>\n?$/);
    t.equal(bytes.toString('latin1', HEAD.length, HEAD.length + 4), 'QEVM');
  }
  t.equal((await readSaveImage(changed((head) => head.writeUInt32LE(1, 24))))?.wasRunning, true);
  const behind = new Bytes(Buffer.concat([Buffer.alloc(1000), RAW]));
  t.equal((await readSaveImage(behind, 1000))?.streamOffset, 1000 + HEAD.length);
  t.equal(await readSaveImage(behind), undefined, 'no image at all');
  t.equal(await readSaveImage(new Bytes(RAW.subarray(HEAD.length))), undefined, 'a bare stream');
});

t.test('an image of a host with the other byte order says the same', async (t) => {
  const swapped = changed((head) => head.subarray(16, 36).swap32());
  t.same(await readSaveImage(swapped), await readSaveImage(new Bytes(RAW)));
});

const REFUSED: [name: string, change: (head: Buffer) => void, message: RegExp, code?: string][] = [
  ['not finished', (head) => head.write('LibvirtQemudPart'), /received LibvirtQemudPart.*has not finished/],
  ['version 3', (head) => head.writeUInt32LE(3, 16), /version: received 3, expected 1 to 2/],
  ['version 0', (head) => head.writeUInt32LE(0, 16), /version: received 0, expected 1 to 2/],
  ['format 7', (head) => head.writeUInt32LE(7, 28), /format: received 7, expected 0 raw, .*, 6 sparse/],
  ['no data', (head) => head.writeUInt32LE(0, 20), /bytes of XML: received 0/],
  [
    '8 MiB of data and more',
    (head) => head.writeUInt32LE(2 ** 23 + 1, 20),
    /XML: received 8388609, expected 1 to 8388608/,
  ],
  ['4 GiB of data', (head) => head.writeUInt32LE(2 ** 32 - 1, 20), /bytes of XML: received 4294967295/],
  [
    'more data than the file has',
    (head) => head.writeUInt32LE(2 ** 23, 20),
    /bytes of the file: received \d+, expected at least 8388700/,
    'ERR_MULTIFD_EOF',
  ],
  ['no NUL behind the XML', (head) => head.writeUInt32LE(100, 20), /XML: received no NUL/],
  ['a cookie in the XML', (head) => head.writeUInt32LE(5, 32), /cookie: received 5, expected 0, or/],
  ['a cookie behind the data', (head) => head.writeUInt32LE(2 ** 31, 32), /cookie: received 2147483648/],
];

for (const [name, change, message, code = 'ERR_MULTIFD_STREAM'] of REFUSED) {
  t.test(`refused: ${name}`, async (t) => {
    const file = changed(change);
    await t.rejects(readSaveImage(file), { name: 'MultifdError', code, message });
    t.ok(file.most < 2 ** 20, 'and not as much is read as it says');
  });
}

t.test('cut at each byte of its header, and in its XML: it ends too early', async (t) => {
  for (let length = 16; length < HEADER_BYTES + 100; length++) {
    const cut = new Bytes(RAW.subarray(0, length));
    await t.rejects(readSaveImage(cut), { code: 'ERR_MULTIFD_EOF' }, `${length} bytes`);
  }
});

t.test('600 images with bytes changed at random: refused by a typed error, or read', async (t) => {
  const random = new Random(16);
  let refused = 0;
  for (let round = 0; round < 600; round++) {
    const file = changed((head) => {
      for (let i = random.below(4); i >= 0; i--) {
        const at = random.below(i % 2 === 0 ? 36 : HEADER_BYTES + 2000);
        head[at] = random.below(256);
      }
    });
    try {
      const image = await readSaveImage(file);
      if (image === undefined) continue;
      t.ok(FORMATS.includes(image.format) && image.streamOffset <= RAW.length);
    } catch (error) {
      refused++;
      if (!(error instanceof MultifdError)) throw error;
    }
    t.ok(file.most <= 2 ** 23);
  }
  t.ok(refused > 100, `${refused} refused`);
});

const XML: [xml: string, name: string | null, uuid: string | null][] = [
  [`<domain><name>a</name><uuid>${UUID}</uuid></domain>`, 'a', UUID],
  [`<?xml version="1.0"?><!-- <name>no</name> --><domain a='>'><name>a</name></domain>`, 'a', null],
  [
    '<domain><metadata><name>no</name></metadata><x/><name >b&lt;&#65;&#x42;&no;</name></domain>',
    'b<AB&no;',
    null,
  ],
  ['<domain><description><![CDATA[<name>no</name>]]></description></domain>', null, null],
  [`<domain><uuid>${UUID.replaceAll('-', '').toUpperCase()}</uuid></domain>`, null, UUID],
  ['<domain><uuid>12345</uuid><name>c</name>', 'c', null],
  ['</domain><name>no</name>', null, null],
  ['<domain><names>no</names><name/><uuid/><name\nx="/">a</name>', 'a', null],
  [`<domain a="x'>" b='">'><x c="'"/><name>a</name>`, 'a', null],
  [`<domain><name>${'a'.repeat(4097)}</name><uuid>${' '.repeat(4096)}${UUID}</uuid>`, null, null],
  ['<domain><name>a&#x110000;</name>', 'a&#x110000;', null],
  ['<domain a="', null, null],
  ['<!--', null, null],
  ['', null, null],
];

t.test('who the domain is: its own name and uuid, and nothing that only looks like them', async (t) => {
  for (const [xml, name, uuid] of XML) t.same(await describeDomain(xml), { name, uuid }, xml);
});

t.test('an entity that XML does not know stays as it is, whatever objects have by that name', async (t) => {
  for (const entity of ['&constructor;', '&toString;', '&valueOf;', '&nbsp;'])
    t.equal((await describeDomain(`<domain><name>a${entity}b</name></domain>`)).name, `a${entity}b`);
});

t.test('the event loop turns while it goes through much XML', async (t) => {
  const many = 2 ** 16;
  for (const xml of [
    '<a>'.repeat(many),
    `<domain>${'<uuid> </uuid>'.repeat(many)}`,
    `<domain ${'""'.repeat(many)}>`,
    '<!-->'.repeat(many),
  ]) {
    let isOver = false;
    const described = describeDomain(xml).finally(() => (isOver = true));
    let turns = 0;
    for (; !isOver; turns++) await turnEventLoop();
    t.same(await described, { name: null, uuid: null });
    t.ok(turns >= 4, `${turns} turns for ${xml.slice(0, 20)}`);
  }
});
