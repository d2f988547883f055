/**
 * A source that gives up closes its main stream first and its channels a little later; a QEMU before 9.0 hangs where they break
 * before.
 */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { receiveMigration, type Address } from '../../src/index.js';
import { within } from '../support/within.js';
import { CAPTURES, streamsOf } from './captures.js';
import { HandSource } from './peers.js';

const HELLO_BYTES = 64;
const END_MS = 20_000;
/** Where they were broken it took less than 10 ms. */
const LATER_MS = 300;

/** Of the main stream: what comes behind them is waited for by nothing else. */
const MAIN_BYTES = 20;

/** The whole handshake. */
async function begin(
  t: Test,
  options: { connectTimeoutMs?: number } = {},
  connected?: number,
): Promise<{ source: HandSource; result: Promise<unknown>; out: string }> {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'mfd-'));
  t.teardown(() => fs.rmSync(folder, { recursive: true, force: true }));
  const out = path.join(folder, 'vm.mig');
  const { main, channels } = streamsOf(CAPTURES[0]);
  let listens!: (address: Address) => void;
  const listening = new Promise<Address>((resolve) => (listens = resolve));
  const result = receiveMigration({
    address: { host: '127.0.0.1', port: 0 },
    channels: channels.length,
    out,
    onListening: listens,
    ...options,
  });
  result.catch(() => {});
  const source = new HandSource(t, await listening, connected ?? channels.length);
  source.main.write(main.subarray(0, MAIN_BYTES));
  source.channels.forEach((channel, i) => channel.write(channels[i].subarray(0, HELLO_BYTES)));
  await sleep(LATER_MS);
  return { source, result, out };
}

t.test('its channels are left to it', async (t) => {
  const { source, result, out } = await begin(t);
  source.main.end();
  await sleep(LATER_MS);
  t.notOk(
    source.channels.some((channel) => channel.readableEnded || channel.closed),
    'they are open still',
  );
  for (const channel of source.channels) channel.end();
  await t.rejects(within(result, END_MS, 'the end'), { code: 'ERR_MULTIFD_EOF' });
  t.notOk(fs.existsSync(out));
});

t.test('but not for ever', async (t) => {
  const { source, result } = await begin(t);
  source.main.end();
  await t.rejects(within(result, END_MS, 'the end'), { code: 'ERR_MULTIFD_EOF' });
  await source.broken();
});

t.test('and what is told is that it went, not what was waited for meanwhile', async (t) => {
  const { source, result } = await begin(t, { connectTimeoutMs: 600 }, 0);
  source.main.end();
  await t.rejects(within(result, END_MS, 'the end'), { code: 'ERR_MULTIFD_EOF' });
});
