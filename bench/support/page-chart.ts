/**
 * One plot as SVG, made without a browser: horizontal bars or lines from 0 on, with whiskers from minimum to maximum. Where
 * the largest figure would press the smallest ones flat, the axis is a logarithmic one. Its colours are those of a light
 * page; `DARK` says what each becomes on a dark one, by rules of the page's style sheet.
 */
import * as echarts from 'echarts';

export type ChartKind = 'bars' | 'lines';

export interface Point {
  x: string | number;
  min: number;
  median: number;
  max: number;
}

export interface Series {
  name: string;
  points: Point[];
}

export interface Plot {
  kind: ChartKind;
  /** What the figures are, with their unit. */
  unit: string;
  better: 'higher' | 'lower';
  /** What x is. */
  axis: string;
  series: Series[];
}

const INK = '#1f2933';
const FAINT = '#c9d1d9';
/** Okabe and Ito's, told apart by all eyes. Ours is blue wherever QEMU, vermilion, is beside it. */
const PALETTE = ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#7a5195', '#8c6d31'];
export const DARK: Readonly<Record<string, string>> = {
  [INK]: '#e6edf3',
  [FAINT]: '#3d444d',
  '#0072b2': '#56b4e9',
  '#d55e00': '#f28e4b',
  '#009e73': '#2fc79b',
  '#7a5195': '#b493d6',
  '#8c6d31': '#c9a961',
};
const SYMBOLS = ['circle', 'diamond', 'triangle', 'rect', 'roundRect', 'pin', 'arrow'];
const FIXED: Readonly<Record<string, number>> = { multifd: 0, QEMU: 1 };

/**
 * Pixels: each plot is drawn for a phone and for the page's full width, so that its text keeps its size on both; the style
 * sheet shows the one that fits.
 */
export const NARROW = 400;
export const WIDE = 860;
export const WIDTHS = [NARROW, WIDE] as const;
/** At most, of the names beside bars; longer ones take several lines. */
const NAME_ROOM = { [NARROW]: 116, [WIDE]: 290 };
/** Of figures and the name of a vertical axis. */
const FIGURES_ROOM = 64;
const GAP = 8;
/** A maximum that is so many times a median gets a logarithmic axis. */
const LOG_RATIO = 100;
const LINES_HEIGHT = 280;
const BAR = 15;
const BAR_STEP = 19;
const CATEGORY_GAP = 16;
const CAP = 4;
const LABEL_ROOM = 48;
const AXIS_NAME_GAP = 28;
const FONT = 12;
const LINE = 14;
/** Of the legend: a symbol with the gaps around it. */
const LEGEND_ITEM = 46;
const LEGEND_ROW = 25;
/** Letters on average, in the widest of the fonts that a browser may take. */
const LETTER = 7.2;
const WIDE_LETTER = 11;

// There is no browser to ask, and where texts are taken for narrower than they will be they cover each other.
echarts.setPlatformAPI({
  measureText: (text: string) => ({ width: textWidth(text) }),
});

function textWidth(text: string): number {
  const wide = text.match(/[mwMW]/g)?.length ?? 0;
  return (text.length - wide) * LETTER + wide * WIDE_LETTER;
}

/** How many lines of this width it takes, broken between words. */
function linesOf(text: string, width: number): number {
  let lines = 1;
  let used = 0;
  for (const word of text.split(' ')) {
    const wanted = textWidth(`${word} `);
    if (used > 0 && used + wanted > width) {
      lines++;
      used = 0;
    }
    used += wanted;
  }
  return lines;
}

/** Figures as short as they are told apart. */
function short(value: number): string {
  if (value >= 1e6) return `${(value / 1e6).toPrecision(3)}M`;
  if (value >= 1e4) return `${(value / 1e3).toPrecision(3)}k`;
  return value >= 100 ? value.toFixed() : value >= 10 ? value.toFixed(1) : value.toFixed(2);
}

/**
 * Does this plot need a logarithmic axis? A median and a maximum a hundred times as large, be they of one row or of two,
 * cannot both be read off one that begins with 0.
 */
export function isLogarithmic(series: readonly Series[]): boolean {
  const points = series.flatMap((one) => one.points);
  const medians = points.map(({ median }) => median).filter((median) => median > 0);
  const largest = Math.max(...points.map(({ max }) => max));
  return medians.length > 0 && largest >= LOG_RATIO * Math.min(...medians);
}

/** Powers of ten around all that is drawn. */
function logRange(series: readonly Series[]): { min: number; max: number } {
  const drawn = series.flatMap(({ points }) => points.flatMap(({ min, median, max }) => [min, median, max]));
  const above = drawn.filter((value) => value > 0);
  // Below the smallest, which would else be a bar without a length.
  const min = 10 ** (Math.ceil(Math.log10(Math.min(...above))) - 1);
  return { min, max: 10 ** Math.ceil(Math.log10(Math.max(...above))) };
}

export function renderChart(plot: Plot, width: (typeof WIDTHS)[number]): string {
  const { kind, series } = plot;
  const logarithmic = isLogarithmic(series);
  // On a logarithmic axis there is no 0: what is not above it lies at the axis's end.
  const range = logarithmic ? logRange(series) : { min: 0 };
  const categories = categoriesOf(series);
  const looks = looksOf(series);
  const bars = kind === 'bars';
  const legendRows = series.length > 1 ? legendRowsOf(series, width) : 0;
  const names = categories.map(String);
  // Above bars there is a line for what they are of.
  const top = 28 + LEGEND_ROW * legendRows + (bars ? 18 : 0);
  const room = Math.min(NAME_ROOM[width], Math.max(...names.map(textWidth)) + GAP);
  const lines = Math.max(...names.map((name) => linesOf(name, room)));
  const categoryHeight = Math.max(series.length * BAR_STEP, lines * LINE) + CATEGORY_GAP;
  const height = bars ? top + categories.length * categoryHeight + 44 : LINES_HEIGHT + top;
  const chart = echarts.init(null, null, { renderer: 'svg', ssr: true, width, height });
  const value = {
    ...(logarithmic ? { type: 'log', startValue: range.min } : { type: 'value' }),
    ...range,
    name: plot.unit,
    nameLocation: 'middle',
    nameGap: bars ? AXIS_NAME_GAP : FIGURES_ROOM - 2 * GAP,
    nameTextStyle: { color: INK, fontSize: FONT },
    splitLine: { lineStyle: { color: FAINT } },
    axisLabel: { color: INK, fontSize: FONT, formatter: axisFigure, hideOverlap: true },
    ...(bars ? { splitNumber: 4 } : {}),
  };
  const category = {
    type: 'category',
    data: names,
    inverse: bars,
    name: plot.axis,
    // Beside bars the names are long: what they are stands above them.
    nameLocation: bars ? 'start' : 'middle',
    nameGap: bars ? GAP : AXIS_NAME_GAP,
    nameTextStyle: { color: INK, fontSize: FONT, ...(bars && { align: 'left' }) },
    axisLine: { lineStyle: { color: INK } },
    axisTick: { show: false },
    axisLabel: {
      color: INK,
      fontSize: FONT,
      interval: 0,
      lineHeight: LINE,
      ...(bars && { width: room, overflow: 'break' }),
    },
  };
  chart.setOption({
    animation: false,
    title: {
      text: captionOf(plot),
      left: 0,
      top: 0,
      textStyle: { color: INK, fontSize: FONT, fontWeight: 'normal' },
    },
    legend: {
      show: series.length > 1,
      selectedMode: false,
      top: 20,
      left: 0,
      itemGap: 14,
      itemHeight: 10,
      textStyle: { color: INK, fontSize: FONT },
      inactiveColor: INK,
    },
    grid: {
      left: bars ? room + 2 * GAP : FIGURES_ROOM,
      right: bars ? LABEL_ROOM : 2 * GAP,
      top,
      bottom: 44,
    },
    xAxis: bars ? value : category,
    yAxis: bars ? category : value,
    series: series.flatMap(({ name, points }, index) => {
      const look = looks[index];
      const colour = PALETTE[look % PALETTE.length];
      const byCategory = new Map(points.map((point) => [point.x, point]));
      const shown = categories.map((x) => byCategory.get(x));
      const offset = bars ? (index - (series.length - 1) / 2) * BAR_STEP : 0;
      return [
        {
          type: bars ? 'bar' : 'line',
          // A picture: nothing in it answers to a pointer.
          silent: true,
          name,
          color: colour,
          data: shown.map((point) => (point === undefined ? null : drawable(point.median, range.min))),
          ...(bars
            ? { barWidth: BAR, barGap: `${(100 * (BAR_STEP - BAR)) / BAR}%` }
            : {
                symbol: SYMBOLS[look % SYMBOLS.length],
                symbolSize: 8,
                showSymbol: true,
                lineStyle: { width: 2, type: look % 2 === 0 ? 'solid' : 'dashed' },
              }),
        },
        whiskers(shown, bars, offset, bars ? INK : colour, range.min),
      ];
    }),
  } as echarts.EChartsCoreOption);
  // What answers to a pointer there is, in a browser, a style of the whole page.
  const svg = chart.renderToSVGString().replace(/<style[\s\S]*?<\/style>/g, '');
  chart.dispose();
  return svg;
}

/** In the order in which they come; numbers ascending. */
function categoriesOf(series: readonly Series[]): (string | number)[] {
  const all = [...new Set(series.flatMap(({ points }) => points.map(({ x }) => x)))];
  if (all.every((x) => typeof x === 'number')) all.sort((a, b) => a - b);
  return all;
}

/** Each series' place in the palette: a fixed one, or the first that nobody has. */
function looksOf(series: readonly Series[]): number[] {
  const taken = new Set(series.map(({ name }) => FIXED[name]));
  let next = 0;
  return series.map(({ name }) => {
    if (FIXED[name] !== undefined) return FIXED[name];
    while (taken.has(next)) next++;
    return next++;
  });
}

/** What the plot shows, and how it is to be read; in the picture itself, which may be looked at without its page. */
export function captionOf({ unit, better, series }: Plot): string {
  return `${unit}; ${better} is better${isLogarithmic(series) ? '; logarithmic axis' : ''}`;
}

/** As many as echarts makes of them, or one more. */
function legendRowsOf(series: readonly Series[], width: number): number {
  let rows = 1;
  let used = 0;
  for (const { name } of series) {
    const wanted = LEGEND_ITEM + textWidth(name);
    if (used > 0 && used + wanted > width) {
      rows++;
      used = 0;
    }
    used += wanted;
  }
  return rows;
}

function axisFigure(value: number): string {
  return value >= 1e4 ? short(value) : String(Number(value.toPrecision(6)));
}

function drawable(value: number, least: number): number {
  return Math.max(value, least);
}

/** From minimum to maximum, with caps; beside a bar its median in figures. */
function whiskers(
  points: (Point | undefined)[],
  bars: boolean,
  offset: number,
  colour: string,
  least: number,
): object {
  return {
    type: 'custom',
    silent: true,
    z: 3,
    data: points.flatMap((point, index) =>
      point === undefined
        ? []
        : [[index, drawable(point.min, least), drawable(point.max, least), point.median]],
    ),
    // Bars lie: their category is y.
    encode: bars ? { x: [1, 2], y: 0 } : { x: 0, y: [1, 2] },
    renderItem: (_: unknown, api: { value(i: number): number; coord(at: number[]): number[] }): object => {
      const at = (value: number): number[] => {
        const [x, y] = api.coord(bars ? [value, api.value(0)] : [api.value(0), value]);
        return bars ? [x, y + offset] : [x, y];
      };
      const [from, to] = [at(api.value(1)), at(api.value(2))];
      const stroke = { stroke: colour, lineWidth: 1.5 };
      const line = (a: number[], b: number[]): object => ({
        type: 'line',
        shape: { x1: a[0], y1: a[1], x2: b[0], y2: b[1] },
        style: stroke,
      });
      const cap = ([x, y]: number[]): object =>
        bars ? line([x, y - CAP], [x, y + CAP]) : line([x - CAP, y], [x + CAP, y]);
      const length = Math.hypot(to[0] - from[0], to[1] - from[1]);
      const children = length < 2 ? [] : [line(from, to), cap(from), cap(to)];
      if (bars) {
        children.push({
          type: 'text',
          style: {
            text: short(api.value(3)),
            x: to[0] + 6,
            y: to[1],
            fill: INK,
            fontSize: FONT,
            verticalAlign: 'middle',
          },
        });
      }
      return { type: 'group', children };
    },
  };
}
