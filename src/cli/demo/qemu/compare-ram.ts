/** Guest RAM as QEMU sees it, compared page by page. */
import { MEMORY_BYTES } from './boot-sector.js';

const PAGE_BYTES = 4096;
/** VGA memory and shadows of ROMs: not RAM of `pc.ram`, or mapped differently by each firmware. */
const HOLE_FROM = 0xa0000;
const HOLE_TO = 0x100000;

/** Address and length of what is compared. */
export const RAM_RANGES: readonly (readonly [number, number])[] = [
  [0, HOLE_FROM],
  [HOLE_TO, MEMORY_BYTES - HOLE_TO],
];

/**
 * The addresses of differing pages, as ranges such as `0x3000000-0x30fffff (256 pages)`.
 *
 * @param base the address of both buffers' first byte
 */
export function differingPages(a: Buffer, b: Buffer, base = 0): string[] {
  if (a.length !== b.length) return [`length ${a.length}, ${b.length}`];
  const ranges: { from: number; to: number }[] = [];
  for (let at = 0; at < a.length; at += PAGE_BYTES) {
    const end = Math.min(at + PAGE_BYTES, a.length);
    if ((base + at >= HOLE_FROM && base + at < HOLE_TO) || a.compare(b, at, end, at, end) === 0) continue;
    const last = ranges.at(-1);
    if (last?.to === at) last.to = end;
    else ranges.push({ from: at, to: end });
  }
  return ranges.map(
    ({ from, to }) =>
      `0x${(base + from).toString(16)}-0x${(base + to - 1).toString(16)} (${(to - from) / PAGE_BYTES} pages)`,
  );
}

/** Pages that are not all zeros: that a comparison compares something. */
export function pagesWithData(ram: Buffer): number {
  const zeros = Buffer.alloc(PAGE_BYTES);
  let count = 0;
  for (let at = 0; at < ram.length; at += PAGE_BYTES) {
    if (ram.compare(zeros, 0, PAGE_BYTES, at, at + PAGE_BYTES) !== 0) count++;
  }
  return count;
}
