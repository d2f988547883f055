/**
 * A stock QEMU as the destination of a VM with option verify, whose machine and memory it has: it knows no such section, and
 * refuses by itself. The stream is made by hand, since QEMU's own devices have the section ids of a source of ours.
 */
import net from 'node:net';
import { once } from 'node:events';
import path from 'node:path';
import t from 'tap';
import { createSender } from '../../src/index.js';
import { PROOF_DEVICE, encodeDeviceSection, encodeEnd } from '../../src/live/device-sections.js';
import { encodeProofHead } from '../../src/live/proof-section.js';
import { CHUNK_BYTES, chunksOf, digestOf } from '../../src/ram/chunks.js';
import { MEMORY_BYTES as SIZE } from '../../src/cli/demo/qemu/boot-sector.js';
import { MainStreamBuilder } from '../../src/stream/main-writer.js';
import { within } from '../support/within.js';
import { requirePrograms } from './programs.js';
import { Qemu, workFolder } from './qemu.js';

const WAIT_MS = 60_000;
const PAGE = 4096;
/** None of QEMU's own devices has it there: 0 is what those have that have not come. */
const RAM_SECTION_ID = 77;

const program = requirePrograms().qemu;
const folder = workFolder(t);

/** One whose incoming migration has failed ends. */
async function gone(qemu: Qemu): Promise<void> {
  while (!qemu.ended) await new Promise((resolve) => setTimeout(resolve, 50));
}

for (const verify of [true, false]) {
  t.test(verify ? 'the digests are refused' : 'all else is taken, without them', async (t) => {
    const to = path.join(folder, `verify-${verify}.sock`);
    const destination = await Qemu.start(t, program, folder, { incoming: true });
    const machines = (await destination.execute('query-machines')) as { name: string; alias?: string }[];
    const machine = machines.find(({ alias }) => alias === 'pc')?.name ?? '';
    await destination.setMultifd({ channels: 1, compression: 'none' });
    await destination.execute('migrate-incoming', { uri: `unix:${to}` });

    const main = net.connect(to);
    main.on('error', () => {}).resume();
    t.teardown(() => main.destroy());
    await within(once(main, 'connect'), WAIT_MS, 'connect');
    const configuration = { machine };
    const builder = new MainStreamBuilder(
      {
        configuration,
        blocks: [{ name: 'pc.ram', usedLength: SIZE }],
        sectionId: RAM_SECTION_ID,
        footers: true,
      },
      { marker: 'flush', switchoverStart: false },
    );
    main.write(builder.setup([]));
    const memory = new SharedArrayBuffer(SIZE);
    const sender = await createSender({
      address: { path: to },
      blocks: [{ name: 'pc.ram', memory }],
      channels: 1,
    });
    t.teardown(() => sender.close());
    sender.done.catch(() => {});
    await sender.sync();
    main.write(builder.endSection());
    main.write(builder.end());
    await sender.queueRange('pc.ram', 0, SIZE);
    await sender.sync();
    main.write(builder.endSection());
    const digests = Array<Uint8Array>(chunksOf(SIZE)).fill(digestOf(Buffer.from(memory), 0, CHUNK_BYTES));
    const data = Buffer.concat([encodeProofHead([{ name: 'pc.ram', size: SIZE }]), ...digests]);
    const states = verify ? [{ device: PROOF_DEVICE, data }] : [];
    for (const state of states) main.write(Buffer.concat(encodeDeviceSection(RAM_SECTION_ID + 1, state)));
    main.write(encodeEnd(states, configuration, PAGE));

    if (verify) {
      await within(gone(destination), WAIT_MS, 'the end of QEMU');
      t.match(destination.stderr, /Unknown (savevm )?section or instance '?multifd-verify/);
    } else t.match(await destination.migrationEnd(), { status: 'completed' });
  });
}
