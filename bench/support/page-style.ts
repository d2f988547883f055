/** The page's style sheet: light and dark, wide and on a phone, where a row of a table becomes a block. */
import { DARK, NARROW, WIDE } from './page-chart.js';

export function style(): string {
  const dark = Object.entries(DARK).map(
    ([light, colour]) =>
      `svg [fill="${light}"] { fill: ${colour}; } svg [stroke="${light}"] { stroke: ${colour}; }`,
  );
  return `
:root { color-scheme: light dark; --ink: #1f2933; --paper: #fff; --faint: #d8dee4; --missed: #b42318; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --paper: #0d1117; --faint: #3d444d; --missed: #ff8a80; }
  ${dark.join('\n  ')}
}
body { margin: 0 auto; padding: 1rem; max-width: 56rem; background: var(--paper); color: var(--ink);
  font: 16px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; } h3 { font-size: 1.05rem; margin-bottom: 0; }
h3 + p { margin-top: 0.2rem; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); gap: 0.2rem 1.5rem; }
dl div { display: flex; gap: 0.8rem; } dt { flex: 0 0 5rem; opacity: 0.75; } dd { margin: 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 0.3rem 0.6rem 0.3rem 0; border-bottom: 1px solid var(--faint); vertical-align: top; }
th { font-weight: normal; } thead th { font-weight: 600; } td { white-space: nowrap; }
.missed, .missed th { color: var(--missed); }
nav a { color: inherit; margin-right: 0.6rem; }
figure { margin: 0.8rem 0 0; } figcaption { font-weight: 600; } svg { display: block; width: 100%; height: auto; } svg.w${NARROW} { display: none; }
details { border-bottom: 1px solid var(--faint); padding: 0.5rem 0; } summary { cursor: pointer; font-weight: 600; }
small { font-weight: normal; opacity: 0.75; }
@media (max-width: 40rem) {
  thead { display: none; } table, tbody { display: block; }
  tr { display: flex; flex-wrap: wrap; gap: 0 1rem; padding: 0.4rem 0; border-bottom: 1px solid var(--faint); }
  th, td { border: 0; padding: 0; } tbody th { flex: 1 0 100%; }
  svg.w${NARROW} { display: block; } svg.w${WIDE} { display: none; }
}
`;
}
