/** Pages of the main stream in the file that is made: by which of its descriptors they go. */
import fs from 'node:fs';
import { open } from 'node:fs/promises';
import path from 'node:path';
import t from 'tap';
import type { MappedRamWriter } from '../../src/mapped-ram/writer.js';
import { FileRam } from '../../src/migration/file-ram.js';
import type { RAMBlock } from '../../src/ram/block.js';
import type { Receiver } from '../../src/recv/receiver.js';

const PAGE = 4096;

t.test(
  'a PAGE record goes where the channels write: by the descriptor with O_DIRECT if there is one',
  async (t) => {
    const folder = t.testdir({ first: Buffer.alloc(4 * PAGE), second: Buffer.alloc(4 * PAGE) });
    const handle = await open(path.join(folder, 'first'), 'r+');
    const direct = await open(path.join(folder, 'second'), 'r+');
    t.teardown(() => Promise.all([handle.close(), direct.close()]));
    const laidOut = { blocks: [{ name: 'ram', pagesOffset: PAGE, usedLength: 2 * PAGE }] };
    for (const [file, name] of [
      [{ handle, direct: undefined }, 'first'],
      [{ handle, direct }, 'second'],
    ] as const) {
      let blocks: readonly RAMBlock[] = [];
      const words = new Int32Array(1);
      const receiver = {
        pageBytes: PAGE,
        setBlocks: (given: readonly RAMBlock[]) => (blocks = given),
        presentWords: () => words,
      };
      const ram = new FileRam(receiver as unknown as Receiver, file);
      ram.begin(laidOut as unknown as MappedRamWriter, PAGE);
      t.equal(blocks[0].describe().fd, handle.fd);
      t.equal(blocks[0].describe().directFd, file.direct?.fd);
      // As it comes: a part of a chunk, anywhere in memory.
      const data = Buffer.alloc(PAGE + 1, 7).subarray(1);
      await ram.page('ram', PAGE, data);
      t.equal(words[0], 0b10);
      t.equal(fs.readFileSync(path.join(folder, name)).indexOf(7), 2 * PAGE, name);
      t.equal(fs.readFileSync(path.join(folder, 'second')).includes(7), name === 'second');
    }
  },
);
