/** Moves a PC of v86 from process to process, and holds what its guest says and what is in its memory against its twin. */
import type { Test } from 'tap';
import { GuestConsole } from '../../src/cli/demo/v86/guest-console.js';
import type { GuestProgramOptions } from '../../src/cli/demo/v86/guest-program.js';
import type { SourceSettings } from '../../src/cli/demo/v86/pc-messages.js';
import { within } from '../support/within.js';
import { WAIT_MS } from './scene.js';
import { REGION_BYTES, pcHost } from './v86.js';

export const SLEEPS: GuestProgramOptions = { regionBytes: REGION_BYTES };
export const WRITES: GuestProgramOptions = { regionBytes: REGION_BYTES, sleeps: false, spin: 100_000 };

/** There and back, so many times in all, between two processes. */
export async function movePc(
  t: Test,
  guest: GuestProgramOptions,
  moves: number,
  more: Partial<SourceSettings> = {},
): Promise<void> {
  const session = { channels: 2, compression: 'none' as const, ...more };
  const stop = new AbortController();
  const guestConsole = new GuestConsole(REGION_BYTES, 0, () => {});
  const take = (index: number) => (text: string) => {
    try {
      guestConsole.take(index, text);
    } catch (error) {
      stop.abort(error);
    }
  };
  const hosts = [pcHost(t, take(0)), pcHost(t, take(1))];
  await within(hosts[0].ask({ type: 'boot', guest }), WAIT_MS, 'the first process');
  const downtimes: number[] = [];
  for (let move = 0; move < moves; move++) {
    const [from, to] = [hosts[move % 2], hosts[(move + 1) % 2]];
    const { channels, compression } = session;
    const listening = to.ask({ type: 'listen', settings: { channels, compression } });
    const address = await within(listening, WAIT_MS, 'a destination');
    const settings = { downtimeLimitMs: 20, maxRounds: 5, notConverging: 'switchover' as const, ...session };
    const moved = from.ask({ type: 'migrate', to: address, settings });
    const both = Promise.all([moved, to.ask({ type: 'arrived' })]);
    const [{ downtimeMs }] = await within(both, WAIT_MS, `move ${move}`);
    downtimes.push(downtimeMs);
    guestConsole.handOver((move + 1) % 2);
    stop.signal.throwIfAborted();
  }
  await within(guestConsole.more(2, stop.signal), WAIT_MS, 'lines where it is now');
  const finish = hosts[moves % 2].ask({ type: 'finish', regionBytes: REGION_BYTES });
  t.match(await within(finish, WAIT_MS, 'its memory'), { differsAt: null });
  stop.signal.throwIfAborted();
  t.equal(downtimes.filter((ms) => ms > 0).length, moves);
  const sorted = downtimes.sort((a, b) => a - b).map((ms) => ms.toFixed(1));
  t.comment(`downtime in ms: median ${sorted[moves >> 1]}, at most ${sorted.at(-1)}`);
}
