/**
 * Headers of packets that wait for a slow peer: none may be written over by those that are made in the meantime. Judged by
 * the independent decoder: every page once in each phase, as what it is.
 */
import t from 'tap';
import { createSender } from '../../src/index.js';
import { captureServer } from '../support/capture-server.js';
import { Random } from '../support/random.js';
import { decodeChannel, type RefRAMPacket } from '../support/reference-decoder.js';
import { within } from '../support/within.js';
import { some } from '../support/some.js';

const PAGE = 4096;
const PAGES = 16384;
/** More than a socket takes without being read. */
const DATA_PAGES = 6000;
const PHASES = 3;
const WAIT_MS = 30_000;

for (const kind of ['shared', 'listed'] as const) {
  for (const seed of some([1, 2, 3, 4, 5, 6], 3)) {
    t.test(`${kind}, seed ${seed}`, async (t) => {
      const random = new Random(seed);
      const memory = new SharedArrayBuffer(PAGES * PAGE);
      const bytes = Buffer.from(memory);
      const normal = new Set<number>();
      for (let page = 0; page < PAGES; page++) {
        // Data first, so that writes wait; then mostly zeroes, with a page of data in every few packets.
        if (page < DATA_PAGES || random.below(500) === 0) {
          bytes.writeUInt32LE(page + 1, page * PAGE);
          normal.add(page);
          // The first byte is 0 now and then: there runs of pages that are plainly not zero end. Or do not.
          if (page < DATA_PAGES / 2) bytes[(page + 1) * PAGE - 1] = 1;
        }
      }
      const server = await captureServer(t, { hold: true });
      const sender = await createSender({
        address: server.address,
        channels: 1,
        blocks: [{ name: 'pc.ram', memory }],
      });
      t.teardown(() => sender.close());
      const work = (async () => {
        for (let phase = 0; phase < PHASES; phase++) {
          for (let page = 0; page < PAGES;) {
            const count = Math.min(PAGES - page, 1 + random.below(kind === 'shared' ? 3000 : 700));
            if (kind === 'shared') await sender.queueRange('pc.ram', page * PAGE, count * PAGE);
            // Backwards: no run, so that each page is listed.
            else for (let i = count - 1; i >= 0; i--) await sender.queuePage('pc.ram', (page + i) * PAGE);
            page += count;
            // Writes of all lengths.
            if (random.below(3) === 0) await sender.flush();
          }
          await sender.sync();
        }
        await sender.end();
      })();
      work.catch(() => {});
      setTimeout(() => server.release(), 100);
      const [channel] = await within(server.ended(1), WAIT_MS, 'end of the channel');
      await within(work, WAIT_MS, 'end()');

      const { packets } = await decodeChannel(channel, { pageSize: PAGE, compression: 'none' });
      const times = new Uint8Array(PAGES);
      let wrong = 0;
      for (const [i, packet] of (packets as RefRAMPacket[]).entries()) {
        if (Number(packet.packetNum) !== i) t.fail(`packet ${i} has number ${packet.packetNum}`);
        for (const [at, offset] of packet.offsets.entries()) {
          const page = Number(offset) / PAGE;
          times[page]++;
          if (normal.has(page) !== at < packet.normalPages) wrong++;
          else if (normal.has(page) && packet.pages[at].readUInt32LE(0) !== page + 1) wrong++;
        }
      }
      t.equal(wrong, 0, 'pages as what they are, with their bytes');
      t.ok(
        times.every((count) => count === PHASES),
        'every page once in each phase',
      );
    });
  }
}
