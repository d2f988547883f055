/** What goes out next: what was asked for, its neighbourhood, then the rest. */
import t from 'tap';
import { PageMap } from '../../src/postcopy/page-map.js';
import { Schedule } from '../../src/postcopy/schedule.js';

const PAGE = 4096;
const PAGES = 4096;

/** All pages but each fifth one. */
async function mapOf(): Promise<PageMap> {
  const bitmap = Buffer.alloc(PAGES / 8);
  for (let page = 0; page < PAGES; page++) if (page % 5 !== 0) bitmap[page >> 3] |= 1 << (page & 7);
  const block = {
    name: 'pc.ram',
    usedLength: PAGES * PAGE,
    pageCount: PAGES,
    bitmapOffset: 0,
    bitmapBytes: bitmap.length,
    pagesOffset: 2 ** 20,
    presentPages: 0,
    zeroPages: 0,
  };
  const file = {
    read: async (into: Buffer, offset: number, length: number, position: number) => ({
      bytesRead: bitmap.copy(into, offset, position, position + length),
    }),
    stat: async () => ({ size: 0 }),
  };
  return PageMap.read(file, block, PAGE, PAGE);
}

t.test('what is asked for, then what lies around it, then all others, each once', async (t) => {
  const map = await mapOf();
  const schedule = new Schedule([map]);
  const all = map.left;
  t.equal(all, PAGES - Math.ceil(PAGES / 5));
  schedule.request(map, 3001);
  schedule.request(map, 2000);
  const requested = [schedule.next(true), schedule.next(true)];
  t.match(requested, [
    { kind: 'requested', pages: [3001] },
    { kind: 'requested', pages: [2000] },
  ]);
  const near = schedule.next(true);
  t.equal(near?.kind, 'near');
  t.ok(
    near?.pages.every((page) => page >= 2000 - 32 && page < 2000 + 96),
    'around the latest first',
  );
  t.equal(schedule.next(false), undefined, 'nothing else was asked for');
  const seen = new Set([3001, ...(near?.pages ?? [])]);
  const kinds: string[] = [];
  for (let batch = schedule.next(true); batch !== undefined; batch = schedule.next(true)) {
    kinds.push(batch.kind);
    for (const page of batch.pages) {
      if (seen.has(page)) t.fail(`page ${page} twice`);
      seen.add(page);
    }
  }
  t.equal(seen.size, all, 'and the absent one that was asked for is not among them');
  t.ok(kinds.lastIndexOf('near') < kinds.indexOf('background'), 'neighbours come before the rest');
  t.equal(map.left, 0);
  schedule.request(map, 3001);
  t.equal(schedule.next(true), undefined, 'what is there is not sent again');
});

t.test('what a request costs does not grow with the block, nor with what waits', async (t) => {
  const map = await mapOf();
  let looks = 0;
  const isTaken = map.isTaken.bind(map);
  map.isTaken = (page) => {
    looks++;
    return isTaken(page);
  };
  const schedule = new Schedule([map]);
  map.take(0, PAGES);
  const requests = 4096;
  for (let i = 0; i < requests; i++) schedule.request(map, 0);
  t.equal(schedule.isFull, true);
  t.equal(schedule.next(false), undefined);
  t.ok(looks <= requests, `${looks} looks`);
});
