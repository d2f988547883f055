/** Node's own zstd, in the calling thread: Node 22.15 and 23.8 on. */
import zlib from 'node:zlib';
import { MultifdError } from '../errors.js';
import { SyncEngine, canDrive } from './engine.js';
import type { Compressor } from './zstd-send.js';
import type { StreamDecoder } from './zstd-receive.js';

/** Not in every version of the types. */
interface NodeZstd {
  createZstdCompress(options: { params: Record<number, number> }): object;
  createZstdDecompress(): object;
  constants: {
    ZSTD_c_compressionLevel: number;
    ZSTD_c_checksumFlag: number;
    ZSTD_e_continue: number;
    ZSTD_e_end: number;
  };
}
const nodeZstd = zlib as unknown as NodeZstd;

export const hasNodeZstd: boolean = canDrive && typeof nodeZstd.createZstdCompress === 'function';

export class NodeCompressor implements Compressor {
  readonly #engine: SyncEngine;

  /** @param checksum does each frame end with one of its content? */
  constructor(level: number, checksum = false) {
    const { ZSTD_c_compressionLevel: levelKey, ZSTD_c_checksumFlag: checksumKey } = nodeZstd.constants;
    const params = { [levelKey]: level, [checksumKey]: checksum ? 1 : 0 };
    this.#engine = new SyncEngine(nodeZstd.createZstdCompress({ params }));
  }

  compress(input: Buffer, output: Buffer): number {
    const engine = this.#engine;
    if (!engine.run(nodeZstd.constants.ZSTD_e_end, input, 0, output, 0, output.length)) {
      throw new MultifdError('ERR_MULTIFD_COMPRESS', `zstd: ${engine.failure}`);
    }
    if (engine.outputLeft === 0 || engine.inputLeft !== 0) {
      throw new MultifdError(
        'ERR_MULTIFD_COMPRESS',
        `zstd: ${input.length} bytes did not fit ${output.length}`,
      );
    }
    return output.length - engine.outputLeft;
  }

  close(): void {
    this.#engine.close();
  }
}

export class NodeDecoder implements StreamDecoder {
  readonly #engine = new SyncEngine(nodeZstd.createZstdDecompress());

  get outputLeft(): number {
    return this.#engine.outputLeft;
  }

  get inputLeft(): number {
    return this.#engine.inputLeft;
  }

  get failure(): string | undefined {
    return this.#engine.failure;
  }

  run(input: Buffer, inputOffset: number, output: Buffer, outputOffset: number): boolean {
    const flush = nodeZstd.constants.ZSTD_e_continue;
    return this.#engine.run(flush, input, inputOffset, output, outputOffset, output.length - outputOffset);
  }

  close(): void {
    this.#engine.close();
  }
}
