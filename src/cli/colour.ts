/**
 * Colour, sparingly: green for what is proven, red for what failed. Only on a terminal that knows it, and never
 * where NO_COLOR is set (https://no-color.org: set and not empty).
 */
export interface Paint {
  good(text: string): string;
  bad(text: string): string;
}

const plain = (text: string): string => text;

export function paintFor(stream: { isTTY?: boolean }, env: NodeJS.ProcessEnv): Paint {
  const colour = stream.isTTY === true && !env.NO_COLOR && env.TERM !== 'dumb';
  if (!colour) return { good: plain, bad: plain };
  return { good: (text) => `\x1b[32m${text}\x1b[39m`, bad: (text) => `\x1b[31m${text}\x1b[39m` };
}
