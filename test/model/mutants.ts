/**
 * Mutants of the models: each line with a label `= name` left out once, and pairs of steps in the wrong order. What the models
 * say is worth what they find wrong.
 */
import type { Models } from './spin.js';

export interface Mutant {
  name: string;
  models: Models;
}

const LABELLED = /^( *)\S.*\/\* = (.+) \*\/$/;

/** Each atomic store, notify and post of the models left out, by the labels. */
export function leftOut(models: Models): Mutant[] {
  const mutants: Mutant[] = [];
  for (const [file, text] of Object.entries(models)) {
    const lines = text.split('\n');
    for (const [i, line] of lines.entries()) {
      const found = LABELLED.exec(line);
      if (found === null) continue;
      const changed = [...lines.slice(0, i), `${found[1]}skip;`, ...lines.slice(i + 1)].join('\n');
      mutants.push({ name: found[2], models: { ...models, [file]: changed } });
    }
  }
  return mutants;
}

const SYNC_LOOK = 'LOAD(THREAD(c), w_PENDING_SYNC(c), PENDING_SYNC[c], wantsSync);';
const JOB_LOOK = 'LOAD(THREAD(c), w_PENDING_JOB(c), PENDING_JOB[c], hasJob);';
const NOTE = '  :: NOTE_SEM(c);\n     atomic {\n       LOAD(THREAD(c), w_STOP';

const ORDERS: { name: string; file: string; swaps: [string, string][] }[] = [
  {
    name: 'a channel reads wantsSync after hasJob',
    file: 'send.pml',
    swaps: [
      [SYNC_LOOK, 'SECOND'],
      [JOB_LOOK, SYNC_LOOK],
      ['SECOND', JOB_LOOK],
    ],
  },
  {
    name: 'a channel notes SEM after its look at the job',
    file: 'send.pml',
    swaps: [
      [NOTE, NOTE.replace('NOTE_SEM(c);', 'skip;')],
      [JOB_LOOK, `${JOB_LOOK}\n     NOTE_SEM(c);`],
    ],
  },
  {
    name: 'a slot is emptied after pendingJob is 0',
    file: 'send.pml',
    swaps: [
      ['  filled[slot] = 0;\n', ''],
      ['/* = done: store */', '/* = done: store */\n  filled[slot] = 0;'],
    ],
  },
  {
    name: 'publish() stores pendingJob before the slot',
    file: 'send.pml',
    swaps: [
      ['  STORE(0, w_PENDING_JOB(id), PENDING_JOB[id], 1); /* = publish: store */\n', ''],
      [
        '  atomic { SLOT[id] = slot;',
        '  STORE(0, w_PENDING_JOB(id), PENDING_JOB[id], 1);\n  atomic { SLOT[id] = slot;',
      ],
    ],
  },
  {
    name: 'a wait of the calling thread does not compare READY',
    file: 'words.pml',
    swaps: [['IS(0, op_wait, w_READY, sameREADY[k]) -> slept = sameREADY[k];', 'slept = 1;']],
  },
  {
    name: 'a wait of a channel does not compare SEM',
    file: 'words.pml',
    swaps: [['onSEM[c] = sameSEM[c]; NEXT', 'onSEM[c] = 1; NEXT']],
  },
  {
    name: 'the delivery looks at STOP before it notes READY',
    file: 'receive.pml',
    swaps: [
      ['  :: NOTE_READY(0);\n     LOAD(0, w_STOP, STOP, stopped);', '  :: LOAD(0, w_STOP, STOP, stopped);'],
      [
        '     c = 0;\n     do\n     :: c < CH ->\n        if\n        :: !delivering',
        '     NOTE_READY(0);\n     c = 0;\n     do\n     :: c < CH ->\n        if\n        :: !delivering',
      ],
    ],
  },
  {
    name: 'a SYNC that was read is told before the pages in front of it are taken',
    file: 'receive.pml',
    swaps: [
      ['atomic { assert(!untaken[c]); syncs++ };', 'syncs++;'],
      [
        'offer(c); jobs++',
        'filled[c] = 1; given[c] = 1; untaken[c] = 1; STORE(THREAD(c), w_PENDING_JOB(c), PENDING_JOB[c], 1); postReady(THREAD(c)); jobs++',
      ],
    ],
  },
];

/** @throws Error if the models do not have what is swapped */
export function misordered(models: Models): Mutant[] {
  return ORDERS.map(({ name, file, swaps }) => {
    let text = models[file];
    for (const [from, to] of swaps) {
      if (!text.includes(from)) throw new Error(`${file} has no ${JSON.stringify(from)}`);
      text = text.replace(from, to);
    }
    return { name, models: { ...models, [file]: text } };
  });
}
