/** What run N of seed S does to a QEMU: one fault on the way between it and us, at a byte or at a packet. */
import { Dice } from './dice.js';

export const QEMU_FAULTS = [
  'none',
  'delay',
  'hold-channel',
  'duplicate',
  'drop',
  'flip',
  'cut-byte',
  'cut-packet',
  'stall',
] as const;
export type QemuFaultKind = (typeof QEMU_FAULTS)[number];

export interface QemuPlan {
  seed: number;
  run: number;
  kind: QemuFaultKind;
  /** Whose bytes or packets are counted: a channel's, or the main stream's. */
  channel: number | 'main';
  /** Of channels, the hello not counted. */
  packet: number;
  /** Of the connection. */
  byte: number;
  /** Of flip: where in the packet, or in the piece of the main stream, 0 to 1; and which bit of the byte. */
  place: number;
  bit: number;
  /** Of delay and hold-channel. */
  ms: number;
}

/** By choice: most of a small guest's packets, and the first of a large one's. */
const MOST_PACKETS = 12;
const MOST_BYTES = 8 * 2 ** 20;

/** @param only this kind, instead of one by chance */
export function qemuPlan(seed: number, run: number, channels: number, only?: QemuFaultKind): QemuPlan {
  const dice = new Dice(seed ^ 0x9e4, run);
  const chosen = dice.pick(QEMU_FAULTS);
  const kind = only ?? chosen;
  const mayBeMain = kind === 'cut-byte' || kind === 'flip' || kind === 'delay';
  const ofMain = dice.percent(30);
  const channel = dice.below(channels);
  return {
    seed,
    run,
    kind,
    channel: mayBeMain && ofMain ? 'main' : channel,
    packet: dice.below(MOST_PACKETS),
    byte: dice.doubling(1, mayBeMain && ofMain ? 2 ** 16 : MOST_BYTES),
    place: dice.below(2 ** 30) / 2 ** 30,
    bit: dice.below(8),
    ms: dice.between(100, 1500),
  };
}
