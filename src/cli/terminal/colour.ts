/**
 * Colour, sparingly: green for what is proven, red for what failed. On a terminal that knows it, and elsewhere if
 * FORCE_COLOR asks for it (https://force-color.org; 0 and false ask for none); never where NO_COLOR is set
 * (https://no-color.org). Both count when they are not empty.
 */
export interface Paint {
  good: (text: string) => string;
  bad: (text: string) => string;
}

const plain = (text: string): string => text;

export function paintFor(stream: { isTTY?: boolean }, env: NodeJS.ProcessEnv): Paint {
  if (!wantsColour(stream, env)) return { good: plain, bad: plain };
  return { good: (text) => `\x1b[32m${text}\x1b[39m`, bad: (text) => `\x1b[31m${text}\x1b[39m` };
}

function wantsColour(
  { isTTY }: { isTTY?: boolean },
  { NO_COLOR, FORCE_COLOR, TERM }: NodeJS.ProcessEnv,
): boolean {
  if (NO_COLOR) return false;
  if (FORCE_COLOR) return FORCE_COLOR !== '0' && FORCE_COLOR !== 'false';
  return isTTY === true && TERM !== 'dumb';
}
