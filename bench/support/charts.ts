/**
 * What plots there are, and which rows go into them: a row says it itself (`plot`), and a bench none of whose rows does is
 * drawn all the same, row by row, a plot for each unit. So no bench with figures is without a plot.
 */
import type { ChartKey, Row } from './measure.js';
import type { ChartKind, Plot, Series } from './page-chart.js';

interface Chart {
  title: string;
  /** What the figures are, with their unit. */
  unit: string;
  better: Plot['better'];
  /** What x is. */
  axis: string;
  kind: ChartKind;
  note?: string;
}

/** One of a bench's charts, ready to be drawn: a panel for each kind of figures. */
export interface DrawnChart {
  title: string;
  note?: string;
  panels: { title: string; plot: Plot }[];
}

const GUEST_SPEED = { unit: 'GB of guest RAM a second', better: 'higher' } as const;
const SPEED = { unit: 'GB a second', better: 'higher' } as const;
const MEMORY = { unit: 'MiB a channel', better: 'lower' } as const;

/**
 * A series named `PANEL: NAME` is drawn as NAME in a panel of its own, since figures of a kind that is ten times as fast
 * would flatten all others.
 */
const CHARTS: Record<ChartKey, Chart> = {
  method: {
    title: 'Throughput by method',
    ...GUEST_SPEED,
    axis: 'method and image',
    kind: 'bars',
    note: 'Two channels, into memory that is there before.',
  },
  against: {
    title: 'Speed against QEMU',
    unit: "times QEMU's speed",
    better: 'higher',
    axis: 'method and image',
    kind: 'bars',
    note: '1 is as fast as QEMU.',
  },
  wire: {
    title: 'Size on the wire against QEMU',
    unit: "times QEMU's bytes",
    better: 'lower',
    axis: 'method and image',
    kind: 'bars',
    note: '1 is as many bytes as QEMU sends.',
  },
  channels: { title: 'Throughput by channels', ...GUEST_SPEED, axis: 'channels', kind: 'lines' },
  'growth-channels': {
    title: 'Throughput by channels, 1 to 16',
    ...GUEST_SPEED,
    axis: 'channels',
    kind: 'lines',
    note: 'Method none, half of the guest zero.',
  },
  size: {
    title: 'Time by RAM size',
    unit: 'seconds a GiB',
    better: 'lower',
    axis: 'GiB of RAM',
    kind: 'lines',
  },
  'page-size': { title: 'Throughput by page size', ...GUEST_SPEED, axis: 'KiB a page', kind: 'lines' },
  limit: {
    title: 'Share of the limit',
    unit: 'share; 1 is the limit',
    better: 'higher',
    axis: 'method, image and limit',
    kind: 'bars',
  },
  plain: {
    title: 'Method none beside plain sockets of Node',
    ...GUEST_SPEED,
    axis: 'channels, connections',
    kind: 'bars',
    note: 'Random RAM.',
  },
  zero: { title: 'An all-zero guest', ...GUEST_SPEED, axis: 'channels', kind: 'bars' },
  codec: {
    title: 'Compressing methods beside their codec alone',
    ...SPEED,
    axis: 'method',
    kind: 'bars',
    note: 'Program bytes, in packets of 512 KiB.',
  },
  sockets: {
    title: 'The limit: plain sockets between two processes',
    ...SPEED,
    axis: 'connections',
    kind: 'lines',
  },
  'zero-limit': { title: 'The limit: zero detection in C', ...SPEED, axis: 'threads', kind: 'lines' },
  memory: { title: "Memory above the guest's RAM", ...MEMORY, axis: 'guest', kind: 'bars' },
  'memory-size': {
    title: "Memory above the guest's RAM, by its size",
    ...MEMORY,
    axis: 'GiB of RAM',
    kind: 'lines',
  },
  'memory-channels': {
    title: "Memory above the guest's RAM, by channels",
    ...MEMORY,
    axis: 'channels',
    kind: 'lines',
  },
  file: {
    title: 'Into a file and back',
    unit: 'seconds for 1 GiB, half of it zero',
    better: 'lower',
    axis: 'direction',
    kind: 'bars',
  },
  handover: {
    title: 'Hand-over of jobs',
    unit: 'jobs a second',
    better: 'higher',
    axis: 'channels',
    kind: 'lines',
  },
  latency: {
    title: 'Hand-over, publish to done',
    unit: 'µs',
    better: 'lower',
    axis: 'channels',
    kind: 'lines',
  },
  queueing: { title: 'Queueing', unit: 'ns a page', better: 'lower', axis: 'channels', kind: 'bars' },
  'zero-detection': { title: 'Zero detection', ...SPEED, axis: 'memory', kind: 'bars' },
  header: {
    title: 'Packet header',
    unit: 'ns a packet',
    better: 'lower',
    axis: 'packet',
    kind: 'bars',
  },
  codecs: {
    title: 'Codecs, one thread',
    ...SPEED,
    axis: 'backend',
    kind: 'bars',
    note: 'Level 1, program bytes in packets of 512 KiB.',
  },
  startup: { title: 'Start-up', unit: 'ms', better: 'lower', axis: 'channels', kind: 'lines' },
  'loop-delay': {
    title: 'Delay of the main loop',
    unit: 'ms',
    better: 'lower',
    axis: 'of all turns',
    kind: 'bars',
  },
};
/** The chart by method is the one by channels, seen where both sides have so many. */
const METHOD_CHANNELS = 2;
/** Units of figures that are good when they are small; those of a rate have `/s`, and a share has none. */
const COSTS = /^(ns|µs|ms|s|minutes|B|KiB|MiB|GiB|TiB)$/;

/** All charts of one bench, given its rows. */
export function chartsOf(rows: readonly Row[]): DrawnChart[] {
  const charts = Object.entries(CHARTS).map(([key, chart]) =>
    drawnChart(chart, placesIn(key as ChartKey, rows)),
  );
  const drawn = charts.filter((chart) => chart !== undefined);
  return drawn.length > 0 ? drawn : rowByRow(rows);
}

interface Place {
  panel: string;
  series: string;
  x: string | number;
  row: Row;
}

function placesIn(chart: ChartKey, rows: readonly Row[]): Place[] {
  return rows.flatMap((row): Place[] => {
    if (row.plot === undefined) return [];
    const { chart: key, series, x } = row.plot;
    const cut = series.indexOf(': ');
    const [panel, name] = cut < 0 ? ['', series] : [series.slice(0, cut), series.slice(cut + 2)];
    if (key === chart) return [{ panel, series: name, x, row }];
    const also = chart === 'method' && key === 'channels' && x === METHOD_CHANNELS;
    return also ? [{ panel: '', series: name, x: panel, row }] : [];
  });
}

function drawnChart(chart: Chart, places: readonly Place[]): DrawnChart | undefined {
  if (places.length === 0) return undefined;
  const { title, note, kind, unit, better, axis } = chart;
  const panels = [...groupBy(places, ({ panel }) => panel)].map(([panel, some]) => ({
    title: panel,
    plot: { kind, unit, better, axis, series: seriesOf(some) },
  }));
  return { title, note, panels };
}

/** The plots of a bench whose rows ask for none. */
function rowByRow(rows: readonly Row[]): DrawnChart[] {
  return [...groupBy(rows, ({ unit }) => unit)].map(([unit, some]) => ({
    title: unit === '' ? 'Shares and counts' : `Figures in ${unit}`,
    panels: [
      {
        title: '',
        plot: {
          kind: 'bars',
          unit: unit === '' ? 'share or count' : unit,
          better: betterOf(some),
          axis: 'row',
          series: seriesOf(some.map((row) => ({ panel: '', series: 'median', x: row.row, row }))),
        },
      },
    ],
  }));
}

/** What a bound says of it, or else the unit. */
function betterOf(rows: readonly Row[]): Plot['better'] {
  if (rows.some(({ ceiling }) => ceiling !== undefined)) return 'lower';
  if (rows.some(({ floor }) => floor !== undefined)) return 'higher';
  return COSTS.test(rows[0].unit) ? 'lower' : 'higher';
}

function seriesOf(places: readonly Place[]): Series[] {
  return [...groupBy(places, ({ series }) => series)].map(([name, some]) => ({
    name,
    points: some.map(({ x, row: { min, median, max } }) => ({ x, min, median, max })),
  }));
}

/** Groups in the order in which they come. */
export function groupBy<T>(items: readonly T[], keyOf: (item: T) => string): Map<string, T[]> {
  const groups = new Map<string, T[]>();
  for (const item of items) {
    const group = groups.get(keyOf(item));
    if (group === undefined) groups.set(keyOf(item), [item]);
    else group.push(item);
  }
  return groups;
}
