/**
 * Zero pages of zero-page detection `legacy`, on their way to the destination: they do not go over the channels, so
 * the demo's IPC carries them. A guest can have a hundred thousand runs of them: they go many to a message, and one
 * message at a time.
 */
import type { RAMBlock } from '../../index.js';
import type { DestinationProcess } from './destination-process.js';

const RANGES_PER_MESSAGE = 1024;

export class ZeroRanges {
  /** Bytes so far. */
  bytes = 0;
  readonly #destination: DestinationProcess;
  #block = '';
  #ranges: number[] = [];

  constructor(destination: DestinationProcess) {
    this.#destination = destination;
  }

  readonly add = async (block: RAMBlock, offset: number, length: number): Promise<void> => {
    if (block.name !== this.#block || this.#ranges.length === 2 * RANGES_PER_MESSAGE) await this.flush();
    this.#block = block.name;
    this.#ranges.push(offset, length);
    this.bytes += length;
  };

  /** Resolves when all of them are zero over there. */
  async flush(): Promise<void> {
    const ranges = this.#ranges;
    this.#ranges = [];
    if (ranges.length > 0) await this.#destination.ask({ type: 'zero', block: this.#block, ranges });
  }
}
