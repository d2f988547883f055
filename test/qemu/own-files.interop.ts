/** Files that QEMU itself wrote with mapped-ram, in all its ways: read, and sent on by us. */
import fs from 'node:fs';
import path from 'node:path';
import t from 'tap';
import { readMappedRam } from '../../src/index.js';
import { CHANNELS, METHODS, type Peer } from './matrix.js';
import { type Parked, makeFast, makeSlow, resume, send } from './park.js';
import { type Program, requirePrograms } from './programs.js';
import { Qemu, workFolder } from './qemu.js';
import { ALL_ROWS } from './rows.js';

interface FileCase {
  machine: string;
  /** Channels that write; 0: without multifd. */
  channels: number;
  directIo?: boolean;
  /** Where the stream begins in the file. */
  offset?: number;
  to: readonly Peer[];
}

const CASES: readonly FileCase[] = [
  { machine: 'pc', channels: 0, to: ['qemu'] },
  { machine: 'pc', channels: 4, to: ['qemu'] },
  { machine: 'pc', channels: 2, directIo: true, to: ['qemu'] },
  { machine: 'pc', channels: 2, offset: 0x3000, to: ['qemu'] },
  { machine: 'pc-i440fx-7.2', channels: 0, to: ['qemu', 'qemu72'] },
  { machine: 'pc-i440fx-7.2', channels: 2, to: ['qemu72', 'qemu'] },
  { machine: 'pc-i440fx-7.2', channels: 8, directIo: true, to: ['qemu72'] },
];

type Saved = Pick<Parked, 'file' | 'offset' | 'machine' | 'ram' | 'counter'>;

/** The guest goes into the file while it runs. Undefined where the file system has no O_DIRECT. */
async function save(source: Qemu, file: string, it: FileCase): Promise<Saved | undefined> {
  const { channels, directIo = false, offset = 0 } = it;
  await source.setCapabilities({ 'mapped-ram': true, multifd: channels > 0 });
  if (channels > 0) await source.setParameters({ 'multifd-channels': channels });
  await source.setParameters({ 'direct-io': directIo });
  await makeSlow(source);
  await source.execute('migrate', { uri: `file:${file}${offset > 0 ? `,offset=${offset}` : ''}` });
  await makeFast(source);
  const info = await source.migrationEnd();
  if (directIo && info.status === 'failed' && /direct/i.test(info['error-desc'] ?? '')) return undefined;
  if (info.status !== 'completed') throw new Error(`${info.status}: ${info['error-desc']}`);
  const { machine } = await readMappedRam(file, { offset });
  return { file, offset, machine, ram: await source.ram(), counter: await source.counter() };
}

const root = t;
const programs: Record<Peer, Program> = requirePrograms();
const folder = workFolder(t);
const sources = new Map<string, Qemu>();
let sends = 0;

for (const [i, it] of CASES.entries()) {
  if (!ALL_ROWS && i % 3 !== 1) continue;
  const how = `${it.channels} channels${it.directIo === true ? ', direct-io' : ''}`;
  const where = `${it.offset === undefined ? '' : ', not at its begin'}: sent to ${it.to.length} QEMUs`;
  t.test(`QEMU's own file, ${it.machine}, multifd ${it.channels > 0 ? how : 'off'}${where}`, async (t) => {
    const { machine } = it;
    const source = sources.get(machine) ?? (await Qemu.start(root, programs.qemu, folder, { machine }));
    sources.set(machine, source);
    await resume(source);
    await source.waitUntilReady();
    const file = path.join(folder, `own${sends}.mig`);
    const saved = await save(source, file, it);
    if (saved === undefined) {
      t.pass('O_DIRECT is not to be had here');
      return;
    }
    const description = await readMappedRam(file, { offset: it.offset });
    t.same(description.problems, [], 'readMappedRam() finds no problem');
    for (const to of it.to) {
      const options = { channels: CHANNELS[sends % 3], compression: METHODS[(sends + 1) % 3] };
      sends++;
      const sent = await send(t, programs[to], saved, folder, options);
      t.comment(`to QEMU ${programs[to].version}: ${options.compression}, ${options.channels} channels`);
      t.equal(sent.zeroPageDetection, machine === 'pc' ? 'multifd' : 'legacy', 'chosen by machine type');
    }
    fs.rmSync(file);
  });
}
