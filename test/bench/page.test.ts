/** The page of `npm run bench -- --html`: one file that loads nothing, with every row, whatever is in it. */
import t from 'tap';
import { renderPage } from '../../bench/support/page.js';
import { row } from '../../bench/support/measure.js';
import { WIDTHS } from '../../bench/support/page-chart.js';
import type { Results } from '../../bench/support/results.js';

const MACHINE = {
  cpu: 'some <processor> & more',
  cores: 2,
  memoryGiB: 24,
  kernel: 'Linux 6.1 x64',
  node: 'v20.20.2',
  qemu: '10.0.2',
  revision: '0123456',
  date: '2026-11-20T12:00:00.000Z',
};

const NOTHING: Results = { machine: MACHINE, seconds: 450, benches: [], failed: [], remarks: [], rows: [] };

/** The section of one bench. */
function partOf(html: string, bench: string): string {
  const part = html.split('<section id=').find((one) => one.startsWith(`"${bench}"`));
  if (part === undefined) throw new Error(`no part for ${bench}`);
  return part;
}

/** Each plot once, as it is drawn for the widest page. */
function plotsIn(html: string): string[] {
  return html.match(new RegExp(`<svg class="w${Math.max(...WIDTHS)}".*?</svg>`, 'gs')) ?? [];
}

function page(rows: Results['rows']): string {
  return renderPage({ ...NOTHING, rows });
}

t.test('rows, bounds and plots', (t) => {
  const html = page([
    row('qemu', 'none, random: multifd', 'GB/s', [3, 1, 2], {
      plot: { chart: 'channels', series: 'none, random: multifd', x: 2 },
    }),
    row('qemu', 'none, random: QEMU', 'GB/s', [4], {
      plot: { chart: 'channels', series: 'none, random: QEMU', x: 2 },
    }),
    row('qemu', 'speed', '', [0.5], { floor: 0.9 }),
    row('memory', 'a channel', 'MiB', [17.25], {
      ceiling: 25,
      plot: { chart: 'memory', series: 'sender', x: 'none' },
    }),
  ]);
  t.match(html, /^<!doctype html>/);
  t.ok(html.includes('MISSED'), 'a bound that is missed');
  t.ok(html.includes('17.25') || html.includes('17.3'), 'a figure');
  t.ok((html.match(/<svg/g) ?? []).length >= 2, 'plots');
  t.end();
});

t.test('nothing is loaded from anywhere', (t) => {
  const html = page([
    row('none', 'x', 'GB/s', [1], { plot: { chart: 'limit', series: 'multifd', x: 'sockets' } }),
  ]);
  t.notMatch(html, /<script|<link|<img|@import|url\((?!#)/i);
  const addresses = (html.match(/https?:\/\/[^"' <)]+/g) ?? []).filter(
    (one) => !one.startsWith('http://www.w3.org/'),
  );
  t.same(addresses, [], 'names of formats alone');
  t.end();
});

t.test('what stands in rows is text', (t) => {
  const html = page([
    row('none', '<b>&"name', 'GB/s', [1], { plot: { chart: 'limit', series: '<i>', x: '<u>' } }),
  ]);
  t.notMatch(html, /<b>&|<i>|<u>|<processor>/);
  t.match(html, /&lt;b&gt;/);
  t.end();
});

t.test('a bench that gave nothing has its part of the page, which says why', (t) => {
  const html = renderPage({
    ...NOTHING,
    benches: ['limit', 'qemu', 'growth', 'zero'],
    failed: ['growth'],
    remarks: [
      { bench: 'limit', remark: 'rows in C left out: <no cc>' },
      { bench: 'qemu', remark: 'skipped: no QEMU' },
    ],
    rows: [row('limit', 'sockets', 'GB/s', [1], { plot: { chart: 'sockets', series: 'Node', x: 1 } })],
  });
  t.match(partOf(html, 'limit'), 'rows in C left out: &lt;no cc&gt;');
  t.match(partOf(html, 'limit'), '<svg');
  t.notMatch(partOf(html, 'limit'), 'No figures');
  t.match(partOf(html, 'qemu'), /No figures\..*skipped: no QEMU/s);
  t.match(partOf(html, 'growth'), /not run to its end.*No figures\./s);
  t.match(partOf(html, 'zero'), 'No figures, and it does not say why');
  t.end();
});

t.test('a run without rows has a page that says so', (t) => {
  const html = renderPage({ ...NOTHING, benches: ['qemu'] });
  t.match(html, /There are no figures on this page/);
  t.match(partOf(html, 'qemu'), 'No figures');
  t.notMatch(html, '<svg');
  t.end();
});

t.test('a bench whose rows ask for no plot is drawn all the same, one plot for each unit', (t) => {
  const part = partOf(
    page([
      row('new', 'one', 'MiB', [3]),
      row('new', 'other', 'GB/s', [5]),
      row('new', 'share', '', [0.5], { ceiling: 1 }),
      row('new', 'two', 'MiB', [4]),
    ]),
    'new',
  );
  t.equal(plotsIn(part).length, 3);
  t.match(plotsIn(part)[0], 'MiB; lower is better');
  t.match(plotsIn(part)[0], />two</);
  t.match(plotsIn(part)[1], 'GB/s; higher is better');
  t.match(plotsIn(part)[2], 'share or count; lower is better', 'its bound is a ceiling');
  t.end();
});

t.test('each bench has the rows of its own in its plots', (t) => {
  const plot = { chart: 'channels', series: 'none, random: multifd', x: 2 } as const;
  const html = page([
    row('qemu', 'a', 'GB/s', [1.25], { plot }),
    row('qemu-all', 'b', 'GB/s', [7.5], { plot }),
  ]);
  t.match(partOf(html, 'qemu'), '>1.25<');
  t.notMatch(partOf(html, 'qemu'), '>7.50<');
  t.match(partOf(html, 'qemu-all'), '>7.50<');
  t.end();
});

t.test('each plot says its unit on its axis, which way is better, and stands there for both widths', (t) => {
  const html = page([
    row('startup', 'p50', 'ms', [2], { plot: { chart: 'loop-delay', series: 'sender', x: 'p50' } }),
    row('startup', 'open', 'ms', [200], { plot: { chart: 'startup', series: 'open', x: 1 } }),
    row('zero', 'zero', 'GB/s', [6], { plot: { chart: 'zero', series: 'multifd', x: 1 } }),
  ]);
  const plots = plotsIn(html);
  t.equal(plots.length, 3);
  for (const [plot, unit, better, axis] of [
    [plots[0], 'ms', 'lower', 'channels'],
    [plots[1], 'ms', 'lower', 'of all turns'],
    [plots[2], 'GB of guest RAM a second', 'higher', 'channels'],
  ]) {
    t.match(plot, `>${unit}; ${better} is better<`);
    t.match(plot, `>${unit}<`, 'the axis of figures');
    t.match(plot, `>${axis}<`, 'the other one');
  }
  for (const width of WIDTHS)
    t.equal(html.split(`<svg class="w${width}"`).length - 1, plots.length, `${width}`);
  t.end();
});

t.test('an axis is logarithmic where a maximum is 100 times a median', (t) => {
  const plot = (chart: 'loop-delay' | 'startup', max: number, median = 0.5): string =>
    plotsIn(
      page([
        row('startup', 'p50', 'ms', [0, median, median], { plot: { chart, series: 'sender', x: 'p50' } }),
        row('startup', 'max', 'ms', [max], { plot: { chart, series: 'sender', x: 'max' } }),
      ]),
    )[0];
  for (const chart of ['loop-delay', 'startup'] as const) {
    t.notMatch(plot(chart, 49), 'logarithmic', chart);
    const drawn = plot(chart, 50);
    t.match(drawn, 'lower is better; logarithmic axis', chart);
    for (const figure of ['0.1', '1', '10', '100']) t.match(drawn, `>${figure}<`, `${chart}: ${figure}`);
    t.notMatch(drawn, /NaN|Infinity/, 'a minimum of 0 has a place');
    t.match(plot(chart, 100, 1), '>0.1<', `${chart}: the smallest has a length`);
    t.notMatch(plot(chart, 50, 0), /logarithmic|NaN|Infinity/, 'medians of 0 alone');
  }
  // In one row as well, and in the whole plot.
  const [one] = plotsIn(
    page([row('startup', 'x', 'ms', [1, 1, 100], { plot: { chart: 'startup', series: 'x', x: 1 } })]),
  );
  t.match(one, 'logarithmic axis');
  t.end();
});
