import t from 'tap';
import { STREAM_ERRORS, type StreamError } from '../../src/stream/codes.js';
import { encodeItem, toFileStream } from '../../src/stream/main-writer.js';
import { MappedRamWriter } from '../../src/mapped-ram/writer.js';
import { readOtherSections, readTail } from '../../src/mapped-ram/pages.js';
import { readMappedRam } from '../../src/mapped-ram/read.js';
import { locateDevices, parseVmDescription, sectionBytes } from '../../src/stream/vm-description.js';
import { MemoryFile, NO_DEVICES, collect, hex, ofKind, parse, rawOf } from './support.js';

const BEGIN = "'QEVM' 00000003 07 00000009 'machine-1'";
const RAM_START = "01 00000007 03 'ram' 00000000 00000004 0000000000004004 01 'a' 0000000000004000";
const FLUSH_EOS = '0000000000000200 0000000000000010';
const RAM_END = `03 00000007 ${FLUSH_EOS} 7e 00000007`;
const TAIL = `03 00000003 03 7e 00000003 ${NO_DEVICES}`;

/** 32 bytes that look like the footer of section 3, and a section behind it. */
const LIKE_A_FOOTER = '7e 00000003 02 00000007 7e 00000003 00 7e 00000003 7e 00000003 7e 00000003 7e';

interface Body {
  what: string;
  idstr: string;
  version: number;
  iterates: boolean;
  /** Each with its own end; every cut of it is one that breaks off. */
  bodies: string[];
}

const BODIES: readonly Body[] = [
  {
    what: "virtio-mem's early state",
    idstr: '0000:00:03.0/virtio-mem-device-early',
    version: 1,
    iterates: false,
    bodies: [
      // Address, region, block, node, size; 256 blocks of 2 MiB.
      `0000000140000000 0000000020000000 0000000000200000 00000000 0000000000000000 ${LIKE_A_FOOTER}`,
      // One block more than a word has bits.
      `7e00000003000000 0000000004100000 0000000000100000 7e000000 037e000000037e00 7e00000003027e00 0000000000000001`,
      '0000000140000000 0000000000000000 0000000000100000 00000000 0000000000000000',
    ],
  },
  {
    what: 'dirty bitmaps',
    idstr: 'dirty-bitmap',
    version: 1,
    iterates: true,
    bodies: [
      '01',
      `1c 05 'disk0' 06 'backup' 00010000 03
       14 05 7e00000003 00010000 01
       44 06 'backup' 0000000000000000 00000800 0000000000000020 ${LIKE_A_FOOTER}
       42 0000000000000800 00000800
       40 7e00000003027e00 00000003 0000000000000000
       20 2c 01 'd' 00 01`,
    ],
  },
  {
    what: 'the hash page table',
    idstr: 'spapr/htab',
    version: 1,
    iterates: true,
    bodies: [
      '00000018',
      'ffffffff',
      `00000000 00000005 0002 0000 ${LIKE_A_FOOTER}
       7e000000 0000 7e00
       00000000 0000 0001
       00000000 0000 0000`,
    ],
  },
  {
    what: 'storage attributes',
    idstr: 's390-storage_attributes',
    version: 0,
    iterates: true,
    bodies: [
      '0000000000000001',
      `000000007e000002 0000000000000020 ${LIKE_A_FOOTER} 0000000000000002 0000000000000000
       0000000000000008 0000000000000001`,
    ],
  },
];

function head(type: string, { idstr, version }: Pick<Body, 'idstr' | 'version'>): string {
  const length = idstr.length.toString(16).padStart(2, '0');
  return `${type} 00000003 ${length} '${idstr}' 00000000 0000000${version}`;
}

/** One section for each body, behind ram's START or before it. */
function streamOf(it: Body, { footers = true, first = false } = {}): Buffer {
  const footer = (id: string): string => (footers ? `7e ${id}` : '');
  const sections = it.bodies.map((body, i) => {
    // Sections that do not iterate have an id each; here the same, as nobody looks at it.
    const start = i === 0 || !it.iterates ? head(it.iterates ? '01' : '04', it) : '02 00000003';
    return `${start} ${body} ${footer('00000003')}`;
  });
  const before = first ? sections : [];
  const behind = first ? [] : sections;
  return hex(
    [
      BEGIN,
      ...before,
      `${RAM_START} ${FLUSH_EOS} ${footer('00000007')}`,
      ...behind,
      `03 00000007 ${FLUSH_EOS} ${footer('00000007')} ${NO_DEVICES}`,
    ].join(' '),
  );
}

for (const it of BODIES) {
  t.test(
    `${it.what}: read to the exact end, whatever the bytes look like and however they come`,
    async (t) => {
      for (const footers of [true, false]) {
        for (const first of [true, false]) {
          const bytes = streamOf(it, { footers, first });
          for (const size of [1, 7, 100_000]) {
            const items = await parse(bytes, [size]);
            t.ok(rawOf(items).equals(bytes), `footers ${footers}, first ${first}, pieces of ${size}`);
            t.ok(Buffer.concat(items.map(encodeItem)).equals(bytes), 'encoded from their fields alone');
            const heads = ofKind(items, 'other-section');
            t.equal(heads.length, it.bodies.length);
            t.ok(heads.every(({ idstr, sectionId }) => idstr === it.idstr && sectionId === 3));
            t.equal(ofKind(items, 'section').length, 2, 'START and END of ram');
            const data = Buffer.concat(ofKind(items, 'other-data').map(({ raw }) => raw));
            t.ok(data.equals(hex(it.bodies.join(' '))));
          }
        }
      }
    },
  );

  t.test(`${it.what}: in a file, and out of it again, byte for byte`, async (t) => {
    for (const first of [true, false]) {
      const items = await parse(streamOf(it, { first }));
      const file = new MemoryFile();
      const writer = new MappedRamWriter(file);
      for (const item of items) await writer.accept(item);
      await writer.finish(() => Int32Array.of(0));
      const description = await readMappedRam(file);
      t.same(description.problems, []);
      t.equal(description.sectionId, 7);
      const { sectionsBeforeRam, sectionsBesideRam } = description;
      t.equal(sectionsBeforeRam.length, first ? 1 : 0, 'neighbours are one');
      t.equal(sectionsBesideRam.length, first ? 0 : 1);
      const read = Buffer.concat(
        await collect(readOtherSections(file, [...sectionsBeforeRam, ...sectionsBesideRam])),
      );
      const expected = items.filter(
        (item) =>
          item.kind === 'other-section' ||
          item.kind === 'other-data' ||
          (item.kind === 'footer' && item.sectionId === 3),
      );
      t.ok(read.equals(rawOf(expected)));
      t.ok(Buffer.concat(expected.map(toFileStream)).equals(rawOf(expected)));
      t.ok(Buffer.concat(await collect(readTail(file, description))).equals(hex(NO_DEVICES)));
    }
  });

  t.test(`${it.what}: a body that breaks off anywhere is an end of the stream`, async (t) => {
    const bytes = streamOf(it);
    const from = bytes.indexOf(hex(`'${it.idstr}'`));
    for (let at = from; at < bytes.length - hex(`${RAM_END} ${NO_DEVICES}`).length; at += 3) {
      await t.rejects(parse(bytes.subarray(0, at)), { code: STREAM_ERRORS.eof }, `cut at ${at}`);
    }
  });
}

t.test('a bitmap larger than a piece comes in pieces, and PARTs go on between those of ram', async (t) => {
  const large = Buffer.alloc(200_000, 0x7e);
  const bytes = Buffer.concat([
    hex(`${BEGIN} ${RAM_START} ${FLUSH_EOS} 7e 00000007 ${head('01', BODIES[3])} 0000000000000001 7e 00000003
      02 00000007 ${FLUSH_EOS} 7e 00000007 02 00000003 0000000000000002 0000000000030d40`),
    large,
    hex(`0000000000000001 7e 00000003 03 00000003 0000000000000001 7e 00000003 ${RAM_END} ${NO_DEVICES}`),
  ]);
  const items = await parse(bytes, [5000]);
  t.ok(rawOf(items).equals(bytes));
  t.ok(ofKind(items, 'other-data').every(({ raw }) => raw.length <= 65536));
  t.same(
    ofKind(items, 'other-section').map(({ section }) => section),
    ['start', 'part', 'end'],
  );
});

t.test("another section's END behind ram's is part of the tail", async (t) => {
  const bytes = hex(
    `${BEGIN} ${RAM_START} ${FLUSH_EOS} 7e 00000007 ${head('01', BODIES[1])} 01 7e 00000003 ${RAM_END} ${TAIL}`,
  );
  const items = await parse(bytes);
  t.ok(rawOf(ofKind(items, 'tail')).equals(hex(TAIL)));
});

const RAM = `${BEGIN} ${RAM_START} ${FLUSH_EOS} 7e 00000007`;
const EARLY = `${RAM} ${head('04', BODIES[0])} 0000000140000000`;
const DIRTY = `${RAM} ${head('01', BODIES[1])}`;
const REFUSALS: [what: string, bytes: string, error: StreamError, message: RegExp][] = [
  [
    'a section that is not known, by its name',
    `${RAM} 01 00000003 11 '0000:00:05.0/vfio' 00000000 00000001`,
    'unsupported',
    /section before ram's END: received START of "0000:00:05.0\/vfio" 0, expected START of "ram" 0, or one of dirty-bitmap, spapr\/htab, s390-storage_attributes, virtio-mem-device-early/,
  ],
  [
    'an early device that iterates',
    `${RAM} ${head('01', BODIES[0])}`,
    'unsupported',
    /received START of "0000:00:03.0\/virtio-mem-device-early" 0/,
  ],
  [
    'a bitmap that does not',
    `${RAM} ${head('04', BODIES[1])}`,
    'unsupported',
    /received FULL of "dirty-bitmap"/,
  ],
  [
    'a name that only ends like a known one',
    `${RAM} 04 00000003 18 'xvirtio-mem-device-early' 00000000 00000001`,
    'unsupported',
    /received FULL of "xvirtio-mem-device-early"/,
  ],
  [
    'a version that is not known',
    `${RAM} ${head('01', { idstr: 'dirty-bitmap', version: 2 })}`,
    'unsupported',
    /version of section "dirty-bitmap": received 2, expected 1/,
  ],
  [
    "ram's id",
    `${RAM} 01 00000007 0c 'dirty-bitmap' 00000000 00000001`,
    'format',
    /section id: received 7 again, expected one that no other section has/,
  ],
  [
    'an id twice',
    `${DIRTY} 01 7e 00000003 ${head('01', BODIES[2])}`,
    'format',
    /section id: received 3 again/,
  ],
  [
    'an id that ram takes',
    `${BEGIN} 01 00000007 0c 'dirty-bitmap' 00000000 00000001 01 7e 00000007 ${RAM_START}`,
    'format',
    /section id: received 7 again/,
  ],
  [
    'a PART after END',
    `${DIRTY} 01 7e 00000003 03 00000003 01 7e 00000003 02 00000003`,
    'unsupported',
    /section id of PART: received 3, expected 7/,
  ],
  [
    'the footer of another',
    `${DIRTY} 01 7e 00000007`,
    'format',
    /section id of a footer: received 7, expected 3/,
  ],
  ['no footer', `${DIRTY} 01 02 00000003`, 'format', /end of a section: received PART, expected its footer/],
  [
    'blocks that are no power of two',
    `${EARLY} 0000000020000000 0000000000300000`,
    'format',
    /block size of virtio-mem: received 3145728/,
  ],
  [
    'blocks that are too small',
    `${EARLY} 0000000020000000 0000000000080000`,
    'format',
    /received 524288, expected a power of two from 1 MiB on/,
  ],
  [
    'no blocks',
    `${EARLY} 0000000020000000 0000000000000000`,
    'format',
    /block size of virtio-mem: received 0/,
  ],
  [
    'a region of half a block',
    `${EARLY} 0000000020100000 0000000000200000`,
    'limit',
    /region size of virtio-mem: received 537919488/,
  ],
  [
    'a region that is too large',
    `${EARLY} 0001000000100000 0000000000100000`,
    'limit',
    /region size of virtio-mem/,
  ],
  ['flags that are not known', `${DIRTY} 81 00`, 'format', /flags of a dirty bitmap: received 0x81/],
  ['two kinds at once', `${DIRTY} 50`, 'format', /flags of a dirty bitmap: received 0x50/],
  [
    'a chunk that is too large',
    `${DIRTY} 40 0000000000000000 00000800 0000000000002801`,
    'limit',
    /bytes of a dirty bitmap: received 10241, expected at most 10240/,
  ],
  [
    'a shift that no table has',
    `${RAM} ${head('01', BODIES[2])} 0000002f`,
    'format',
    /shift of the hash page table: received 47/,
  ],
  [
    'attributes with an error',
    `${RAM} ${head('01', BODIES[3])} 0000000000000004`,
    'format',
    /flags of storage attributes: received 0x4/,
  ],
  [
    'too many attributes',
    `${RAM} ${head('01', BODIES[3])} 0000000000000002 0000000000100001`,
    'limit',
    /bytes of storage attributes: received 1048577, expected at most 1048576/,
  ],
];

for (const [what, bytes, error, message] of REFUSALS) {
  t.test(`refused: ${what}`, async (t) => {
    for (const size of [1, 1000]) {
      await t.rejects(parse(Buffer.concat([hex(bytes), Buffer.alloc(200)]), [size]), {
        code: STREAM_ERRORS[error],
        message,
      });
    }
  });
}

t.test('the largest chunk, region and row of attributes that are allowed are read', async (t) => {
  const chunk = hex(`${DIRTY} 40 0000000000000000 00000800 0000000000002800`);
  const row = hex(`${RAM} ${head('01', BODIES[3])} 0000000000000002 0000000000100000`);
  const end = (eos: string): Buffer => hex(`${eos} 7e 00000003 ${RAM_END} ${NO_DEVICES}`);
  for (const bytes of [
    Buffer.concat([chunk, Buffer.alloc(10240), end('01')]),
    Buffer.concat([row, Buffer.alloc(2 ** 20), end('0000000000000001')]),
    Buffer.concat([
      hex(`${EARLY} 0001000000000000 0000100000000000 00000000 0000000000000000 000000000000ffff`),
      end(''),
    ]),
  ]) {
    t.ok(rawOf(await parse(bytes)).equals(bytes));
  }
});

t.test('an early device in the VM description is not looked for in the tail', async (t) => {
  const device = (name: string): object => ({ name, instance_id: 0, version: 1, fields: [{ size: 3 }] });
  const devices = [device('0000:00:03.0/virtio-mem-device-early'), device('timer')];
  const description = parseVmDescription(Buffer.from(JSON.stringify({ devices })));
  const sections = hex("04 00000009 05 'timer' 00000000 00000001 010203 7e 00000009 00");
  t.equal(sectionBytes(description, true), sections.length);
  t.match(locateDevices(sections, description, true), [{ name: 'timer', bytes: 3 }]);
});
