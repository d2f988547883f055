/**
 * Do all rows of a table run? Those with 11.1 take as long as those with 10.0, more than four minutes together, so of the
 * long tables only a third runs with it, by a fixed rotation in which each value of each column has its turn.
 * `MULTIFD_TEST_ROWS=all` runs them all.
 */
export const ALL_ROWS = process.env.MULTIFD_TEST_ROWS !== 'third';
