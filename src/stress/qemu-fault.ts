/** The fault of a run with a QEMU, as filters of what passes; and what it has made of the guest's RAM, as far as that follows. */
import type { PassedConnection, PassOn } from '../transport/pass-on.js';
import { PacketSplitter, type Unit } from './packet-splitter.js';
import type { QemuPlan } from './qemu-plan.js';

/** What a destination that has loaded all has in its RAM then. */
export type Effect = 'same' | 'wrong' | 'unknown';

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
  #all: readonly PassedConnection[] = [];

  constructor(plan: QemuPlan, isPlain: boolean, pageSize: number) {
    this.#plan = plan;
    this.#isPlain = isPlain;
    this.#pageSize = pageSize;
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
        if (isHit) out.push(...this.#strike(connection, unit, at.bytes - unit.bytes.length));
        else out.push(unit.bytes);
      }
      return out;
    };
    connection.connect();
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
        if (unit.normalPages > 0) this.effect = this.#isPlain ? 'wrong' : 'unknown';
        else this.effect = 'unknown';
        return [];
      case 'duplicate':
        this.effect = this.#isPlain && unit.normalPages > 0 ? 'same' : 'unknown';
        return [unit.bytes, unit.bytes];
      case 'flip':
        return [this.#flipped(unit)];
      case 'cut-byte':
      case 'cut-packet':
        this.effect = 'unknown';
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
        for (const one of this.#all) one.hold();
        return [unit.bytes];
    }
  }

  #flipped(unit: Unit): Buffer {
    const { place, bit } = this.#plan;
    const bytes = Buffer.from(unit.bytes);
    const at = Math.floor(place * bytes.length);
    bytes[at] ^= 1 << bit;
    const inPages = unit.kind === 'packet' && unit.normalPages > 0 && at >= unit.headerBytes;
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
