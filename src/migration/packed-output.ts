/**
 * The file that a migration is received into where it is to be packed: a plain one while pages come in at any place and any
 * time, and the packed one when all is there.
 *
 *     OUT.plain.part     as incoming-migration.ts makes it, of all pages
 *     pack()             OUT.part, on disk: the source waits for it, and is told meanwhile that somebody is there
 *     name()             OUT.part is OUT, and the plain one goes
 *
 * To all others it is what OutputFile is. What is kept after a failure is the packed file if it was whole, else the plain one:
 * of a source without return path that is the only guest that there is.
 */
import type { FileHandle } from 'node:fs/promises';
import { packInto } from '../packed/pack.js';
import type { WritableFile } from '../stream/positioned-file.js';
import { OutputFile } from './output-file.js';
import { OutputLock } from './output-lock.js';

export interface PackedOutputOptions {
  overwrite: boolean;
  directIo: boolean;
  /** zstd's. */
  level: number;
  onPacking: ((bytes: number, totalBytes: number) => void) | undefined;
}

export class PackedOutput {
  readonly #plain: OutputFile;
  readonly #packed: OutputFile;
  readonly #options: PackedOutputOptions;
  readonly #stop = new AbortController();
  #packing: Promise<unknown> = Promise.resolve();
  #isWhole = false;
  /** Length of the packed file. */
  packedBytes: number | undefined;

  private constructor(plain: OutputFile, packed: OutputFile, options: PackedOutputOptions) {
    this.#plain = plain;
    this.#packed = packed;
    this.#options = options;
  }

  /** @throws MultifdError as OutputFile.make() */
  static async make(out: string, options: PackedOutputOptions): Promise<PackedOutput> {
    const { overwrite, directIo } = options;
    let packed: OutputFile;
    try {
      packed = await OutputFile.make(out, overwrite, directIo);
    } catch (error) {
      // Of one that was killed the other lock is left as well.
      await OutputLock.clear(`${out}.plain`);
      throw error;
    }
    try {
      const plain = await OutputFile.make(`${out}.plain`, overwrite, directIo);
      return new PackedOutput(plain, packed, options);
    } catch (error) {
      await packed.giveUp();
      throw error;
    }
  }

  get out(): string {
    return this.#packed.out;
  }

  /** Of what there is of it. */
  get part(): string {
    return this.#isWhole ? this.#packed.part : this.#plain.part;
  }

  get handle(): FileHandle {
    return this.#plain.handle;
  }

  get direct(): FileHandle | undefined {
    return this.#plain.direct;
  }

  get stream(): WritableFile {
    return this.#plain.stream;
  }

  get named(): boolean {
    return this.#packed.named;
  }

  /** All of it is in the plain file. @throws MultifdError as packInto() */
  async sync(): Promise<void> {
    const packing = this.#pack();
    this.#packing = packing.catch(() => {});
    await packing;
  }

  async #pack(): Promise<void> {
    const { level, onPacking } = this.#options;
    const how = { signal: this.#stop.signal, onProgress: onPacking };
    try {
      this.packedBytes = await packInto(this.#plain, this.#packed, level, how);
      await this.#packed.sync();
      this.#isWhole = true;
    } catch (error) {
      // It may be the one that is kept.
      await this.#plain.sync().catch(() => {});
      throw error;
    }
  }

  name(): void {
    this.#packed.name();
  }

  async onDisk(): Promise<void> {
    await this.#packed.onDisk();
  }

  async unname(): Promise<void> {
    await this.#packed.unname();
  }

  keep(): boolean {
    return this.#isWhole ? this.#packed.keep() : this.#plain.keep();
  }

  /** Closes both; what is partial, and was not kept, goes. */
  async giveUp(): Promise<void> {
    this.#stop.abort();
    await this.#packing;
    await this.#plain.giveUp();
    await this.#packed.giveUp();
  }

  /** The plain one goes. */
  async close(): Promise<void> {
    await this.#plain.giveUp();
    await this.#packed.close();
  }
}
