/**
 * The figures of a run as one page without anything to load: the bounds, plots (page-chart.ts), all rows. Which row goes into
 * which plot says the row (`plot`), what plots there are says `CHARTS`.
 */
import type { ChartKey, Row } from './measure.js';
import { renderChart, type ChartKind, type Series } from './page-chart.js';
import { escape, html, raw, type Html } from './page-html.js';
import { style } from './page-style.js';
import { boundOf, figure, isMissed, type Results } from './results.js';

interface Chart {
  key: ChartKey;
  title: string;
  /** What the figures are, with their unit. */
  unit: string;
  /** What x is. */
  axis: string;
  kind: ChartKind;
  note?: string;
}

/**
 * A series named `PANEL: NAME` is drawn as NAME in a panel of its own, since figures of a kind that is ten times as fast
 * would flatten all others.
 */
const CHARTS: readonly Chart[] = [
  {
    key: 'method',
    title: 'Throughput by method',
    unit: 'GB of guest RAM a second',
    axis: 'method and image',
    kind: 'bars',
    note: 'Two channels, into memory that is there before.',
  },
  {
    key: 'channels',
    title: 'Throughput by channels',
    unit: 'GB of guest RAM a second',
    axis: 'channels',
    kind: 'lines',
  },
  {
    key: 'growth-channels',
    title: 'Throughput by channels, 1 to 16',
    unit: 'GB of guest RAM a second',
    axis: 'channels',
    kind: 'lines',
    note: 'Method none, half of the guest zero.',
  },
  { key: 'size', title: 'Time by RAM size', unit: 'seconds a GiB', axis: 'GiB of RAM', kind: 'lines' },
  {
    key: 'page-size',
    title: 'Throughput by page size',
    unit: 'GB of guest RAM a second',
    axis: 'KiB a page',
    kind: 'lines',
  },
  { key: 'limit', title: 'Share of the limit', unit: 'share; 1 is the limit', axis: 'limit', kind: 'bars' },
  {
    key: 'sockets',
    title: 'The limit: plain sockets between two processes',
    unit: 'GB a second',
    axis: 'connections',
    kind: 'lines',
  },
  {
    key: 'zero-limit',
    title: 'The limit: zero detection in C',
    unit: 'GB a second',
    axis: 'threads',
    kind: 'lines',
  },
  {
    key: 'memory',
    title: "Memory above the guest's RAM",
    unit: 'MiB a channel',
    axis: 'case',
    kind: 'bars',
  },
  {
    key: 'memory-size',
    title: "Memory above the guest's RAM, by its size",
    unit: 'MiB a channel',
    axis: 'GiB of RAM',
    kind: 'lines',
  },
  {
    key: 'memory-channels',
    title: "Memory above the guest's RAM, by channels",
    unit: 'MiB a channel',
    axis: 'channels',
    kind: 'lines',
  },
  {
    key: 'file',
    title: 'Into a file and back',
    unit: 'seconds for 1 GiB, half of it zero',
    axis: 'direction',
    kind: 'bars',
  },
  { key: 'handover', title: 'Hand-over of jobs', unit: 'jobs a second', axis: 'channels', kind: 'lines' },
  { key: 'latency', title: 'Hand-over, publish to done', unit: 'µs', axis: 'channels', kind: 'lines' },
  { key: 'queueing', title: 'Queueing', unit: 'ns a page', axis: 'channels', kind: 'bars' },
  { key: 'zero-detection', title: 'Zero detection', unit: 'GB a second', axis: 'of', kind: 'bars' },
  { key: 'header', title: 'Packet header', unit: 'ns a packet', axis: 'of', kind: 'bars' },
  {
    key: 'codecs',
    title: 'Codecs, one thread',
    unit: 'GB a second',
    axis: 'backend',
    kind: 'bars',
    note: 'Level 1, program bytes in packets of 512 KiB.',
  },
  { key: 'startup', title: 'Start-up', unit: 'ms', axis: 'channels', kind: 'lines' },
  { key: 'loop-delay', title: 'Delay of the main loop', unit: 'ms', axis: 'of all turns', kind: 'bars' },
];
/** The chart by method is the one by channels, seen where both sides have so many. */
const METHOD_CHANNELS = 2;

export function renderPage(results: Results): string {
  const { rows } = results;
  const bounded = rows.filter((row) => boundOf(row) !== undefined);
  const charts = CHARTS.map((chart) => chartSection(chart, rows)).filter((section) => section !== undefined);
  const page = html`<!doctype html>
    <html lang="en">
      <head>
        <meta charset="utf-8" />
        <meta name="viewport" content="width=device-width, initial-scale=1" />
        <meta name="color-scheme" content="light dark" />
        <title>multifd: benchmarks</title>
        <style>
          ${raw(style())}
        </style>
      </head>
      <body>
        <h1>multifd: benchmarks</h1>
        ${machineList(results)} ${bounded.length > 0 && boundsSection(bounded)}
        ${
          charts.length > 0 &&
          html`<h2>Plots</h2>
            <p>Medians; whiskers from minimum to maximum.</p>
            ${charts}`
        }
        <h2>All figures</h2>
        ${[...groupBy(rows, (row) => row.bench)].map(([bench, some]) => benchDetails(bench, some))}
      </body>
    </html> `;
  return page.text;
}

function machineList({ machine, seconds, failed }: Results): Html {
  const facts: [string, string][] = [
    ['processor', `${machine.cpu}, ${machine.cores} cores`],
    ['memory', `${machine.memoryGiB} GiB`],
    ['kernel', machine.kernel],
    ['Node', machine.node],
    ['QEMU', machine.qemu],
    ['revision', machine.revision],
    ['date', machine.date.slice(0, 16).replace('T', ' ') + ' UTC'],
    ['took', seconds < 120 ? `${seconds.toFixed()} s` : `${(seconds / 60).toFixed(1)} minutes`],
  ];
  return html`<dl>
      ${facts.map(
        ([name, value]) =>
          html`<div>
            <dt>${name}</dt>
            <dd>${value}</dd>
          </div>`,
      )}
    </dl>
    ${failed.length > 0 && html`<p class="missed">Failed, and not to be seen here in full: ${failed.join(', ')}</p>`}`;
}

function boundsSection(rows: readonly Row[]): Html {
  const missed = rows.filter(isMissed).length;
  return html`<h2>Bounds</h2>
    <p>
      ${rows.length - missed} of ${rows.length}
      reached${missed > 0 && html`, <b class="missed">${missed} MISSED</b>`}.
    </p>
    <table>
      <thead>
        <tr>
          ${HEAD}
          <th></th>
        </tr>
      </thead>
      <tbody>
        ${rows.map(
          (row) =>
            html`<tr class="${isMissed(row) && 'missed'}">
              ${cellsOf(row, `${row.bench}: ${row.row}`)}
              <td>${boundOf(row)}</td>
              <td>${isMissed(row) ? html`<b>MISSED</b>` : 'reached'}</td>
            </tr>`,
        )}
      </tbody>
    </table>`;
}

function benchDetails(bench: string, rows: readonly Row[]): Html {
  return html`<details>
    <summary>${bench} <small>${rows.length} rows</small></summary>
    <table>
      <thead>
        <tr>
          ${HEAD}
        </tr>
      </thead>
      <tbody>
        ${rows.map(
          (row) =>
            html`<tr>
              ${cellsOf(row, row.row)}
              <td>${boundOf(row)}${isMissed(row) && html` <b class="missed">MISSED</b>`}</td>
            </tr> `,
        )}
      </tbody>
    </table>
  </details> `;
}

/** What both tables of rows begin with. */
const HEAD = html`<th>row</th>
  <th>median</th>
  <th>spread</th>
  <th>bound</th>`;

function cellsOf({ median, min, max, unit }: Row, name: string): Html {
  return html`<th scope="row">${name}</th>
    <td>${figure(median)} ${unit}</td>
    <td>${min === max ? '' : `${figure(min)} to ${figure(max)}`}</td>`;
}

// ---- plots ----

interface Drawn {
  panel: string;
  series: string;
  x: string | number;
  row: Row;
}

function drawnOf(chart: Chart, rows: readonly Row[]): Drawn[] {
  return rows.flatMap((row): Drawn[] => {
    if (row.plot === undefined) return [];
    const { chart: key, series, x } = row.plot;
    const cut = series.indexOf(': ');
    const [panel, name] = cut < 0 ? ['', series] : [series.slice(0, cut), series.slice(cut + 2)];
    if (key === chart.key) return [{ panel, series: name, x, row }];
    const also = chart.key === 'method' && key === 'channels' && x === METHOD_CHANNELS;
    return also ? [{ panel: '', series: name, x: panel, row }] : [];
  });
}

function chartSection(chart: Chart, rows: readonly Row[]): Html | undefined {
  const drawn = drawnOf(chart, rows);
  if (drawn.length === 0) return undefined;
  const panels = [...groupBy(drawn, ({ panel }) => panel)].map(([panel, points]) => {
    const svg = renderChart({ ...chart, series: seriesOf(points) });
    const label = escape(panel === '' ? chart.title : `${chart.title}: ${panel}`);
    return html`<figure>
      ${panel !== '' && html`<figcaption>${panel}</figcaption>`}
      ${raw(svg.replace(/^<svg width="\d+" height="\d+"/, `<svg role="img" aria-label="${label}"`))}
    </figure> `;
  });
  return html`<h3>${chart.title}</h3>
    ${chart.note !== undefined && html`<p>${chart.note}</p>`}
    <div class="panels">${panels}</div> `;
}

function seriesOf(points: readonly Drawn[]): Series[] {
  return [...groupBy(points, ({ series }) => series)].map(([name, some]) => ({
    name,
    points: some.map(({ x, row: { min, median, max } }) => ({ x, min, median, max })),
  }));
}

/** Groups in the order in which they come. */
function groupBy<T>(items: readonly T[], keyOf: (item: T) => string): Map<string, T[]> {
  const groups = new Map<string, T[]>();
  for (const item of items) {
    const group = groups.get(keyOf(item));
    if (group === undefined) groups.set(keyOf(item), [item]);
    else group.push(item);
  }
  return groups;
}
