/** Texts that fit a terminal: how wide it is, and lines broken between words. Elsewhere lines are as long as they are. */

/** Of a terminal that does not tell. */
const USUAL_COLUMNS = 80;
/** Narrower than this nothing is broken any more: a word a line reads no better than what the terminal makes of it. */
const MIN_COLUMNS = 20;

/** Infinity for what is no terminal, such as a pipe. */
export function columnsOf({ isTTY, columns }: { isTTY?: boolean; columns?: number }): number {
  return isTTY === true ? columns || USUAL_COLUMNS : Infinity;
}

/** The text in lines of at most so many columns; a word that is longer stands in a line of its own. */
export function wrap(text: string, columns: number): string[] {
  const width = Math.max(columns, MIN_COLUMNS);
  if (text.length <= width) return [text];
  const lines: string[] = [];
  let line = '';
  for (const word of text.split(' ')) {
    if (line !== '' && line.length + 1 + word.length > width) {
      lines.push(line);
      line = word;
    } else line = line === '' ? word : `${line} ${word}`;
  }
  return [...lines, line];
}
