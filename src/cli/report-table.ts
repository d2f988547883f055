/** The demo's result for people: a short table. */
import type { Paint } from './colour.js';
import { formatRate, formatRatio, formatShare, formatSize } from './format.js';
import type { BlockResult, DemoResult } from './report.js';

export function formatResult(result: DemoResult, paint: Paint): string {
  const { bytes, wireBytes, normalPages, zeroPages } = result;
  const pages = normalPages + zeroPages;
  const { rewritten, becameZero, stoppedBeingZero } = result.dirtyPages;
  const rows: [string, string][] = [
    ['guest RAM', `${formatSize(bytes)}, ${pages} pages of ${formatSize(result.pageSize)}`],
    ['zero pages', `${zeroPages} (${formatShare(zeroPages, pages)}), detection ${result.zeroPageDetection}`],
    ['channels', `${result.channels}, compression ${formatCompression(result)}`],
    ['on the wire', `${formatSize(wireBytes)}, ratio ${formatRatio(bytes, wireBytes)}`],
    ['start-up', `${result.startupSeconds.toFixed(3)} s`],
    ['migration', `${result.seconds.toFixed(3)} s, ${formatRate(result.bytesPerSecond)}`],
  ];
  if (result.dirtyRounds > 0) {
    const what = `${rewritten} rewritten, ${becameZero} became zero, ${stoppedBeingZero} stopped being zero`;
    rows.splice(1, 0, ['dirty pages', `${what}, in ${result.dirtyRounds} rounds`]);
  }
  const lines = rows.map(([name, value]) => `${name.padEnd(12)} ${value}`);
  const width = Math.max(...result.blocks.map((block) => block.name.length), 'block'.length);
  const header = `${'block'.padEnd(width)}  ${'size'.padStart(8)}  SHA-256`;
  const blocks = result.blocks.flatMap((block) => formatBlock(block, width, paint));
  return `${[...lines, '', header, ...blocks].join('\n')}\n`;
}

function formatCompression({ compression, level }: DemoResult): string {
  return level === null ? compression : `${compression} level ${level}`;
}

function formatBlock(block: BlockResult, width: number, paint: Paint): string[] {
  const head = `${block.name.padEnd(width)}  ${formatSize(block.size).padStart(8)}  `;
  if (block.equal) return [`${head}${block.sha256Source}  ${paint.good('equal')}`];
  const indent = ' '.repeat(head.length);
  return [
    `${head}${block.sha256Source}  source`,
    `${indent}${block.sha256Destination}  destination  ${paint.bad('DIFFERENT')}`,
  ];
}
