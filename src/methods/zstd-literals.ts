/** The header of a compressed zstd block's literals (RFC 8878, 3.1.1.3.1.1): 1 to 5 bytes, little-endian. */
export const LITERALS_RAW = 0;
export const LITERALS_RLE = 1;
export const LITERALS_COMPRESSED = 2;
/** Compressed with the table of a block before. */
export const LITERALS_TREELESS = 3;

export interface LiteralsSection {
  type: number;
  headerBytes: number;
  /** Bytes that they decode to. */
  regenerated: number;
  /** Bytes after the header. */
  compressed: number;
  /** 1 or 4. */
  streams: number;
}

/** @param block has 5 bytes from `at` on that may be read, if of no meaning */
export function literalsSection(block: Uint8Array, at: number): LiteralsSection {
  const first = block[at];
  const type = first & 3;
  const format = (first >>> 2) & 3;
  const low = first | (block[at + 1] << 8) | (block[at + 2] << 16);
  if (type === LITERALS_RAW || type === LITERALS_RLE) {
    const headerBytes = format === 1 ? 2 : format === 3 ? 3 : 1;
    const regenerated =
      headerBytes === 1 ? first >>> 3 : (low & (headerBytes === 2 ? 0xffff : 0xffffff)) >>> 4;
    return {
      type,
      headerBytes,
      regenerated,
      compressed: type === LITERALS_RAW ? regenerated : 1,
      streams: 1,
    };
  }
  const streams = format === 0 ? 1 : 4;
  if (format < 2)
    return { type, headerBytes: 3, regenerated: (low >>> 4) & 0x3ff, compressed: low >>> 14, streams };
  const high = block[at + 3];
  if (format === 2) {
    const regenerated = (low >>> 4) & 0x3fff;
    return { type, headerBytes: 4, regenerated, compressed: (low >>> 18) | (high << 6), streams };
  }
  const compressed = (low >>> 22) | (high << 2) | (block[at + 4] << 10);
  return { type, headerBytes: 5, regenerated: (low >>> 4) & 0x3ffff, compressed, streams };
}
