/**
 * A monitor that is lost in the middle: a proxy, a tunnel or a network broke, QEMU lives and does what it was told last. It is
 * looked for again at the same address, since nobody else can say what became of the VM.
 *
 * Who answers there may be another QEMU, started in the place of one that has ended. Nothing is said to it: park's own settings
 * tell it apart (MigrationSettings.areSet()), and a migration that it knows of.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Qmp } from './qmp.js';

/** A tunnel that is made anew takes some seconds; by choice. */
export const REGAIN_MS = 5_000;
const AGAIN_MS = 200;

/** @returns whether it answers again, before `goesOn` says that it is enough */
export async function regain(qmp: Qmp, goesOn: () => boolean): Promise<boolean> {
  while (!qmp.isOpen) {
    if (!goesOn()) return false;
    await qmp.reconnect().catch(() => sleep(AGAIN_MS));
  }
  return true;
}

/** The same for some time. */
export async function regainSoon(qmp: Qmp, ms = REGAIN_MS): Promise<boolean> {
  const late = performance.now() + ms;
  return regain(qmp, () => performance.now() < late);
}

const GUEST = {
  untouched: 'its guest was not touched',
  migrating:
    'its connections for the migration are broken, so that this fails and its guest runs on there (query-status says so)',
  told: 'its guest was told to stand still',
  parked: 'its guest stands still there',
};

/** What an operator has to know whose monitor is lost for good. */
export function lostWords(state: keyof typeof GUEST, settings: string): string {
  return (
    `QEMU is not heard of at its monitor any more: if it lives, ${GUEST[state]}, and its settings for migrations may still be ` +
    `those of the run: they were ${settings}`
  );
}
