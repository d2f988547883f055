/** The page of `npm run bench -- --html`: one file that loads nothing, with every row, whatever is in it. */
import t from 'tap';
import { renderPage } from '../../bench/support/page.js';
import { row } from '../../bench/support/measure.js';
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

function page(rows: Results['rows']): string {
  return renderPage({ machine: MACHINE, seconds: 450, failed: [], rows });
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

t.test('a run without rows has a page as well', (t) => {
  t.match(page([]), /multifd: benchmarks/);
  t.end();
});
