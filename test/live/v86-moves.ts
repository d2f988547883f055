/** Moves a PC of v86 from process to process, and holds what its guest says and what is in its memory against its twin. */
import type { Test } from 'tap';
import { GuestConsole } from '../../src/cli/demo/v86/guest-console.js';
import type { GuestProgramOptions } from '../../src/cli/demo/v86/guest-program.js';
import type { LinuxGuest } from '../../src/cli/demo/v86/linux-guest.js';
import type { SourceSettings } from '../../src/cli/demo/v86/pc-messages.js';
import { within } from '../support/within.js';
import { WAIT_MS } from './scene.js';
import { REGION_BYTES, pcHost } from './v86.js';

export const SLEEPS: GuestProgramOptions = { regionBytes: REGION_BYTES };
export const WRITES: GuestProgramOptions = { regionBytes: REGION_BYTES, sleeps: false, spin: 100_000 };

/** Linux, from a kernel that has to be there, may take that long until its init speaks. */
const BOOT_MS = 180_000;

/** There and back, so many times in all, between two processes. @param linux in which the guest runs; none: on the bare PC */
export async function movePc(
  t: Test,
  guest: GuestProgramOptions,
  moves: number,
  more: Partial<SourceSettings> = {},
  linux?: LinuxGuest,
): Promise<void> {
  const session = { channels: 2, compression: 'none' as const, ...more };
  const stop = new AbortController();
  const speech = linux === undefined ? 'lines' : 'boot, then lines';
  const guestConsole = new GuestConsole(REGION_BYTES, 0, () => {}, speech);
  const take = (index: number) => (text: string) => {
    try {
      guestConsole.take(index, text);
    } catch (error) {
      stop.abort(error);
    }
  };
  const hosts = [pcHost(t, take(0)), pcHost(t, take(1))];
  const ramBytes = linux?.ramBytes;
  const boot =
    linux === undefined
      ? hosts[0].ask({ type: 'boot', guest })
      : hosts[0].ask({ type: 'bootLinux', files: linux.files, guest, ramBytes: linux.ramBytes });
  await within(boot, WAIT_MS, 'the first process');
  if (linux !== undefined) await guestConsole.more(1, stop.signal, BOOT_MS);
  const downtimes: number[] = [];
  for (let move = 0; move < moves; move++) {
    const [from, to] = [hosts[move % 2], hosts[(move + 1) % 2]];
    const { channels, compression } = session;
    const listening = to.ask({ type: 'listen', settings: { channels, compression }, ramBytes });
    const address = await within(listening, WAIT_MS, 'a destination');
    const settings = { downtimeLimitMs: 20, maxRounds: 5, notConverging: 'switchover' as const, ...session };
    const moved = from.ask({ type: 'migrate', to: address, settings });
    const both = Promise.all([moved, to.ask({ type: 'arrived' })]);
    const [{ downtimeMs }] = await within(both, WAIT_MS, `move ${move}`);
    downtimes.push(downtimeMs);
    guestConsole.handOver((move + 1) % 2);
    stop.signal.throwIfAborted();
  }
  await within(guestConsole.more(2, stop.signal, WAIT_MS), WAIT_MS, 'lines where it is now');
  const finish = hosts[moves % 2].ask({ type: 'finish', regionBytes: REGION_BYTES });
  t.match(await within(finish, WAIT_MS, 'its memory'), { differsAt: null });
  stop.signal.throwIfAborted();
  t.equal(downtimes.filter((ms) => ms > 0).length, moves);
  const sorted = downtimes.sort((a, b) => a - b).map((ms) => ms.toFixed(1));
  t.comment(`downtime in ms: median ${sorted[moves >> 1]}, at most ${sorted.at(-1)}`);
}
