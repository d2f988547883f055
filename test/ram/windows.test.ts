import t from 'tap';
import { Windows } from '../../src/ram/windows.js';

const GIB = 1073741824;
const PAGE = 4096;

t.test('a window is 1 GiB', async (t) => {
  t.equal(Windows.WINDOW_BYTES, GIB);
});

t.test('a small buffer is one window, shared or private', async (t) => {
  for (const buffer of [new SharedArrayBuffer(4 * PAGE), new ArrayBuffer(4 * PAGE)]) {
    const bytes = new Uint8Array(buffer);
    const windows = new Windows(buffer, 0, 4 * PAGE);
    t.equal(windows.size, 4 * PAGE);
    t.equal(windows.windowAt(0).length, 4 * PAGE);
    t.equal(windows.windowAt(4 * PAGE - 1), windows.windowAt(0));
    const view = windows.view(PAGE, PAGE);
    t.equal(view.length, PAGE);
    view.fill(0x5a);
    t.same([bytes[PAGE - 1], bytes[PAGE], bytes[2 * PAGE - 1], bytes[2 * PAGE]], [0, 0x5a, 0x5a, 0]);
    bytes[3 * PAGE] = 0x77;
    t.equal(windows.windowAt(3 * PAGE)[3 * PAGE], 0x77);
  }
});

t.test('a part of a buffer is seen from its base on, and not beyond its size', async (t) => {
  const buffer = new SharedArrayBuffer(4 * PAGE);
  const bytes = new Uint8Array(buffer);
  const windows = new Windows(buffer, 100, 2 * PAGE);
  t.equal(windows.size, 2 * PAGE);
  t.equal(windows.windowAt(0).length, 2 * PAGE);
  windows.windowAt(0).fill(1);
  t.same([bytes[99], bytes[100], bytes[100 + 2 * PAGE - 1], bytes[100 + 2 * PAGE]], [0, 1, 1, 0]);
  windows.view(PAGE, PAGE).fill(2);
  t.same([bytes[100 + PAGE - 1], bytes[100 + PAGE], bytes[100 + 2 * PAGE - 1]], [1, 2, 2]);
  t.equal(bytes[100 + 2 * PAGE], 0);
});

t.test('the bytes up to the border are those of the same window', async (t) => {
  t.equal(Windows.runLimit(0), GIB);
  t.equal(Windows.runLimit(PAGE), GIB - PAGE);
  t.equal(Windows.runLimit(GIB - PAGE), PAGE);
  t.equal(Windows.runLimit(GIB - 1), 1);
  t.equal(Windows.runLimit(GIB), GIB);
  t.equal(Windows.runLimit(GIB + PAGE), GIB - PAGE);
  t.equal(Windows.runLimit(5 * GIB), GIB);
  t.equal(Windows.runLimit(5 * GIB - PAGE), PAGE);
  t.equal(Windows.runLimit(2 ** 44 - PAGE), PAGE);
});

t.test('a buffer above 1 GiB is cut at the border, with any base', async (t) => {
  // Only the pages around the border are ever touched, the rest is not backed by memory.
  const buffer = new SharedArrayBuffer(GIB + 4 * PAGE);
  const bytes = new Uint8Array(buffer);
  for (const base of [0, 100, PAGE]) {
    const size = GIB + 2 * PAGE;
    const border = base + GIB;
    bytes.fill(0, border - 2 * PAGE, border + 3 * PAGE);
    const windows = new Windows(buffer, base, size);
    t.equal(windows.size, size);
    t.equal(windows.windowAt(0).length, GIB);
    t.equal(windows.windowAt(GIB - 1), windows.windowAt(0));
    t.equal(windows.windowAt(GIB).length, 2 * PAGE);
    t.equal(windows.windowAt(size - 1), windows.windowAt(GIB));
    t.not(windows.windowAt(GIB), windows.windowAt(0));

    windows.view(GIB - PAGE, PAGE).fill(0x11);
    windows.view(GIB, PAGE).fill(0x22);
    windows.view(GIB + PAGE, PAGE).fill(0x33);
    const around = [-PAGE - 1, -PAGE, -1, 0, PAGE - 1, PAGE, 2 * PAGE - 1, 2 * PAGE].map(
      (by) => bytes[border + by],
    );
    t.same(around, [0, 0x11, 0x11, 0x22, 0x22, 0x33, 0x33, 0], `base ${base}`);

    t.equal(windows.windowAt(GIB - 1)[GIB - 1], 0x11);
    t.equal(windows.windowAt(GIB)[0], 0x22);
    t.equal(windows.windowAt(GIB + PAGE)[PAGE], 0x33);
  }
});

t.test('a run over the border, cut with runLimit, covers each byte once', async (t) => {
  const buffer = new SharedArrayBuffer(GIB + 2 * PAGE);
  const windows = new Windows(buffer, 0, GIB + 2 * PAGE);
  const end = GIB + 2 * PAGE;
  const pieces: [offset: number, length: number][] = [];
  for (let at = GIB - 3 * PAGE; at < end;) {
    const length = Math.min(end - at, Windows.runLimit(at));
    pieces.push([at, length]);
    for (const byte of [0, length - 1]) windows.view(at, length)[byte]++;
    at += length;
  }
  t.same(pieces, [
    [GIB - 3 * PAGE, 3 * PAGE],
    [GIB, 2 * PAGE],
  ]);
  const bytes = new Uint8Array(buffer);
  const touched = [-3 * PAGE - 1, -3 * PAGE, -1, 0, 2 * PAGE - 1].map((by) => bytes[GIB + by]);
  t.same(touched, [0, 1, 1, 1, 1]);
});

t.test('exactly 1 GiB is one window', async (t) => {
  const windows = new Windows(new SharedArrayBuffer(GIB), 0, GIB);
  t.equal(windows.windowAt(0).length, GIB);
  t.equal(windows.windowAt(GIB - 1), windows.windowAt(0));
  windows.view(GIB - PAGE, PAGE).fill(9);
  t.equal(windows.windowAt(0)[GIB - 1], 9);
});
