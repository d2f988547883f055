/**
 * What a peer, or a file, may claim at the most, where claiming alone costs this side something. Each is an option of the
 * migrations and of what reads files; the defaults let every machine through that is known, and are by choice:
 *
 *     option          by default   known                                   costs
 *     maxRam          4 TiB        QEMU's guests in use have less          two bits a page, as memory once pages have come;
 *                                                                          the file is as long, with holes (ext4: 16 TiB)
 *     maxBlocks       4096         10 to 100; a VM with 256 DIMMs and 32   a KiB a block and channel
 *                                  functions on each of 64 buses: 2304
 *     maxDescription  16 MiB       100 KiB and 14 KiB a processor          the description, once
 *
 * There is no such bound on what is really sent: pages have their places, and streams are read in pieces.
 */
import { integer } from '../option-checks.js';

export interface BoundOptions {
  /** Bytes of guest RAM, all blocks together (default 4 TiB). */
  maxRam?: number;
  /** RAM blocks, 1 to 65536 (default 4096). */
  maxBlocks?: number;
  /** Bytes of the VM description behind the devices' state, up to 256 MiB (default 16 MiB). */
  maxDescription?: number;
}

export type Bounds = Required<BoundOptions>;

export const DEFAULT_BOUNDS: Bounds = {
  maxRam: 2 ** 42,
  maxBlocks: 4096,
  maxDescription: 2 ** 24,
};

export const BOUND_RANGES: Record<keyof Bounds, { min: number; max: number }> = {
  maxRam: { min: 1, max: Number.MAX_SAFE_INTEGER },
  maxBlocks: { min: 1, max: 65536 },
  maxDescription: { min: 1, max: 2 ** 28 },
};

/** Among the keys of those options that have them. */
export const BOUND_KEYS: Record<keyof Bounds, true> = { maxRam: true, maxBlocks: true, maxDescription: true };

/** As a refusal names them. */
const FLAGS: Record<keyof Bounds, string> = {
  maxRam: '--max-ram',
  maxBlocks: '--max-blocks',
  maxDescription: '--max-description',
};

/** @throws MultifdError ERR_MULTIFD_OPTION */
export function checkBounds(options: BoundOptions): Bounds {
  const check = (name: keyof Bounds): number => {
    const { min, max } = BOUND_RANGES[name];
    return integer(name, options[name], DEFAULT_BOUNDS[name], min, max);
  };
  return {
    maxRam: check('maxRam'),
    maxBlocks: check('maxBlocks'),
    maxDescription: check('maxDescription'),
  };
}

/** What a refusal says was expected. */
export function atMost(name: keyof Bounds, bound: number): string {
  return `at most ${bound} (option ${name}, ${FLAGS[name]})`;
}
