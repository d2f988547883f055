/**
 * Staging buffers for pages of files, as a channel uses them in turn: one is read into again only when the kernel has
 * released what it held, which without copies is later than when it has taken it.
 */
import fs from 'node:fs';
import path from 'node:path';
import t from 'tap';
import type { BlockDescription } from '../../src/ram/block.js';
import { Outgoing } from '../../src/send/outgoing.js';
import { PagePackets, WRITES_STAGED, WRITES_STAGED_ZERO_COPY } from '../../src/send/page-packets.js';
import { PageSource } from '../../src/send/page-source.js';
import { Control, PAYLOAD_RAM } from '../../src/shared/control.js';
import { temporaryDirectory } from '../support/raw-channel.js';
import { Random } from '../support/random.js';

const PAGE = 4096;
const PACKETS = 16;
const PAGES = PACKETS * 128;
const ROUNDS = 4;

/** A write that the kernel reads from where it lies: what it held when it was made must still be there. */
interface Lent {
  pieces: Uint8Array[];
  bytes: Buffer;
}

for (const writesStaged of [WRITES_STAGED, WRITES_STAGED_ZERO_COPY]) {
  t.test(`buffers for ${writesStaged} writes: no byte changes before it is released`, async (t) => {
    const file = path.join(temporaryDirectory(t), 'ram');
    const ram = Buffer.alloc(PAGES * PAGE);
    new Random(7).bytes(ram);
    fs.writeFileSync(file, ram);
    const fd = fs.openSync(file, 'r');
    t.teardown(() => fs.closeSync(fd));

    const control = Control.create({
      channels: 1,
      clients: 1,
      pageSize: PAGE,
      dataBytes: PAGE,
      packets: PACKETS,
    });
    const block: BlockDescription = { name: 'pc.ram', size: ram.length, kind: 'file', base: 0, fd };
    const outgoing = new Outgoing({ id: 0, pageSize: PAGE, blocks: [block], compression: 'none' }, control);
    const lent: Lent[] = [];
    const spoiled = (): number =>
      lent.filter(({ pieces, bytes }) => !Buffer.concat(pieces).equals(bytes)).length;
    let waits = 0;
    let writes = 0;
    const task = { id: 0, pageSize: PAGE, zeroPageDetection: 'none' as const };
    const packets = new PagePackets(task, control, {
      source: new PageSource([block], PAGE, writesStaged),
      compressing: undefined,
      outgoing,
      writesStaged,
      write: async () => {
        outgoing.writeTo({
          write: (pieces, arePages) => {
            const pages = pieces.filter((_, i) => arePages[i]);
            t.ok(
              pieces.every((piece, i) => arePages[i] === piece.length >= PAGE),
              'pages are told from headers',
            );
            lent.push({ pieces: pages, bytes: Buffer.concat(pages) });
            writes++;
          },
        });
        if (spoiled() > 0) t.fail(`write ${writes}: ${spoiled()} writes were spoiled`);
      },
      // The kernel keeps all that it may.
      released: async (but) => {
        waits++;
        if (spoiled() > 0) t.fail(`${spoiled()} writes were spoiled`);
        lent.splice(0, Math.max(0, lent.length - but));
      },
    });
    let slot = control.slots[1];
    for (let round = 0; round < ROUNDS; round++) {
      slot.type = PAYLOAD_RAM;
      slot.block = 0;
      // A packet less, so that a buffer gets other pages each round.
      slot.num = PAGES - 128;
      slot.range = true;
      slot.allZero = false;
      slot.pages[0] = 0;
      slot = control.publish(0, slot);
      await packets.send(control.slotOf(0));
    }
    t.ok(writes >= ROUNDS * 4, `${writes} writes`);
    t.ok(waits >= writes, `${waits} waits`);
    t.ok(lent.length <= writesStaged, `${lent.length} writes with the kernel at the end`);
  });
}
