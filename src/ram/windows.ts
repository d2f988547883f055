/**
 * Views over a buffer that may be larger than the largest typed array (4 GiB on Node 20): the buffer is cut into
 * windows of 1 GiB, and a page or a run of pages lies in one window or is cut at the border.
 */
const WINDOW_BYTES = 2 ** 30;

export class Windows {
  static readonly WINDOW_BYTES = WINDOW_BYTES;
  readonly size: number;
  readonly #buffer: SharedArrayBuffer | ArrayBuffer;
  readonly #base: number;
  readonly #windows: Buffer[] = [];

  /** `base` and `size` in bytes; base need not be aligned. */
  constructor(buffer: SharedArrayBuffer | ArrayBuffer, base: number, size: number) {
    this.size = size;
    this.#buffer = buffer;
    this.#base = base;
    for (let at = 0; at < size; at += WINDOW_BYTES) {
      this.#windows.push(Buffer.from(buffer, base + at, Math.min(WINDOW_BYTES, size - at)));
    }
  }

  /** The window that holds byte `offset`; empty if the memory has been taken away, which private memory alone can be. */
  windowAt(offset: number): Buffer {
    return this.#windows[Math.floor(offset / WINDOW_BYTES)];
  }

  /** Are they those of this place? */
  isOf(buffer: SharedArrayBuffer | ArrayBuffer, base: number): boolean {
    return this.#buffer === buffer && this.#base === base;
  }

  /** A view of bytes `offset` to `offset + length`, which must lie in one window (see `runLimit`). */
  view(offset: number, length: number): Uint8Array {
    return new Uint8Array(this.#buffer, this.#base + offset, length);
  }

  /** How many bytes from `offset` on lie in the same window. */
  static runLimit(offset: number): number {
    return WINDOW_BYTES - (offset % WINDOW_BYTES);
  }
}
