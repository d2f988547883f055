/**
 * What somebody may have meant by a name that is not known: a misspelling, or one of QEMU's (`multifd-channels`).
 *
 * Names are compared without case and signs, by the number of letters that are wrong, missing, too many or changed places
 * with their neighbour; or by words that one has of the other (`level`, `timeout`, `numChannels`).
 */

/** Above that it is another word, by choice. */
const MAX_EDITS = 3;
const MIN_SIMILARITY = 0.6;
const MIN_PART_LENGTH = 4;

/**
 * For the end of a message.
 *
 * @returns `; did you mean channels?`, or nothing where no name is near
 */
export function didYouMean(given: unknown, known: readonly string[]): string {
  const meant = similarTo(given, known);
  return meant.length === 0 ? '' : `; did you mean ${meant.join(' or ')}?`;
}

/** The nearest of the known names, all of them if several are as near. */
export function similarTo(given: unknown, known: readonly string[]): string[] {
  // Longer is no name, and would take its time.
  if (typeof given !== 'string' || given.length > 64) return [];
  const word = bare(given);
  if (word === '') return [];
  let best = MAX_EDITS;
  let nearest: string[] = [];
  for (const name of known) {
    const other = bare(name);
    const length = Math.max(word.length, other.length);
    const edits = editsBetween(word, other);
    if (edits > best || (length - edits) / length < MIN_SIMILARITY) continue;
    if (edits < best) nearest = [];
    best = edits;
    nearest.push(name);
  }
  return nearest.length > 0 ? nearest : known.filter((name) => isPart(given, name));
}

function bare(name: string): string {
  return name
    .toLowerCase()
    .replaceAll(/[^a-z\d]/g, '')
    .replace(/^multifd(?=...)/, '');
}

/** Is one made of some words of the other, side by side? */
function isPart(given: string, name: string): boolean {
  return hasWords(name, bare(given)) || hasWords(given, bare(name));
}

function hasWords(name: string, wanted: string): boolean {
  if (wanted.length < MIN_PART_LENGTH) return false;
  const words = name
    .replaceAll(/([a-z\d])([A-Z])/g, '$1 $2')
    .toLowerCase()
    .split(/[^a-z\d]+/);
  return words.some((_, at) =>
    words.slice(at).some((_, count) => words.slice(at, at + count + 1).join('') === wanted),
  );
}

/** Optimal string alignment. */
function editsBetween(a: string, b: string): number {
  const rows: number[][] = [Array.from({ length: b.length + 1 }, (_, j) => j)];
  for (let i = 1; i <= a.length; i++) {
    rows[i] = [i];
    for (let j = 1; j <= b.length; j++) {
      const changed = a[i - 1] === b[j - 1] ? 0 : 1;
      let edits = Math.min(rows[i - 1][j] + 1, rows[i][j - 1] + 1, rows[i - 1][j - 1] + changed);
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1])
        edits = Math.min(edits, rows[i - 2][j - 2] + 1);
      rows[i][j] = edits;
    }
  }
  return rows[a.length][b.length];
}
