/**
 * As schedules.test.ts, 100,000 schedules and many more traces; and the code without one of its stores, notifies and posts,
 * which the schedules must find wrong.
 */
import t from 'tap';
import { spinMissing } from './spin.js';
import { firstFailure, notAccepted, type Side } from './schedules.js';
import type { Change } from './stepped/bundle.js';

// The schedules end by their count, each in so many steps, and the machine may be slow.
t.setTimeout(60 * 60_000);

/** Of each side. */
const COUNT = 50_000;
const ACCEPTED = 10_000;
const ACCEPTED_AT_ONCE = 2000;
/** Those of npm test come before. */
const FROM = 10_000;
/** Most mutants fail within ten. */
const MUTANT_COUNT = 3000;

const missing = spinMissing();

for (const side of ['send', 'receive'] as const satisfies Side[]) {
  t.test(
    `${side}: ${COUNT} schedules, no job lost, no slot owned twice, no sync early, nobody asleep`,
    async (t) => {
      t.equal(await firstFailure(side, FROM, COUNT), undefined);
    },
  );

  const skip = missing === undefined ? false : `${missing}: traces are not held against the model`;
  t.test(`${side}: what ${ACCEPTED} schedules do, the model does`, { skip }, async (t) => {
    for (let from = FROM; from < FROM + ACCEPTED; from += ACCEPTED_AT_ONCE)
      t.same(await notAccepted(side, from, ACCEPTED_AT_ONCE), [], `from ${from} on`);
  });
}

const CONTROL = 'shared/control.js';
const WORD = (name: string): string => `this.#at(id, CHANNEL_${name})`;

/** Each is left out of the code; what comes behind it says which it is. */
const LEFT_OUT: { name: string; side: Side; file?: string; from: string; stays?: string }[] = [
  { name: 'postReady: add', side: 'send', from: 'Atomics.add(this.#words, WORD_READY, 1);' },
  { name: 'postReady: notify', side: 'send', from: 'Atomics.notify(this.#words, WORD_READY);' },
  { name: 'postSem: add', side: 'send', from: 'Atomics.add(this.#words, index, 1);' },
  { name: 'postSem: notify', side: 'send', from: 'Atomics.notify(this.#words, index);' },
  {
    name: 'publish: store',
    side: 'send',
    from: `Atomics.store(this.#words, ${WORD('PENDING_JOB')}, 1);\n    this.postSem(id);`,
    stays: 'this.postSem(id);',
  },
  {
    name: 'publish: postSem',
    side: 'send',
    from: 'this.postSem(id);\n    return empty;',
    stays: 'return empty;',
  },
  {
    name: 'done: store',
    side: 'send',
    from: `Atomics.store(this.#words, ${WORD('PENDING_JOB')}, 0);\n    this.postReady();`,
    stays: 'this.postReady();',
  },
  {
    name: 'done: postReady',
    side: 'send',
    from: `${WORD('PENDING_JOB')}, 0);\n    this.postReady();`,
    stays: `${WORD('PENDING_JOB')}, 0);`,
  },
  {
    name: 'requestSync: store',
    side: 'send',
    from: `Atomics.store(this.#words, ${WORD('PENDING_SYNC')}, 1);`,
  },
  {
    name: 'requestSync: postSem',
    side: 'send',
    from: `${WORD('PENDING_SYNC')}, 1);\n    this.postSem(id);`,
    stays: `${WORD('PENDING_SYNC')}, 1);`,
  },
  {
    name: 'syncDone: store',
    side: 'send',
    from: `Atomics.store(this.#words, ${WORD('PENDING_SYNC')}, 0);`,
  },
  { name: 'syncDone: add', side: 'send', from: `Atomics.add(this.#words, ${WORD('SYNC_DONE')}, 1);` },
  {
    name: 'syncDone: postReady',
    side: 'send',
    from: `${WORD('SYNC_DONE')}, 1);\n    this.postReady();`,
    stays: `${WORD('SYNC_DONE')}, 1);`,
  },
  {
    name: 'setChannelState: store',
    side: 'send',
    from: `Atomics.store(this.#words, ${WORD('STATE')}, state);`,
  },
  {
    name: 'setChannelState: postReady',
    side: 'send',
    from: `${WORD('STATE')}, state);\n    this.postReady();`,
    stays: `${WORD('STATE')}, state);`,
  },
  { name: 'stop: notify STOP', side: 'send', from: 'Atomics.notify(this.#words, WORD_STOP);' },
  {
    name: 'stop: postSem',
    side: 'send',
    from: 'for (let id = 0; id < this.channels; id++) this.postSem(id);',
  },
  {
    name: 'releaseSync: add',
    side: 'receive',
    from: `Atomics.add(this.#words, ${WORD('SYNC_RELEASED')}, 1);`,
  },
  {
    name: 'releaseSync: postSem',
    side: 'receive',
    from: `${WORD('SYNC_RELEASED')}, 1);\n    this.postSem(id);`,
    stays: `${WORD('SYNC_RELEASED')}, 1);`,
  },
  {
    name: 'offer: store',
    side: 'receive',
    from: `Atomics.store(this.#words, ${WORD('PENDING_JOB')}, 1);\n    this.postReady();`,
    stays: 'this.postReady();',
  },
  {
    name: 'offer: postReady',
    side: 'receive',
    from: `${WORD('PENDING_JOB')}, 1);\n    this.postReady();`,
    stays: `${WORD('PENDING_JOB')}, 1);`,
  },
  {
    name: 'taken: store',
    side: 'receive',
    from: `Atomics.store(this.#words, ${WORD('PENDING_JOB')}, 0);\n    this.postSem(id);`,
    stays: 'this.postSem(id);',
  },
  {
    name: 'taken: postSem',
    side: 'receive',
    from: `${WORD('PENDING_JOB')}, 0);\n    this.postSem(id);`,
    stays: `${WORD('PENDING_JOB')}, 0);`,
  },
  {
    name: 'a channel that rests once its wait has ended on STOP',
    side: 'receive',
    file: 'recv/channel.js',
    from: 'if (this.#control.stopped === STOP_RUN) return false;',
    stays: 'return false;',
  },
];

for (const { name, side, file = CONTROL, from, stays = '' } of LEFT_OUT) {
  t.test(`${side}: the code without it is found wrong: ${name}`, async (t) => {
    const changes: Change[] = [{ file, from, to: stays }];
    const found = await firstFailure(side, 1, MUTANT_COUNT, changes);
    t.type(found, 'string');
    t.comment(found?.split('\n')[0]);
  });
}
