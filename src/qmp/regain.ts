/**
 * A monitor that is lost in the middle: a proxy, a tunnel or a network broke, QEMU lives and does what it was told last. It is
 * looked for again at the same address, since nobody else can say what became of the VM.
 *
 * One that is lost at each command, and comes back each time, is found each time: who tries a thing again at each loss gives one
 * time for all of them together.
 *
 * Who answers there may be another QEMU, started in the place of one that has ended. Nothing is said to it: park's own settings
 * tell it apart (MigrationSettings.areSet()), and a migration that it knows of.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Qmp } from './qmp.js';

/** A tunnel that is made anew takes some seconds; by choice. */
export const REGAIN_MS = 5_000;
const AGAIN_MS = 200;

/**
 * @param signal ends it as well
 * @returns whether it answers again, before `goesOn` says that it is enough
 */
export async function regain(qmp: Qmp, goesOn: () => boolean, signal?: AbortSignal): Promise<boolean> {
  const isAborted = (): boolean => signal?.aborted === true;
  while (!qmp.isOpen) {
    if (!goesOn() || isAborted()) return false;
    // Before each time: one that answers and closes at once is not asked without a pause either.
    await sleep(AGAIN_MS, undefined, { signal }).catch(() => {});
    // Somebody else may have found it meanwhile.
    if (!qmp.isOpen && !isAborted()) await qmp.reconnect(signal).catch(() => {});
  }
  return true;
}

/** The same for some time, of one call and the next: from the first loss on. */
export class Regaining {
  readonly #qmp: Qmp;
  readonly #ms: number;
  #until: number | undefined;

  constructor(qmp: Qmp, ms = REGAIN_MS) {
    this.#qmp = qmp;
    this.#ms = ms;
  }

  /** Is it there, or there again? */
  async isThere(signal?: AbortSignal): Promise<boolean> {
    if (this.#qmp.isOpen) return true;
    const until = (this.#until ??= performance.now() + this.#ms);
    return regain(this.#qmp, () => performance.now() < until, signal);
  }
}

const GUEST = {
  untouched: 'its guest was not touched',
  migrating:
    'its connections for the migration are broken, so that this fails and its guest runs on there (query-status says so)',
  told: 'its guest was told to stand still',
  parked: 'its guest stands still there',
  loaded:
    'it has the guest, which may run (query-status; see to it that it does not before the file is resumed in another QEMU)',
};

/**
 * What an operator has to know whose monitor is lost for good.
 *
 * @param settings undefined: they were not touched
 */
export function lostWords(state: keyof typeof GUEST, settings: string | undefined): string {
  const words = `QEMU is not heard of at its monitor any more: if it lives, ${GUEST[state]}`;
  if (settings === undefined) return words;
  return `${words}, and its settings for migrations may still be those of the run: they were ${settings}`;
}
