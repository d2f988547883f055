import t from 'tap';
import { TailEndFinder, type TailEnd } from '../../src/stream/tail-end.js';
import { Random } from '../support/random.js';
import { hex, readMain, readMig } from './support.js';

function endOf(bytes: Buffer, pieceBytes = bytes.length, footers = true): TailEnd {
  const finder = new TailEndFinder();
  for (let at = 0; at < bytes.length; at += pieceBytes) {
    if (finder.push(Buffer.from(bytes.subarray(at, at + pieceBytes)))) break;
  }
  return finder.end(footers);
}

/** The tails of captures: from the section of `timer`, the first behind ram's END, on. */
const TAILS = ['q100-none', 'q72-none', 'q100-none-machine72'].map((name) => tailOf(readMain(name)));

function tailOf(stream: Buffer): Buffer {
  return stream.subarray(stream.indexOf('\x05timer') - 5);
}

/** A description of no device, in a tail of one section: its sizes do not add up, so it is not exact. */
const VAGUE = hex("04 00000003 'any' 7e 00000003 00 06 0000000f '{\"devices\": []}'");
const NO_DESCRIPTION = hex(
  "04 00000003 01'a' 00000000 00000001 aa 7e 00000003 04 00000105 'any' 7e 00000105 00",
);

t.test('what lies behind the description is not read, whatever it is', (t) => {
  const random = new Random(4);
  const noise = Buffer.alloc(200_000);
  for (let i = 0; i < noise.length; i++) noise[i] = random.below(256);
  for (const tail of TAILS) {
    for (const behind of [
      Buffer.alloc(0),
      Buffer.alloc(100_000),
      noise,
      tail,
      readMig('q100-mappedram-single'),
    ]) {
      for (const pieceBytes of [7, 4096, 65536, 10 ** 9]) {
        if (pieceBytes === 7 && behind.length > 200_000) continue;
        const { bytes, description, isWhole } = endOf(Buffer.concat([tail, behind]), pieceBytes);
        if (bytes !== tail.length)
          t.fail(`${bytes} of ${tail.length} before ${behind.length}, by ${pieceBytes}`);
        if (!isWhole || (description?.devices.length ?? 0) < 30) t.fail('no description');
      }
    }
  }
  const finder = new TailEndFinder();
  t.equal(finder.push(Buffer.concat([TAILS[0], noise])), true, 'an exact one is believed at once');
  t.end();
});

t.test('a description that is none is told from other bytes behind EOF, however it is split', (t) => {
  const spoilt = Buffer.concat([NO_DESCRIPTION, hex("06 00000004 'none'")]);
  for (const pieceBytes of [1, 2, 3, spoilt.length]) {
    t.same(endOf(spoilt, pieceBytes), { bytes: NO_DESCRIPTION.length, isWhole: true, breaks: true });
    const padded = Buffer.concat([NO_DESCRIPTION, Buffer.alloc(9)]);
    t.same(endOf(padded, pieceBytes), { bytes: NO_DESCRIPTION.length, isWhole: true });
    t.same(endOf(NO_DESCRIPTION, pieceBytes), { bytes: NO_DESCRIPTION.length, isWhole: true });
  }
  t.end();
});

t.test('every cut of a tail is no whole one, and every split gives the same end', (t) => {
  const [tail] = TAILS;
  for (let length = 1; length < tail.length; length += 997) {
    const cut = endOf(tail.subarray(0, length));
    if (cut.isWhole || cut.description !== undefined) t.fail(`cut at ${length}`);
  }
  for (const pieceBytes of [1, 2, 3, 5, 1000]) {
    t.equal(endOf(Buffer.concat([tail, Buffer.alloc(20)]), pieceBytes).bytes, tail.length);
  }
  t.end();
});

t.test('a description whose sizes say nothing: the last thing in the file, or else the first one', (t) => {
  const two = Buffer.concat([VAGUE, VAGUE]);
  t.equal(endOf(two).bytes, two.length, 'the last thing');
  t.equal(endOf(Buffer.concat([two, Buffer.alloc(5)])).bytes, VAGUE.length, 'the first');
  const finder = new TailEndFinder();
  finder.push(VAGUE);
  let pushed = 0;
  while (!finder.push(Buffer.alloc(2 ** 20)) && pushed < 100) pushed++;
  t.equal(pushed, 16, 'as far as a description could reach, and no further');
  t.equal(finder.end(true).bytes, VAGUE.length);
  t.end();
});

t.test('without a description the end is the last EOF behind a footer that sections lead to', (t) => {
  const length = NO_DESCRIPTION.length;
  for (const pieceBytes of [1, 2, 3, 6, 1000]) {
    for (const behind of ['', '000000', '7e7e7e', 'ff00ff 7e00000003 00']) {
      const end = endOf(Buffer.concat([NO_DESCRIPTION, hex(behind)]), pieceBytes);
      t.same(end, { bytes: length, isWhole: true }, `${behind}, by ${pieceBytes}`);
    }
  }
  // The last, as state may hold what looks like one.
  const twice = hex("04 00000003 'any' 7e 00000003 00 'state' 7e 00000003 00 ff");
  t.equal(endOf(twice).bytes, twice.length - 1);
  t.equal(endOf(NO_DESCRIPTION.subarray(0, -1)).isWhole, false, 'cut before EOF');
  t.equal(endOf(hex("04 00000003 'any' 7e 00000007 00 ff")).isWhole, false, "no section's footer");
  t.equal(
    endOf(hex("04 00000003 'any' 7e 00000007 00")).isWhole,
    true,
    'the end of the file is one more sign',
  );
  t.equal(endOf(hex("04 00000003 'any' 00"), 3, false).isWhole, true, 'a machine without footers');
  t.equal(endOf(hex("04 00000003 'any'"), 3, false).isWhole, false);
  t.end();
});

t.test('what may be a description does not hide one that begins in it', (t) => {
  // The last footer's id and EOF: 00 06 00 06 00 01 7b: the first four bytes of "n" are the id's end and the real head.
  const json = Buffer.from(`{"devices": []${' '.repeat(0x17b22 - 15)}}`);
  const tail = Buffer.concat([hex('04 00000006 aa 7e 00000006 00 06 00017b22'), json]);
  for (const pieceBytes of [1000, 10 ** 9]) {
    t.equal(endOf(Buffer.concat([tail, Buffer.alloc(30)]), pieceBytes).bytes, tail.length);
  }
  t.end();
});
