/**
 * A send channel's loop (src/send/channel.ts) on the test's own thread, so that what the calling thread does in between two of its
 * looks at shared memory is no accident: it happens behind each of them once. Everything else is real, its connection as well.
 */
import t, { type Test } from 'tap';
import { METHODS, type Codec, type SendMethod } from '../../src/methods/methods.js';
import type { Compression } from '../../src/options.js';
import { runSendChannel, type SendChannelTask } from '../../src/send/channel.js';
import {
  CHANNEL_RUNNING,
  Control,
  PAYLOAD_DEVICE_STATE,
  PAYLOAD_RAM,
  STOP_END,
  STOP_FAIL,
} from '../../src/shared/control.js';
import {
  CHANNEL_PENDING_JOB,
  CHANNEL_PENDING_SYNC,
  CHANNEL_SEM,
  Layout,
  WORD_STOP,
} from '../../src/shared/layout.js';
import { captureServer } from '../support/capture-server.js';
import { eventually } from '../support/raw-channel.js';
import { decodeChannel } from '../support/reference-decoder.js';
import { within } from '../support/within.js';

const WAIT_MS = 20_000;
const FAR_MS = 3_600_000;
const PAGE = 4096;
const PAGES = 256;
/** More than the kernel takes of a connection that nobody reads. */
const DEVICE_BYTES = 32 * 2 ** 20;

async function open(t: Test, compression: Compression, { hold = false, dataBytes = PAGE } = {}) {
  const server = await captureServer(t, { hold });
  const control = Control.create({ channels: 1, clients: 1, pageSize: PAGE, dataBytes });
  const buffer = new SharedArrayBuffer(PAGES * PAGE);
  Buffer.from(buffer).fill('something that a codec makes smaller ');
  const task: SendChannelTask = {
    shared: control.shared,
    id: 0,
    compression,
    address: server.address,
    uuid: new Uint8Array(16),
    key: undefined,
    pageSize: PAGE,
    blocks: [{ name: 'pc.ram', size: buffer.byteLength, kind: 'shared', base: 0, buffer }],
    level: 1,
    zeroPageDetection: 'none',
    zeroCopySend: false,
    digests: undefined,
    proof: undefined,
    connectTimeoutMs: WAIT_MS,
    stallTimeoutMs: FAR_MS,
    explained: false,
    tls: undefined,
  };
  const run = runSendChannel(task);
  t.teardown(async () => {
    control.stop(STOP_FAIL);
    await run;
  });
  await eventually(() => control.channelState(0) >= CHANNEL_RUNNING, 'the channel runs');
  let slot = control.slots[1];
  /** Gives one page to the channel. */
  const publish = (page: number): void => {
    slot.type = PAYLOAD_RAM;
    slot.block = 0;
    slot.num = 1;
    slot.range = true;
    slot.pages[0] = page;
    slot = control.publish(0, slot);
  };
  /** What went out, in its order: pages, and SYNC. */
  const sent = async (): Promise<(number | 'SYNC')[]> => {
    const [bytes] = await server.ended(1);
    const { packets } = await decodeChannel(bytes, { pageSize: PAGE, compression });
    return packets.flatMap<number | 'SYNC'>((packet) => {
      if (packet.kind !== 'ram') return [];
      return packet.offsets.length > 0 ? packet.offsets.map((offset) => Number(offset) / PAGE) : ['SYNC'];
    });
  };
  return { control, run, publish, sent, slot };
}

/** Does `act` right behind the next look at a word, within the channel's turn. */
function behindLook(control: Control, word: number, act: () => void): void {
  const { load } = Atomics;
  Atomics.load = ((words: Int32Array, index: number): number => {
    const seen = load(words, index);
    if (words.buffer === control.shared.control && index === word) {
      Atomics.load = load;
      act();
    }
    return seen;
  }) as typeof Atomics.load;
}

const channelWord = new Layout({ channels: 1, clients: 1, pageSize: PAGE, dataBytes: PAGE }).channel(0);
/** What its loop looks at, in its order. */
const LOOKS: Record<string, number> = {
  SEM: channelWord + CHANNEL_SEM,
  STOP: WORD_STOP,
  PENDING_SYNC: channelWord + CHANNEL_PENDING_SYNC,
  PENDING_JOB: channelWord + CHANNEL_PENDING_JOB,
};

/** Payloads of a codec with threads of its own are made later: zstd's are where it is an addon, and here always. */
const zstd = METHODS.zstd as { load: () => Promise<Codec> };
const loadZstd = zstd.load;
zstd.load = async () => {
  const codec = await loadZstd();
  return {
    ...codec,
    createSender: (level) => {
      const sender = codec.createSender(level);
      const compress: SendMethod['compress'] = async (pages, rawFollows) => {
        const made = Buffer.from(await sender.compress(pages, rawFollows));
        await new Promise((resolve) => setTimeout(resolve, 20));
        return made;
      };
      return { compress, raw: (pieces) => sender.raw(pieces), close: () => sender.close() };
    },
  };
};

for (const compression of ['none', 'zstd'] as const) {
  t.test(
    `${compression}: a sync never overtakes the job before it, between which looks they may come`,
    async (t) => {
      const { control, run, publish, sent } = await open(t, compression);
      const expected: (number | 'SYNC')[] = [];
      for (const [what, word] of Object.entries(LOOKS)) {
        const page = expected.length;
        behindLook(control, word, () => {
          publish(page);
          control.requestSync(0);
        });
        // It looks through all of its words.
        control.postSem(0);
        expected.push(page, 'SYNC');
        const syncs = expected.length / 2;
        await eventually(() => control.syncsDone(0) === syncs && control.isIdle(0), `a sync behind ${what}`);
      }
      control.stop(STOP_END);
      t.same(await within(run, WAIT_MS, 'the end'), {});
      t.same(await sent(), expected);
    },
  );

  t.test(
    `${compression}: an orderly end loses no job before it, between which looks they may come`,
    async (t) => {
      for (const [what, word] of Object.entries(LOOKS)) {
        const { control, run, publish, sent } = await open(t, compression);
        behindLook(control, word, () => {
          publish(7);
          control.stop(STOP_END);
        });
        control.postSem(0);
        t.same(await within(run, WAIT_MS, `an end behind ${what}`), {});
        t.same(await sent(), [7], what);
      }
    },
  );
}

t.test("device state is the channel's until the kernel has all of it", async (t) => {
  const { control, slot } = await open(t, 'none', { hold: true, dataBytes: DEVICE_BYTES });
  slot.type = PAYLOAD_DEVICE_STATE;
  slot.idstr = 'dev';
  slot.length = DEVICE_BYTES;
  control.publish(0, slot);
  // As long as anybody might need to be done with it too early.
  for (let i = 0; i < 20; i++) {
    await new Promise((resolve) => setTimeout(resolve, 10));
    if (control.isIdle(0)) break;
  }
  t.notOk(control.isIdle(0));
});

t.test('a failure takes the connection away, also while its peer reads nothing', async (t) => {
  const { control, run, slot } = await open(t, 'none', { hold: true, dataBytes: DEVICE_BYTES });
  slot.type = PAYLOAD_DEVICE_STATE;
  slot.idstr = 'dev';
  slot.length = DEVICE_BYTES;
  control.publish(0, slot);
  await new Promise((resolve) => setTimeout(resolve, 50));
  control.stop(STOP_FAIL);
  t.same(await within(run, WAIT_MS, 'the end of the channel'), {});
});
