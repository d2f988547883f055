/** What `import 'multifd'` loads, dist/lib: the same names as src/index.ts, and its lazily loaded pieces work. */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import * as modules from '../../src/index.js';
import { writePskCredentials } from '../../src/transport/tls/make-credentials.js';

const file = fileURLToPath(new URL('../../lib/index.js', import.meta.url));
const library = (await import(file)) as typeof modules;

t.test('the names are those of src/index.ts', async (t) => {
  t.same(Object.keys(library).sort(), Object.keys(modules).sort());
  t.same(library.ERROR_CODES, modules.ERROR_CODES);
});

t.test('it is the file that the package exports', async (t) => {
  const resolved = (import.meta as { resolve?: (name: string) => string }).resolve?.('multifd') ?? '';
  t.equal(fileURLToPath(resolved), file);
});

t.test('its threads and what it loads for TLS alone are found from there', async (t) => {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'multifd-library-'));
  t.teardown(() => fs.rmSync(dir, { recursive: true, force: true }));
  await writePskCredentials(dir);
  const [from, to] = [new SharedArrayBuffer(65536), new SharedArrayBuffer(65536)];
  new Uint8Array(from).fill(7);
  const receiver = await library.createReceiver({
    address: { port: 0 },
    compression: 'zstd',
    tls: { dir },
    blocks: [{ name: 'pc.ram', memory: to }],
  });
  const sender = await library.createSender({
    address: receiver.address,
    compression: 'zstd',
    tls: { dir },
    blocks: [{ name: 'pc.ram', memory: from }],
  });
  await sender.queueRange('pc.ram', 0, 65536);
  await Promise.all([sender.sync(), receiver.sync()]);
  await Promise.all([sender.end(), receiver.end()]);
  t.ok(Buffer.from(from).equals(Buffer.from(to)));
  const wrong = { address: receiver.address, tls: { dir: '/nowhere' }, blocks: [] };
  const refused: unknown = await library.createSender(wrong).catch((error: unknown) => error);
  t.ok(refused instanceof library.MultifdError);
  t.match(refused, { code: 'ERR_MULTIFD_TLS' });
});
