/**
 * One plot as SVG, made without a browser: horizontal bars or lines from 0 on, with whiskers from minimum to maximum. Its
 * colours are those of a light page; `DARK` says what each becomes on a dark one, by rules of the page's style sheet.
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

/** Pixels: a phone's width, so that the text keeps its size there. */
const WIDTH = 400;
const LINES_HEIGHT = 280;
const BAR = 15;
const BAR_STEP = 19;
const CATEGORY_GAP = 16;
const CAP = 4;
const LABEL_ROOM = 44;
const FONT = 12;

/** Figures as short as they are told apart. */
function short(value: number): string {
  if (value >= 1e6) return `${(value / 1e6).toPrecision(3)}M`;
  if (value >= 1e4) return `${(value / 1e3).toPrecision(3)}k`;
  return value >= 100 ? value.toFixed() : value >= 10 ? value.toFixed(1) : value.toFixed(2);
}

export function renderChart(plot: Plot): string {
  const { kind, series } = plot;
  const categories = categoriesOf(series);
  const looks = looksOf(series);
  const bars = kind === 'bars';
  const legendRows = series.length > 1 ? Math.ceil(series.length / 3) : 0;
  const top = 28 + 20 * legendRows;
  const categoryHeight = series.length * BAR_STEP + CATEGORY_GAP;
  const height = bars ? top + categories.length * categoryHeight + 32 : LINES_HEIGHT + top;
  const chart = echarts.init(null, null, { renderer: 'svg', ssr: true, width: WIDTH, height });
  const value = {
    type: 'value',
    min: 0,
    splitLine: { lineStyle: { color: FAINT } },
    axisLabel: { color: INK, fontSize: FONT, formatter: axisFigure, hideOverlap: true },
    ...(bars ? { splitNumber: 4 } : {}),
  };
  const category = {
    type: 'category',
    data: categories.map(String),
    inverse: bars,
    name: bars ? '' : plot.axis,
    nameLocation: 'middle',
    nameGap: 28,
    nameTextStyle: { color: INK, fontSize: FONT },
    axisLine: { lineStyle: { color: INK } },
    axisTick: { show: false },
    axisLabel: { color: INK, fontSize: FONT, ...(bars && { width: 116, overflow: 'break', interval: 0 }) },
  };
  chart.setOption({
    animation: false,
    title: {
      text: plot.unit,
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
    grid: { left: 20, right: bars ? LABEL_ROOM : 14, top, bottom: bars ? 4 : 30, containLabel: true },
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
          data: shown.map((point) => point?.median ?? null),
          ...(bars
            ? { barWidth: BAR, barGap: `${(100 * (BAR_STEP - BAR)) / BAR}%` }
            : {
                symbol: SYMBOLS[look % SYMBOLS.length],
                symbolSize: 8,
                showSymbol: true,
                lineStyle: { width: 2, type: look % 2 === 0 ? 'solid' : 'dashed' },
              }),
        },
        whiskers(shown, bars, offset, bars ? INK : colour),
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

function axisFigure(value: number): string {
  return value >= 1e4 ? short(value) : String(value);
}

/** From minimum to maximum, with caps; beside a bar its median in figures. */
function whiskers(points: (Point | undefined)[], bars: boolean, offset: number, colour: string): object {
  return {
    type: 'custom',
    silent: true,
    z: 3,
    data: points.flatMap((point, index) =>
      point === undefined ? [] : [[index, point.min, point.max, point.median]],
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
