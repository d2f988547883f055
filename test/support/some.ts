/**
 * Long tables: `npm test` runs some rows of them, by a fixed rotation, and `npm run test:exhaustive`, which sets
 * MULTIFD_TEST_ROWS=all, runs all.
 */
export const ALL = process.env.MULTIFD_TEST_ROWS === 'all';

/** @returns all, or each `step`-th from `from` on */
export function some<T>(rows: readonly T[], step: number, from = 0): readonly T[] {
  return ALL ? rows : rows.filter((_, index) => index % step === from);
}
