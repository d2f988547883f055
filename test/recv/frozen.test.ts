/** A receiver that is frozen, behind the last SYNC of a migration: its source may send what it likes. */
import t from 'tap';
import { createReceiver } from '../../src/recv/receiver.js';
import {
  PAGE,
  RawSource,
  eventually,
  helloBytes,
  packetBytes,
  patternPage,
  syncBytes,
} from '../support/raw-channel.js';
import { within } from '../support/within.js';

const WAIT_MS = 20_000;
const PAGES = 8;
const BYTES = PAGES * PAGE;

/** In one piece, as it comes behind a SYNC of which it is a part, and cut within its header and its payload. */
const CUTS: Record<string, number[]> = { 'in one piece': [], 'in pieces': [12, 700, 1344, 1344 + 100] };

for (const [how, cuts] of Object.entries(CUTS)) {
  t.test(`what comes behind the last SYNC is not put in place: ${how}`, async (t) => {
    const ram = Buffer.from(new SharedArrayBuffer(BYTES));
    const receiver = await createReceiver({
      address: { port: 0 },
      channels: 1,
      blocks: [{ name: 'pc.ram', memory: ram }],
    });
    t.teardown(() => receiver.close());
    const source = await RawSource.connect(t, receiver.address);
    const last = packetBytes({ normal: [0], payload: patternPage(1) });
    await source.send(helloBytes({ id: 0 }), last, syncBytes());
    await within(receiver.sync(), WAIT_MS, 'sync()');
    receiver.freeze();
    const before = receiver.stats().bytes;
    const late = packetBytes({
      normal: [PAGE, 2 * PAGE],
      zero: [0],
      payload: Buffer.concat([patternPage(2), patternPage(3)]),
    });
    for (const [i, from] of [0, ...cuts].entries()) {
      await source.send(late.subarray(from, [...cuts, late.length][i]));
      await eventually(() => receiver.stats().bytes > before, 'its first bytes are read');
    }
    // Whatever is put in place is, by then.
    await new Promise((resolve) => setTimeout(resolve, 100));
    t.ok(ram.subarray(0, PAGE).equals(patternPage(1)), 'what was there stays');
    t.ok(
      ram.subarray(PAGE).every((byte) => byte === 0),
      'nothing is added',
    );
    await within(receiver.end(), WAIT_MS, 'end()');
    await within(receiver.done, WAIT_MS, 'done');
  });
}
