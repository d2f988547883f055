/** Option resumable: a destination that is killed while it waits, and one that answers what cannot be. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import net from 'node:net';
import readline from 'node:readline';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import { createMigrationSource, type Address, type MigrationSource } from '../../src/index.js';
import { encodeResumeAnswer, encodeResumePages, randomKey } from '../../src/stream/resume-section.js';
import { within } from '../support/within.js';
import { Cutter } from './cutter.js';
import { PAGE, PAGES } from './resume-scene.js';
import { MACHINE, WAIT_MS, failure } from './scene.js';

const PROGRAM = fileURLToPath(new URL('../fixtures/live-resumable-process.js', import.meta.url));

async function source(t: Test, to: Address, own: object = {}): Promise<MigrationSource> {
  const memory = new SharedArrayBuffer(PAGES * PAGE);
  new Uint8Array(memory).fill(1);
  const source = await createMigrationSource({
    to,
    machine: MACHINE,
    blocks: [{ name: 'ram', memory }],
    dirty: () => [],
    devices: [{ idstr: 'cpu', save: () => Buffer.from('state') }],
    resumable: true,
    pause: () => void t.fail('it is not to get so far'),
    resume: () => {},
    ...own,
  });
  t.teardown(() => source.cancel());
  return source;
}

t.test('killed in the pause: the next try says that nobody is there', async (t) => {
  const destination = spawn(process.execPath, [PROGRAM, String(PAGES)], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  t.teardown(() => destination.kill('SIGKILL'));
  const lines = readline.createInterface(destination.stdout)[Symbol.asyncIterator]();
  const next = async (): Promise<string> => (await within(lines.next(), WAIT_MS, 'a line')).value as string;
  const address = JSON.parse(await next()) as Address;
  const cutter = await Cutter.listen(t, address);
  cutter.next({ bytes: 200 * PAGE });
  const first = await source(t, cutter.address);
  await failure(first.done);
  t.equal(await next(), 'active');
  t.equal(await next(), 'precopy-paused');
  const exit = once(destination, 'exit');
  destination.kill('SIGKILL');
  await within(exit, WAIT_MS, 'the end of the destination');
  const second = await source(t, address, { resumeFrom: first });
  const error = await failure(second.done);
  t.match(error, { code: 'ERR_MULTIFD_CONNECT', message: /^cannot connect to tcp:127.0.0.1:\d+/ });
  t.equal(second.state, 'failed');
  const third = await source(t, address, { resumeFrom: second });
  t.equal((await failure(third.done)).code, 'ERR_MULTIFD_CONNECT', 'as often as it is tried');
});

const answer = (completed: number): Buffer => encodeResumeAnswer({ completed, key: randomKey() });
const LIES: Record<string, [Buffer, RegExp]> = {
  'a round that has never begun': [
    answer(1),
    /the destination's last round that is whole: received 1, expected at most 0/,
  ],
  'pages of no block': [
    Buffer.concat([encodeResumePages('rom', 0, Int32Array.of(1)), answer(0)]),
    /pages of RAM block "rom": words from 0 on: received 1, expected no such block/,
  ],
  'pages behind the end of a block': [
    Buffer.concat([encodeResumePages('ram', PAGES / 32, Int32Array.of(1)), answer(0)]),
    /pages of RAM block "ram": words from 32 on: received 1, expected at most 0/,
  ],
};

for (const [what, [bytes, message]] of Object.entries(LIES)) {
  t.test(`a destination that claims to have ${what} is refused`, async (t) => {
    const server = net.createServer((socket) => {
      socket.on('error', () => {}).resume();
      socket.write(bytes);
    });
    t.teardown(() => server.close());
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    const to = { host: '127.0.0.1', port: (server.address() as net.AddressInfo).port };
    const it = await source(t, to);
    t.match(await failure(it.done), { code: 'ERR_MULTIFD_PROTOCOL', message });
  });
}
