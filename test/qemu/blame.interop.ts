/** A real source that is set up otherwise, or breaks off: the sentence that names it, as soon as the bytes tell. */
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import { MultifdError, type Receiver, receiveMigration } from '../../src/index.js';
import { within } from '../support/within.js';
import { requirePrograms } from './programs.js';
import { Qemu, workFolder } from './qemu.js';

const MiB = 2 ** 20;
/** Less than connectTimeoutMs here, which would end it as well. */
const ERROR_MS = 15_000;
const CONNECT_MS = 60_000;

const { qemu: program } = requirePrograms();
const folder = workFolder(t);

interface Fault {
  channels?: number;
  plain?: boolean;
  cancel?: boolean;
  code: string;
  message: RegExp;
}

const FAULTS: Record<string, Fault> = {
  'more channels': {
    channels: 4,
    code: 'ERR_MULTIFD_CHANNEL_ID',
    message: /received [23], expected .*more channels than the 2 here: option channels, --channels/,
  },
  'no multifd': {
    plain: true,
    code: 'ERR_MULTIFD_STREAM',
    message: /sends its pages on the main stream: capability multifd is off there/,
  },
  'a migrate_cancel in the middle': {
    cancel: true,
    code: 'ERR_MULTIFD_EOF',
    message: /the source broke the migration off \(cancelled, failed or ended\) before ram's END/,
  },
};

for (const [i, [name, it]] of Object.entries(FAULTS).entries()) {
  t.test(`a source with ${name} is told`, async (t) => {
    const source = await Qemu.start(t, program, folder);
    await source.waitUntilReady();
    await source.setMultifd({ channels: it.channels ?? 2, compression: 'none' });
    if (it.plain === true) await source.setCapabilities({ multifd: false });
    await source.setParameters({ 'max-bandwidth': it.cancel === true ? 8 * MiB : 2 ** 40 });
    const listen = path.join(folder, `blame${i}.sock`);
    let receiver: Receiver | undefined;
    let go!: () => void;
    const listening = new Promise<void>((resolve) => (go = resolve));
    const call = receiveMigration({
      address: { path: listen },
      channels: 2,
      connectTimeoutMs: CONNECT_MS,
      out: path.join(folder, `blame${i}.mig`),
      onListening: go,
      onSession: (session) => (receiver = session),
    });
    const outcome = call.catch((error: unknown) => error);
    await Promise.race([listening, call]);
    await source.execute('migrate', { uri: `unix:${listen}` });
    if (it.cancel === true) {
      for (let tries = 0; tries < 1000 && (receiver?.stats().bytes ?? 0) < MiB; tries++) await sleep(10);
      await source.execute('migrate_cancel');
    }
    const error = await within(outcome, ERROR_MS, 'an error');
    t.ok(error instanceof MultifdError, String(error));
    t.match(error, { code: it.code, message: it.message });
    await source.kill();
  });
}
