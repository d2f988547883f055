/** Statistics and the alternation of sides, for every bench. */

export interface Spread {
  min: number;
  median: number;
  max: number;
}

export function spread(values: readonly number[]): Spread {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  const median = sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
  return { min: sorted[0], median, max: sorted[sorted.length - 1] };
}

/**
 * Runs the sides in turn, A B A B ..., after one round that is not counted, so that a drift of the machine's speed
 * meets all sides alike.
 *
 * @param how.warmUp false leaves that round out: for sides that are fresh processes each time
 * @returns each side's figures in the order of the rounds
 */
export async function alternate<K extends string>(
  sides: Record<K, () => Promise<number>>,
  rounds: number,
  { warmUp = true } = {},
): Promise<Record<K, number[]>> {
  const names = Object.keys(sides) as K[];
  const figures = Object.fromEntries(names.map((name) => [name, [] as number[]])) as Record<K, number[]>;
  for (let round = warmUp ? 0 : 1; round <= rounds; round++) {
    for (const name of names) {
      const figure = await sides[name]();
      if (round > 0) figures[name].push(figure);
    }
  }
  return figures;
}

/** Milliseconds on a clock that all processes of this machine share: CLOCK_MONOTONIC. */
export function monotonicMs(): number {
  return Number(process.hrtime.bigint()) / 1e6;
}

/** How long it took, in seconds. */
export async function clock(work: () => Promise<void>): Promise<number> {
  const begun = performance.now();
  await work();
  return (performance.now() - begun) / 1000;
}

/** Ratios a/b, round by round. */
export function ratios(a: readonly number[], b: readonly number[]): number[] {
  return a.map((value, index) => value / b[index]);
}

/** `1 channel`, `2 channels`. */
export function counted(count: number, what: string): string {
  return `${count} ${what}${count > 1 ? 's' : ''}`;
}

/** The charts of the figures page, charts.ts. */
export type ChartKey =
  | 'method'
  | 'against'
  | 'wire'
  | 'channels'
  | 'growth-channels'
  | 'size'
  | 'page-size'
  | 'limit'
  | 'plain'
  | 'zero'
  | 'codec'
  | 'sockets'
  | 'zero-limit'
  | 'memory'
  | 'memory-size'
  | 'memory-channels'
  | 'file'
  | 'handover'
  | 'latency'
  | 'queueing'
  | 'zero-detection'
  | 'header'
  | 'codecs'
  | 'startup'
  | 'loop-delay';

export interface Plot {
  chart: ChartKey;
  series: string;
  x: string | number;
}

/** One line of a bench's output. */
export interface Row {
  bench: string;
  row: string;
  unit: string;
  median: number;
  min: number;
  max: number;
  /** The floor that the figure must reach, or undefined for information. */
  floor?: number;
  /** For figures that must stay below: the ceiling. */
  ceiling?: number;
  /** Where the figures page draws it: a point at `x` of a series. */
  plot?: Plot;
}

export function row(
  bench: string,
  name: string,
  unit: string,
  values: readonly number[],
  more: Pick<Row, 'floor' | 'ceiling' | 'plot'> = {},
): Row {
  return { bench, row: name, unit, ...spread(values), ...more };
}
