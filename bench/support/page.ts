/**
 * The figures of a run as one page without anything to load: the bounds, then a part for each bench that was asked for, with
 * its remarks, its plots (charts.ts says which, page-chart.ts draws them) and all its rows. A bench without figures has its
 * part as well, which says why there are none.
 */
import { chartsOf, groupBy, type DrawnChart } from './charts.js';
import type { Row } from './measure.js';
import { captionOf, renderChart, WIDTHS } from './page-chart.js';
import { escape, html, raw, type Html } from './page-html.js';
import { style } from './page-style.js';
import { boundOf, figure, isMissed, type Results } from './results.js';

export function renderPage(results: Results): string {
  const { rows } = results;
  const bounded = rows.filter((row) => boundOf(row) !== undefined);
  const benches = groupBy(rows, (row) => row.bench);
  const names = [...new Set([...results.benches, ...benches.keys()])];
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
        ${machineList(results)}
        ${
          rows.length === 0 &&
          html`<p class="missed">
            There are no figures on this page: no bench gave any. Why stands at each.
          </p>`
        }
        ${names.length > 1 && contents(names)} ${bounded.length > 0 && boundsSection(bounded)}
        ${rows.length > 0 && html`<p>In the plots: medians; whiskers from minimum to maximum.</p>`}
        ${names.map((name) => benchSection(name, benches.get(name) ?? [], results))}
      </body>
    </html> `;
  return page.text;
}

function contents(names: readonly string[]): Html {
  return html`<nav>${names.map((name) => html`<a href="#${name}">${name}</a> `)}</nav>`;
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
  const missed = rows.filter(isMissed);
  return html`<h2>Bounds</h2>
    <p>
      ${rows.length - missed.length} of ${rows.length}
      reached${missed.length > 0 && html`, <b class="missed">${missed.length} MISSED</b>`}.
    </p>
    ${missed.length > 0 && boundsTable(missed)}
    <details>
      <summary>All bounds <small>${rows.length} rows</small></summary>
      ${boundsTable(rows)}
    </details>`;
}

function boundsTable(rows: readonly Row[]): Html {
  return html`<table>
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

function benchSection(bench: string, rows: readonly Row[], { failed, remarks }: Results): Html {
  const said = remarks.filter((one) => one.bench === bench);
  return html`<section id="${bench}">
    <h2>${bench}</h2>
    ${failed.includes(bench) && html`<p class="missed">This bench was not run to its end.</p>`}
    ${rows.length === 0 && html`<p>No figures${said.length === 0 && !failed.includes(bench) && ', and it does not say why'}.</p>`}
    ${
      said.length > 0 &&
      html`<ul>
        ${said.map(({ remark }) => html`<li>${remark}</li>`)}
      </ul>`
    }
    ${chartsOf(rows).map(chartSection)} ${rows.length > 0 && benchDetails(bench, rows)}
  </section> `;
}

function benchDetails(bench: string, rows: readonly Row[]): Html {
  return html`<details>
    <summary>All figures of ${bench} <small>${rows.length} rows</small></summary>
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

function chartSection({ title, note, panels }: DrawnChart): Html {
  return html`<h3>${title}</h3>
    ${note !== undefined && html`<p>${note}</p>`}
    ${panels.map(({ title: panel, plot }) => {
      const label = escape(`${title}${panel === '' ? '' : `, ${panel}`}: ${captionOf(plot)}`);
      const drawn = WIDTHS.map((width) => {
        const svg = renderChart(plot, width);
        return raw(
          svg.replace(
            /^<svg width="\d+" height="\d+"/,
            `<svg class="w${width}" role="img" aria-label="${label}"`,
          ),
        );
      });
      return html`<figure>${panel !== '' && html`<figcaption>${panel}</figcaption>`} ${drawn}</figure> `;
    })} `;
}
