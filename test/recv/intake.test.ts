/**
 * The bytes of a channel on their way to what its state wants (src/recv/intake.ts), with states that are as simple as can be: a
 * header of four bytes, the last of which says how long its payload is.
 */
import t from 'tap';
import { Intake, type IntakeStates } from '../../src/recv/intake.js';
import { STAT_BYTES, STAT_COUNT } from '../../src/shared/layout.js';
import { Random } from '../support/random.js';

const HEADER = 4;

class States implements IntakeStates {
  resting = false;
  hasPayloads = true;
  /** All packets so far: header and payload. */
  readonly packets: Buffer[] = [];
  readonly stats = new Float64Array(STAT_COUNT);
  readonly intake: Intake;
  /** After each packet it rests until wake(). */
  rests = false;
  readonly #header = Buffer.alloc(HEADER);
  #payload: Buffer | undefined;

  constructor(surplus = Buffer.alloc(0)) {
    this.intake = new Intake(this, this.stats, HEADER, surplus);
    this.intake.expect(this.#header, true);
  }

  busy(): void {}
  idle(): void {}

  takeHeader(bytes: Buffer, at: number): boolean {
    this.#take(bytes.subarray(at, at + HEADER));
    return true;
  }

  advance(): void {
    if (this.#payload === undefined) this.#take(this.#header);
    else this.#complete(Buffer.concat([this.#header, this.#payload]));
  }

  /** What was rested for is done. */
  wake(): void {
    this.#begin();
    this.resting = false;
    this.intake.feed();
  }

  #take(header: Buffer): void {
    if (header !== this.#header) header.copy(this.#header);
    const length = this.#header[HEADER - 1];
    if (length === 0) {
      this.#complete(Buffer.from(this.#header));
      return;
    }
    this.#payload = Buffer.alloc(length);
    this.intake.expect(this.#payload, false);
  }

  #complete(packet: Buffer): void {
    this.packets.push(packet);
    if (this.rests) this.resting = true;
    else this.#begin();
  }

  /** Until then what is wanted is what the last packet has wanted. */
  #begin(): void {
    this.#payload = undefined;
    this.intake.expect(this.#header, true);
  }
}

/** Packets with and without payload. */
function makePackets(random: Random): Buffer[] {
  return Array.from({ length: 40 }, () => {
    const length = random.below(3) === 0 ? 0 : random.below(256);
    const packet = Buffer.alloc(HEADER + length);
    random.bytes(packet);
    packet[HEADER - 1] = length;
    return packet;
  });
}

t.test('whatever the pieces, and however often it rests, each packet comes whole and in order', async (t) => {
  for (const way of ['read', 'push'] as const) {
    for (const rests of [false, true]) {
      for (let seed = 1; seed <= 20; seed++) {
        const random = new Random(seed);
        const packets = makePackets(random);
        const bytes = Buffer.concat(packets);
        // Came with the hello.
        let at = random.below(30);
        const states = new States(bytes.subarray(0, at));
        states.rests = rests;
        states.intake.feed();
        while (at < bytes.length) {
          if (states.resting && random.below(2) === 0) states.wake();
          const most = 1 + random.below(random.below(3) === 0 ? 600 : 7);
          if (way === 'push') {
            states.intake.push(Buffer.from(bytes.subarray(at, at + most)));
            at += most;
          } else {
            const view = states.intake.view();
            if (view.length === 0) t.fail(`${way}, seed ${seed}: a read into nothing`);
            // It was asked for behind the last read; the next one comes when the channel reads on.
            while (states.resting) states.wake();
            const count = bytes.copy(view, 0, at, Math.min(at + most, at + view.length));
            states.intake.read(count);
            at += count;
          }
        }
        while (states.resting) states.wake();
        const what = `${way}, ${rests ? 'resting' : 'without rest'}, seed ${seed}`;
        if (!Buffer.concat(states.packets).equals(bytes)) t.fail(what);
        t.equal(states.packets.length, packets.length, what);
        t.equal(states.stats[STAT_BYTES], bytes.length, what);
        t.ok(states.intake.atStart);
      }
    }
  }
});
