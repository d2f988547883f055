/** A guest that goes on writing to its memory, and tells which pages, in each form that the engine takes. */
import type { DirtyOption, DirtyRange } from '../live/dirty-pages.js';
import type { Dice } from './dice.js';
import type { DirtyForm } from './engine-plan.js';
import type { GuestMemory } from './guest-memory.js';

const TICK_MS = 2;
/** Written at once: more would only keep this thread from its migration. */
const MOST_A_TICK = 64;

export class WritingGuest {
  readonly dirty: DirtyOption | undefined;
  readonly #memory: GuestMemory;
  readonly #pageSize: number;
  readonly #dice: Dice;
  readonly #perTick: number;
  readonly #bitmaps: Uint32Array[];
  #timer: NodeJS.Timeout | undefined;

  /** @param rate pages a millisecond */
  constructor(memory: GuestMemory, pageSize: number, form: DirtyForm, rate: number, dice: Dice) {
    this.#memory = memory;
    this.#pageSize = pageSize;
    this.#dice = dice;
    this.#perTick = Math.min(MOST_A_TICK, rate * TICK_MS);
    this.#bitmaps = memory.blocks.map(
      ({ size }) => new Uint32Array(new SharedArrayBuffer(4 * Math.ceil(size / pageSize / 32))),
    );
    if (form === 'function') this.dirty = () => this.#ranges();
    else if (form === 'bitmap')
      this.dirty = Object.fromEntries(memory.blocks.map(({ name }, i) => [name, this.#bitmaps[i]]));
  }

  run(): void {
    if (this.#perTick === 0) return;
    this.#timer ??= setInterval(() => {
      for (let i = 0; i < this.#perTick; i++) this.writeOne();
    }, TICK_MS);
  }

  stop(): void {
    clearInterval(this.#timer);
    this.#timer = undefined;
  }

  /** @returns which page was written to */
  writeOne(): DirtyRange {
    const index = this.#dice.below(this.#memory.blocks.length);
    const { name, size } = this.#memory.blocks[index];
    const page = this.#dice.below(size / this.#pageSize);
    const offset = page * this.#pageSize;
    if (this.#dice.percent(10)) this.#memory.write(index, offset, Buffer.alloc(this.#pageSize));
    else {
      const bytes = Buffer.alloc(16);
      this.#dice.fill(bytes);
      this.#memory.write(index, offset + this.#dice.below(this.#pageSize - 16), bytes);
    }
    // After the write, as the migration wants it.
    Atomics.or(this.#bitmaps[index], page >> 5, 1 << (page & 31));
    return { block: name, offset, length: this.#pageSize };
  }

  *#ranges(): Generator<DirtyRange> {
    for (const [index, { name }] of this.#memory.blocks.entries()) {
      const bitmap = this.#bitmaps[index];
      for (let word = 0; word < bitmap.length; word++) {
        const bits = Atomics.exchange(bitmap, word, 0);
        for (let bit = 0; bit < 32; bit++) {
          if ((bits & (1 << bit)) === 0) continue;
          yield { block: name, offset: (word * 32 + bit) * this.#pageSize, length: this.#pageSize };
        }
      }
    }
  }
}
