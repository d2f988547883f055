/** The fault of a run with a QEMU, as filters of what passes; and what it has made of the guest's RAM, as far as that follows. */
import type { PassedConnection, PassOn } from '../transport/pass-on.js';
import { PacketSplitter, type Unit } from './packet-splitter.js';
import type { QemuPlan } from './qemu-plan.js';
import { EndWatch } from './stream-end.js';

/** What a destination that has loaded all has in its RAM then. */
export type Effect = 'same' | 'wrong' | 'unknown';

/**
 * Has QEMU been given what it needs to load its guest? `no`: something was withheld, or hit, that it cannot do without. `unknown`:
 * it was given all, and would have said so, or what was hit may mean anything. `yes`: it was given all, as it was sent, and what
 * was hit comes behind it.
 */
export type Given = 'yes' | 'no' | 'unknown';

const COUNTED_MS = 20;

export class QemuFault {
  struckAt: number | undefined;
  effect: Effect = 'same';
  /** Which byte, or which packet, for people. */
  what = '';
  readonly #plan: QemuPlan;
  /** Is the payload the pages themselves? Of a codec's stream no bit can be told by itself. */
  readonly #isPlain: boolean;
  readonly #pageSize: number;
  readonly #timers = new Set<NodeJS.Timeout>();
  readonly #end: EndWatch | undefined;
  /** Of the main stream, before its end. */
  #isMainSpoilt = false;
  /** Hit behind its end: QEMU's answer cannot come through, or QEMU waits for more of a description that it does not need. */
  #isBehindEnd = false;
  /** Of a channel: something that QEMU waits for, or that it takes for something else. */
  #isChannelSpoilt = false;
  /** What comes is not passed on, or not before all is over. */
  #isWithheld = false;
  #all: readonly PassedConnection[] = [];

  /** @param mark of endOfStream(); to a source there is none */
  constructor(plan: QemuPlan, isPlain: boolean, pageSize: number, mark?: Buffer) {
    this.#plan = plan;
    this.#isPlain = isPlain;
    this.#pageSize = pageSize;
    this.#end = mark && new EndWatch(mark);
  }

  get given(): Given {
    if (this.#isMainSpoilt) return 'unknown';
    if (this.#end?.hasPassed !== true || this.#isChannelSpoilt) return 'no';
    return this.#isBehindEnd ? 'yes' : 'unknown';
  }

  begin(passOn: PassOn): void {
    this.#all = passOn.connections;
  }

  /** Puts itself in the way of what the source sends, and lets it go on. */
  connection(connection: PassedConnection): void {
    const splitter = new PacketSplitter(this.#pageSize);
    const at = { packets: 0, bytes: 0 };
    connection.towards.filter = (chunk) => {
      const out: Buffer[] = [];
      for (const unit of splitter.push(chunk)) {
        const isHit = this.struckAt === undefined && this.#isMoment(splitter, unit, at);
        if (unit.kind === 'packet') at.packets++;
        at.bytes += unit.bytes.length;
        const goesOn = isHit ? this.#strike(connection, unit, at.bytes - unit.bytes.length) : [unit.bytes];
        out.push(...goesOn);
        if (splitter.isMain === true && !this.#isWithheld) for (const bytes of goesOn) this.#end?.push(bytes);
      }
      return out;
    };
    connection.connect();
  }

  /** For a time, after which what it holds goes on. */
  get holds(): boolean {
    return this.#timers.size > 0;
  }

  end(): void {
    for (const timer of this.#timers) clearTimeout(timer);
  }

  #isMoment(splitter: PacketSplitter, unit: Unit, at: { packets: number; bytes: number }): boolean {
    const { kind, channel, packet, byte } = this.#plan;
    if (kind === 'none') return false;
    if (channel === 'main' ? splitter.isMain !== true : splitter.channel !== channel) return false;
    if (kind === 'cut-byte' || channel === 'main')
      return byte < at.bytes + unit.bytes.length && byte >= at.bytes;
    return unit.kind === 'packet' && at.packets === packet;
  }

  #strike(connection: PassedConnection, unit: Unit, before: number): readonly Buffer[] {
    const { kind, channel, packet, byte, ms } = this.#plan;
    this.struckAt = performance.now();
    const where = channel === 'main' ? 'the main stream' : `channel ${channel}`;
    this.what =
      unit.kind === 'packet' && kind !== 'cut-byte'
        ? `packet ${packet} of ${where}`
        : `byte ${byte} of ${where}`;
    switch (kind) {
      case 'drop':
        // Whoever waits for a SYNC waits for good.
        this.#isChannelSpoilt = unit.normalPages === 0;
        if (unit.normalPages > 0) this.effect = this.#isPlain ? 'wrong' : 'unknown';
        else this.effect = 'unknown';
        return [];
      case 'duplicate':
        this.#isChannelSpoilt = unit.normalPages === 0;
        this.effect = this.#isPlain && unit.normalPages > 0 ? 'same' : 'unknown';
        return [unit.bytes, unit.bytes];
      case 'flip':
        return [this.#flipped(unit, channel === 'main' ? byte - before : undefined)];
      case 'cut-byte':
      case 'cut-packet':
        this.effect = 'unknown';
        if (channel === 'main') this.#isBehindEnd = true;
        else this.#isChannelSpoilt = true;
        // What is due before it goes out first.
        this.#later(COUNTED_MS, () => connection.cut());
        connection.towards.filter = () => [];
        return kind === 'cut-byte' ? [unit.bytes.subarray(0, byte - before)] : [];
      case 'delay':
        for (const one of this.#all) one.hold();
        this.#later(ms, () => this.#all.forEach((one) => one.release()));
        return [unit.bytes];
      case 'hold-channel':
        connection.hold();
        this.#later(ms, () => connection.release());
        return [unit.bytes];
      default:
        this.effect = 'unknown';
        this.#isChannelSpoilt = this.#isWithheld = true;
        for (const one of this.#all) one.hold();
        return [unit.bytes];
    }
  }

  /** @param at the byte of it; undefined: by the plan's place */
  #flipped(unit: Unit, at = Math.floor(this.#plan.place * unit.bytes.length)): Buffer {
    const { bit, channel } = this.#plan;
    const bytes = Buffer.from(unit.bytes);
    bytes[at] ^= 1 << bit;
    if (channel === 'main') {
      this.effect = 'unknown';
      this.#end?.push(unit.bytes.subarray(0, at));
      if (this.#end?.hasPassed === true) {
        this.effect = 'same';
        this.#isBehindEnd = true;
      } else this.#isMainSpoilt = true;
      this.what += `, bit ${bit}`;
      return bytes;
    }
    const inPages = unit.normalPages > 0 && at >= unit.headerBytes;
    this.#isChannelSpoilt = !inPages;
    this.effect = inPages && this.#isPlain ? 'wrong' : 'unknown';
    this.what += `, bit ${bit} of its byte ${at}, ${inPages ? 'in its pages' : 'in its header'}`;
    return bytes;
  }

  #later(ms: number, what: () => void): void {
    const timer = setTimeout(() => {
      this.#timers.delete(timer);
      what();
    }, ms);
    this.#timers.add(timer);
  }
}
