/**
 * The demo's result for people: a short table, the blocks with their digests, and what that proves. On a terminal every line
 * fits, for which digests are shortened; elsewhere, in a file or a pipe, they are whole.
 *
 *     guest RAM    64 MiB, 16384 pages of 4 KiB
 *     ...
 *
 *     block         size  SHA-256, first 16 digits
 *     pc.ram    55.6 MiB  9e833f16b2c20b5a  equal
 *     ...
 *
 *     Proven: the destination's RAM equals the source's. ...
 */
import type { Paint } from '../terminal/colour.js';
import { wrap } from '../terminal/columns.js';
import { formatRate, formatRatio, formatShare, formatSize } from '../terminal/format.js';
import { zeroCopyRows } from '../terminal/migration-progress.js';
import { table } from '../terminal/output.js';
import { tlsText } from './demo-tls.js';
import type { BlockResult, DemoResult } from './report-records.js';

/** Of 64: enough for eyes, and the comparison has been made. */
const SHORT_DIGITS = 16;
const MIN_DIGITS = 8;
const EQUAL = 'equal';
const DIFFERENT = 'DIFFERENT';
const SOURCE = 'source';
const DESTINATION = 'destination';

/** @param columns of the terminal; Infinity where there is none */
export function formatResult(result: DemoResult, paint: Paint, columns: number): string {
  const { bytes, wireBytes, normalPages, zeroPages } = result;
  const pages = normalPages + zeroPages;
  const { rewritten, becameZero, stoppedBeingZero } = result.dirtyPages;
  const rows: [string, string][] = [
    ['guest RAM', `${formatSize(bytes)}, ${pages} pages of ${formatSize(result.pageSize)}`],
    ['zero pages', `${zeroPages} (${formatShare(zeroPages, pages)}), detection ${result.zeroPageDetection}`],
    ['channels', `${result.channels}, compression ${formatCompression(result)}`],
    ['on the wire', `${formatSize(wireBytes)}, ratio ${formatRatio(bytes, wireBytes)}`],
    ...zeroCopyRows(result.zeroCopy),
    ['start-up', `${result.startupSeconds.toFixed(3)} s`],
    ['migration', `${result.seconds.toFixed(3)} s, ${formatRate(result.bytesPerSecond)}`],
  ];
  if (result.tls !== null) rows.splice(3, 0, ['TLS', tlsText(result.tls)]);
  if (result.dirtyRounds > 0) {
    const what = `${rewritten} rewritten, ${becameZero} became zero, ${stoppedBeingZero} stopped being zero`;
    rows.splice(1, 0, ['dirty pages', `${what}, in ${result.dirtyRounds} rounds`]);
  }
  const blocks = formatBlocks(result.blocks, paint, columns);
  const verdict = formatVerdict(result.blocks, paint, columns);
  return [table(rows, columns), `${blocks.join('\n')}\n`, `${verdict.join('\n')}\n`].join('\n');
}

function formatCompression({ compression, level }: DemoResult): string {
  return level === null ? compression : `${compression} level ${level}`;
}

function formatBlocks(blocks: readonly BlockResult[], paint: Paint, columns: number): string[] {
  const width = Math.max(...blocks.map((block) => block.name.length), 'block'.length);
  const head = (name: string, size: string): string => `${name.padEnd(width)}  ${size.padStart(8)}  `;
  const indent = head('', '');
  const allEqual = blocks.every((block) => block.equal);
  const behind = allEqual ? EQUAL : `${DESTINATION}  ${DIFFERENT}`;
  const room = columns - indent.length - '  '.length - behind.length;
  const digits = columns === Infinity ? Infinity : Math.max(MIN_DIGITS, Math.min(SHORT_DIGITS, room));
  const title = digits === Infinity ? 'SHA-256' : `SHA-256, first ${digits} digits`;
  return [
    head('block', 'size') + (indent.length + title.length <= columns ? title : 'SHA-256'),
    ...blocks.flatMap(({ name, size, equal, sha256Source, sha256Destination }) => {
      const ours = head(name, formatSize(size)) + sha256Source.slice(0, digits);
      if (equal) return [`${ours}  ${paint.good(EQUAL)}`];
      const theirs = indent + sha256Destination.slice(0, digits);
      return [`${ours}  ${SOURCE}`, `${theirs}  ${DESTINATION}  ${paint.bad(DIFFERENT)}`];
    }),
  ];
}

/** In words, since a table of digests says it only to those who know what it is for. */
function formatVerdict(blocks: readonly BlockResult[], paint: Paint, columns: number): string[] {
  const size = formatSize(blocks.reduce((sum, block) => sum + block.size, 0));
  const different = blocks.filter((block) => !block.equal).map((block) => block.name);
  const compared = `SHA-256 of ${counted(blocks.length)} compared (${size}), which each process took of its own RAM`;
  if (different.length === 0) {
    const text = `Proven: the destination's RAM equals the source's. ${compared}.`;
    return wrap(text, columns).map(paint.good);
  }
  const text = `The destination's RAM DIFFERS from the source's, in ${different.join(', ')}. ${compared}.`;
  return wrap(text, columns).map(paint.bad);
}

function counted(blocks: number): string {
  return blocks === 1 ? 'the one block' : `all ${blocks} blocks`;
}
