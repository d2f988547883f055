/** What is said of files that are packed, or being so. */
import { formatShare, formatSize } from './format.js';
import type { Output } from './output.js';

const EVERY_MS = 200;

/** For onPacking and onProgress. */
export function packingProgress(
  output: Output,
  what = 'packed',
): (bytes: number, totalBytes: number) => void {
  let told = -Infinity;
  return (bytes, totalBytes) => {
    if (performance.now() - told < EVERY_MS) return;
    told = performance.now();
    output.progress({ [`${what}Bytes`]: bytes, totalBytes }, () => {
      return `${formatSize(bytes)} of ${formatSize(totalBytes)} ${what}`;
    });
  };
}

/** Of a table. */
export function fileRow(file: { out: string; fileBytes: number; packedBytes?: number }): [string, string] {
  const { out, fileBytes, packedBytes } = file;
  const size = formatSize(fileBytes);
  if (packedBytes === undefined) return ['file', `${out}, ${size}`];
  return [
    'file',
    `${out}, ${size} packed to ${formatSize(packedBytes)}, ${formatShare(packedBytes, fileBytes)}`,
  ];
}
