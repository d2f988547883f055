/**
 * A hundred sessions with zeroCopySend in one process: some end in order, some are aborted, closed or lose their peer while
 * the kernel has pages. No descriptor, thread, timer or memory stays behind.
 */
import v8 from 'node:v8';
import vm from 'node:vm';
import { setTimeout as sleep } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { createReceiver, createSender, type Sender } from '../../src/index.js';
import { findKoffi, whyNoKoffi } from '../../src/native/koffi.js';
import {
  Leftovers,
  PROMPT_MS,
  RawDestination,
  TCP,
  eventually,
  failure,
  hold,
} from '../support/raw-channel.js';
import { within } from '../support/within.js';

const MiB = 2 ** 20;
const SESSIONS = 100;
/** After these everything that grows once has grown. */
const WARM = 20;
const SIZE = 8 * MiB;
/** What the allocator's heap may wander; a guest's memory that stays in each session would be 16 times that. */
const MAX_GROWTH_BYTES = 40 * MiB;

const unhandled: unknown[] = [];
process.on('unhandledRejection', (reason) => unhandled.push(reason));

function residentBytes(): number {
  v8.setFlagsFromString('--expose-gc');
  const collect = vm.runInNewContext('globalThis.gc') as () => void;
  for (let i = 0; i < 3; i++) collect();
  return process.memoryUsage().rss;
}

/** Memory of its own, which is dropped with the session, whatever the kernel has of it. */
function guest(round: number): SharedArrayBuffer {
  const memory = new SharedArrayBuffer(SIZE);
  Buffer.from(memory).fill(`session ${round}; `);
  return memory;
}

async function whole(t: Test, round: number): Promise<void> {
  const [from, to] = [guest(round), new SharedArrayBuffer(SIZE)];
  const channels = 1 + (round % 3);
  const receiver = await createReceiver({ address: TCP, channels, blocks: [{ name: 'pc.ram', memory: to }] });
  const blocks = [{ name: 'pc.ram', memory: from }];
  const sender = await createSender({ address: receiver.address, channels, blocks, zeroCopySend: true });
  for (let phase = 0; phase < 2; phase++) {
    await within(sender.queueRange('pc.ram', 0, SIZE), PROMPT_MS, `queueRange() ${round}`);
    await within(Promise.all([sender.sync(), receiver.sync()]), PROMPT_MS, `sync() ${round}`);
  }
  await within(Promise.all([sender.end(), receiver.end()]), PROMPT_MS, `end() ${round}`);
  if (!Buffer.from(to).equals(Buffer.from(from))) t.fail(`session ${round}: the memory is different`);
  if (sender.stats().zeroCopyPackets !== 2 * (SIZE / (MiB / 2))) t.fail(`session ${round}: packets`);
}

/** Kept by the test until its end, and so not made where a session could be seen. */
const ignores = (): void => undefined;

/** Its peer reads nothing; the kernel has pages when it ends. */
async function broken(
  t: Test,
  round: number,
  end: (sender: Sender, abort: AbortController, peer: RawDestination) => unknown,
): Promise<void> {
  const destination = await RawDestination.listen(t, TCP, ignores);
  const abort = new AbortController();
  const sender = await createSender({
    address: destination.address,
    channels: 2,
    blocks: [{ name: 'pc.ram', memory: guest(round) }],
    zeroCopySend: true,
    signal: abort.signal,
  });
  const pending = hold(sender.queueRange('pc.ram', 0, SIZE).then(() => sender.sync()));
  await eventually(() => sender.stats().zeroCopyPackets > 1, `packets of session ${round}`);
  await end(sender, abort, destination);
  await failure(pending, `session ${round}`);
  await within(sender.close(), PROMPT_MS, `close() ${round}`);
  await destination.close();
}

t.test(`${SESSIONS} sessions leave nothing`, { timeout: 200_000 }, async (t) => {
  if (findKoffi() === undefined) return t.match(whyNoKoffi(), /koffi|Linux/);
  let leftovers: Leftovers | undefined;
  let before = 0;
  for (let round = 0; round < SESSIONS; round++) {
    if (round === WARM) {
      before = residentBytes();
      leftovers = new Leftovers();
    }
    if (round % 5 === 1) await broken(t, round, (_sender, abort) => abort.abort());
    else if (round % 5 === 2) await broken(t, round, (sender) => sender.close());
    else if (round % 5 === 3) {
      await broken(t, round, (_sender, _abort, { sockets }) =>
        sockets.forEach((socket) => socket.resetAndDestroy()),
      );
    } else await whole(t, round);
    if (round % 5 === 0) residentBytes();
  }
  t.same(await leftovers?.found(), [], 'nothing is left');
  // What was freed goes back to the kernel by and by; what has leaked stays.
  let grown = residentBytes() - before;
  for (let i = 0; i < 50 && grown >= MAX_GROWTH_BYTES; i++) {
    await sleep(200);
    grown = residentBytes() - before;
  }
  t.ok(grown < MAX_GROWTH_BYTES, `the process grew by ${(grown / MiB).toFixed(1)} MiB`);
  t.same(unhandled, [], 'no rejection was left unhandled');
});
