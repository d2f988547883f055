/** `multifd stress qemu` with a QEMU that is not there, or that goes in a run: it is said which, and how the run is repeated. */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import t, { type Test } from 'tap';
import { requireReached } from '../../src/stress/qemu-destination.js';
import { run } from '../cli/cli.js';
import { readBytes } from '../migration/captures.js';

function shortFolder(t: Test): string {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'mfd-'));
  t.teardown(() => fs.rmSync(folder, { recursive: true, force: true }));
  return folder;
}

t.test('a destination where nobody listens is an address that is wrong, and no verdict', async (t) => {
  const folder = shortFolder(t);
  const file = path.join(folder, 'vm.mig');
  fs.writeFileSync(file, readBytes('q100-mappedram-multifd.mig'));
  const to = `unix:${path.join(folder, 'none')}`;
  const args = ['stress', 'qemu', '--incoming', to, '--file', file, '--limit', '5', '--seed', '5'];
  const { code, stdout, stderr } = await run(t, args);
  t.equal(code, 1);
  t.match(stderr, new RegExp(`cannot connect to ${to}: .*ENOENT`));
  t.notMatch(stdout, /this side|closed/);
});

t.test('who was reached once may turn away what comes later, and that is a finding', async (t) => {
  const to = { host: '127.0.0.1', port: 4 };
  const refused = new Error('connect ECONNREFUSED');
  const reached = (...connections: Parameters<typeof requireReached>[0]['connections'][number][]) =>
    requireReached({ connections }, to, 7);
  const no = { hasReached: false, refused };
  t.throws(() => reached(no, no), {
    code: 'ERR_MULTIFD_CONNECT',
    message: /tcp:127.0.0.1:4: .*ECONNREFUSED/,
  });
  t.throws(() => reached({ hasReached: undefined, refused: undefined }), {
    code: 'ERR_MULTIFD_TIMEOUT',
    message: 'no connection to tcp:127.0.0.1:4 within 7 ms',
  });
  t.doesNotThrow(() => reached({ hasReached: true, refused: undefined }, no));
  t.doesNotThrow(
    () => reached({ hasReached: false, refused: undefined }),
    'one that the fault has cut before',
  );
  t.doesNotThrow(() => reached());
});
