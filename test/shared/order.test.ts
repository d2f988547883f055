/**
 * The order of what others see, on one thread: each call of Atomics is looked at in the moment before it is made. What a store
 * publishes must be in place by then, and a notify must come behind the change that it tells of: with either the other way round
 * all is well but for a moment that no test of threads hits.
 */
import t from 'tap';
import {
  CHANNEL_RUNNING,
  Control,
  PAYLOAD_NONE,
  PAYLOAD_RAM,
  STOP_END,
  markPages,
  unmarkPages,
} from '../../src/shared/control.js';
import {
  CHANNEL_PENDING_JOB,
  CHANNEL_PENDING_SYNC,
  CHANNEL_SEM,
  CHANNEL_STATE,
  CHANNEL_SYNC_DONE,
  CHANNEL_SYNC_RELEASED,
  Layout,
  WORD_PROGRESS,
  WORD_PROOF,
  WORD_READY,
  WORD_STOP,
} from '../../src/shared/layout.js';
import { DIGEST_BYTES, ProofTable, makeProofTable } from '../../src/shared/proof-table.js';

const SHAPE = { channels: 2, clients: 2, pageSize: 4096, dataBytes: 4096 };
/** The channel that is acted on. */
const ID = 1;
const CALLS = ['store', 'add', 'or', 'and', 'compareExchange', 'notify'] as const;
type Words = Int32Array | Uint8Array;
type Look = (call: (typeof CALLS)[number], words: Words, index: number) => void;

/** Does `act`, with a look before each call that changes a word, or wakes somebody. */
function watched(act: () => void, look: Look): void {
  const atomics = Atomics as unknown as Record<
    string,
    (words: Words, index: number, ...rest: number[]) => number
  >;
  const real = CALLS.map((call) => [call, atomics[call]] as const);
  for (const [call, made] of real) {
    atomics[call] = (words, index, ...rest) => {
      look(call, words, index);
      return made.call(Atomics, words, index, ...rest);
    };
  }
  try {
    act();
  } finally {
    for (const [call, made] of real) atomics[call] = made;
  }
}

const layout = new Layout(SHAPE);
const NAMES = new Map<number, string>([
  [WORD_STOP, 'STOP'],
  [WORD_READY, 'READY'],
  [WORD_PROGRESS, 'PROGRESS'],
  [WORD_PROOF, 'PROOF'],
  [layout.channel(0) + CHANNEL_SEM, 'SEM of 0'],
  [layout.channel(ID) + CHANNEL_PENDING_JOB, 'PENDING_JOB'],
  [layout.channel(ID) + CHANNEL_PENDING_SYNC, 'PENDING_SYNC'],
  [layout.channel(ID) + CHANNEL_SEM, 'SEM'],
  [layout.channel(ID) + CHANNEL_STATE, 'STATE'],
  [layout.channel(ID) + CHANNEL_SYNC_DONE, 'SYNC_DONE'],
  [layout.channel(ID) + CHANNEL_SYNC_RELEASED, 'SYNC_RELEASED'],
]);

t.test('each verb changes its words in this order, and notifies behind the change', async (t) => {
  const ready = ['add READY', 'notify READY'];
  const sem = ['add SEM', 'notify SEM'];
  const verbs: [string, (control: Control) => void, string[]][] = [
    ['publish()', (control) => control.publish(ID, control.slots[2]), ['store PENDING_JOB', ...sem]],
    ['done()', (control) => control.done(ID), ['store PENDING_JOB', ...ready]],
    ['requestSync()', (control) => control.requestSync(ID), ['store PENDING_SYNC', ...sem]],
    // Whoever sees it counted may ask for the next one at once: cleared behind that, the next one would be lost.
    ['syncDone()', (control) => control.syncDone(ID), ['store PENDING_SYNC', 'add SYNC_DONE', ...ready]],
    ['releaseSync()', (control) => control.releaseSync(ID), ['add SYNC_RELEASED', ...sem]],
    ['offer()', (control) => control.offer(ID), ['store PENDING_JOB', ...ready]],
    ['taken()', (control) => control.taken(ID), ['store PENDING_JOB', ...sem]],
    [
      'setChannelState()',
      (control) => control.setChannelState(ID, CHANNEL_RUNNING),
      ['store STATE', ...ready],
    ],
    ['postProgress()', (control) => control.postProgress(), ['add PROGRESS', 'notify PROGRESS']],
    ['askProof()', (control) => control.askProof(), ['or PROOF', 'notify PROOF']],
    [
      'stop()',
      (control) => control.stop(STOP_END),
      [
        ...['compareExchange STOP', 'notify STOP', ...ready, 'add PROGRESS', 'notify PROGRESS'],
        ...['add SEM of 0', 'notify SEM of 0', ...sem, 'notify BOOTED', 'or PROOF', 'notify PROOF'],
      ],
    ],
  ];
  for (const [verb, act, expected] of verbs) {
    const control = Control.create(SHAPE);
    const calls: string[] = [];
    watched(
      () => act(control),
      (call, words, index) => {
        const isBooted = words.buffer === control.shared.booted;
        calls.push(`${call} ${isBooted ? 'BOOTED' : NAMES.get(index)}`);
      },
    );
    t.same(calls, expected, verb);
  }
});

t.test('what a store publishes is in place before it', async (t) => {
  const control = Control.create(SHAPE);
  const channel = Control.attach(control.shared);
  const job = layout.channel(ID) + CHANNEL_PENDING_JOB;
  let looks = 0;
  const before = (act: () => void, look: () => void): void =>
    watched(act, (call, _words, index) => {
      if (call !== 'store' || index !== job) return;
      looks++;
      look();
    });
  const given = control.slots[2];
  given.type = PAYLOAD_RAM;
  given.num = 7;
  before(
    () => control.publish(ID, given),
    () => t.equal(channel.slotOf(ID).index, given.index, 'publish(): the slot'),
  );
  for (const verb of ['done', 'taken'] as const) {
    given.type = PAYLOAD_RAM;
    given.num = 7;
    before(
      () => channel[verb](ID),
      () => t.same([given.type, given.num], [PAYLOAD_NONE, 0], `${verb}(): an empty slot`),
    );
  }
  t.equal(looks, 3);

  const shared = makeProofTable(2);
  const [table, reader] = [new ProofTable(shared), new ProofTable(shared)];
  const digest = Buffer.alloc(DIGEST_BYTES, 0xab);
  watched(
    () => table.put(1, digest),
    (call) => {
      if (call !== 'store') return;
      looks++;
      t.same(reader.digests(1, 2), digest, 'put(): the digest');
    },
  );
  t.equal(looks, 4);
});

t.test('marks of pages are made and taken away by one call for each word', async (t) => {
  const words = new Int32Array(new SharedArrayBuffer(4 * Int32Array.BYTES_PER_ELEMENT));
  for (const [change, call, left] of [
    [markPages, 'or', [1 << 31, -1, 3, 0]],
    [unmarkPages, 'and', [0, 0, 0, 0]],
  ] as const) {
    const calls: string[] = [];
    watched(
      () => void change(words, 31, 35),
      (call, _words, index) => calls.push(`${call} ${index}`),
    );
    t.same(calls, [`${call} 0`, `${call} 1`, `${call} 2`]);
    t.same([...words], left);
  }
});
