/** A source that migrates a guest of any size in several rounds, its main stream with pages of its own where a round has some. */
import { once } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { createSender, type Address, type Compression } from '../../src/index.js';
import { readTail } from '../../src/mapped-ram/pages.js';
import { readMappedRam } from '../../src/mapped-ram/read.js';
import { MainStreamBuilder, encodePageRecord } from '../../src/stream/main-writer.js';
import { machineRules } from '../../src/stream/machine.js';
import { readBytes } from './captures.js';

export const BLOCK = 'pc.ram';
const PAGE = 4096;

/** Between two rounds the guest writes; pages by number. */
export interface Round {
  /** Called before the round: writes what has changed. */
  write?: () => void;
  /** What goes over the channels: runs of pages. Default: all. */
  runs?: readonly (readonly [first: number, count: number])[];
  /** What goes as PAGE records of the main stream. */
  records?: readonly number[];
}

export interface RoundsOptions {
  channels?: number;
  compression?: Compression;
}

/** The devices are those of a capture. Resolves when all is sent and every connection is closed. */
export async function migrateRounds(
  address: Address,
  memory: SharedArrayBuffer,
  rounds: readonly Round[],
  { channels = 2, compression = 'none' }: RoundsOptions = {},
): Promise<void> {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'multifd-rounds-'));
  const file = await captureIn(folder);
  const main = net.connect(address as net.NetConnectOpts);
  try {
    await once(main, 'connect');
    main.on('error', () => {}).resume();
    const capture = await readMappedRam(file);
    const blocks = [{ ...capture.blocks[0], name: BLOCK, usedLength: memory.byteLength }];
    const builder = new MainStreamBuilder({ ...capture, blocks }, machineRules(capture.machine));
    main.write(builder.begin());
    main.write(builder.start());
    await using sender = await createSender({
      address,
      channels,
      compression,
      blocks: [{ name: BLOCK, memory }],
    });
    const endSection = async (): Promise<void> => {
      await sender.sync();
      main.write(builder.endSection());
    };
    await endSection();
    for (const { write, runs = [[0, memory.byteLength / PAGE]], records = [] } of rounds) {
      write?.();
      main.write(builder.part());
      for (const page of records) {
        main.write(encodePageRecord(BLOCK, page * PAGE, false));
        main.write(Buffer.from(new Uint8Array(memory, page * PAGE, PAGE).slice()));
      }
      for (const [first, count] of runs) await sender.queueRange(BLOCK, first * PAGE, count * PAGE);
      await endSection();
    }
    main.write(builder.end());
    await endSection();
    for await (const piece of readTail(file, capture)) main.write(piece);
    main.end();
    await sender.end();
    if (!main.closed) await once(main, 'close');
  } finally {
    main.destroy();
    await file.close();
    fs.rmSync(folder, { recursive: true, force: true });
  }
}

async function captureIn(folder: string): Promise<fs.promises.FileHandle> {
  const file = path.join(folder, 'capture.mig');
  fs.writeFileSync(file, readBytes('q100-mappedram-multifd.mig'));
  return fs.promises.open(file, 'r');
}
