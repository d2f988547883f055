/** All fuzzers: whatever lies in parsers/, one a file. */
import { readdirSync } from 'node:fs';
import type { Fuzzer } from './contract.js';

const FOLDER = new URL('parsers/', import.meta.url);

export async function allFuzzers(): Promise<Fuzzer[]> {
  const files = readdirSync(FOLDER).filter((name) => name.endsWith('.js'));
  const fuzzers: Fuzzer[] = [];
  for (const file of files.sort()) {
    const { default: found } = (await import(new URL(file, FOLDER).href)) as { default: Fuzzer | Fuzzer[] };
    fuzzers.push(...[found].flat());
  }
  return fuzzers;
}
