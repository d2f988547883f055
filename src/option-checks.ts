/** What the checks of options have in common: one form of refusal, with what was given and what is allowed. */
import { didYouMean } from './did-you-mean.js';
import { MultifdError } from './errors.js';

/**
 * Refuses what is no option.
 *
 * @param of where they are, such as `in.`
 * @param beside options that have been taken out already: allowed, but not here
 * @throws MultifdError ERR_MULTIFD_OPTION
 */
export function checkKeys(
  options: unknown,
  allowed: readonly string[],
  of = '',
  beside: readonly string[] = [],
): void {
  if (options === null || typeof options !== 'object')
    throw wrong(of === '' ? 'options' : of.slice(0, -1), options, 'an object');
  for (const key of Object.keys(options)) {
    if (allowed.includes(key)) continue;
    const all = [...beside, ...allowed];
    const list = `one of ${all.join(', ')}${didYouMean(key, all)}`;
    throw wrong(`${of}${key}`, 'an unknown option', list);
  }
}

export function integer(
  name: string,
  value: number | undefined,
  byDefault: number | undefined,
  min: number,
  max: number,
  hint = '',
): number {
  if (value === undefined && byDefault !== undefined) return byDefault;
  if (!Number.isInteger(value) || (value as number) < min || (value as number) > max) {
    throw wrong(name, value, `an integer from ${min} to ${max}${hint}`);
  }
  return value as number;
}

export function oneOf<T extends string>(
  name: string,
  value: T | undefined,
  byDefault: T,
  allowed: readonly T[],
): T {
  if (value === undefined) return byDefault;
  if (!allowed.includes(value))
    throw wrong(name, value, `one of ${allowed.join(', ')}${didYouMean(value, allowed)}`);
  return value;
}

export function flag(name: string, value: unknown): boolean {
  if (value !== undefined && typeof value !== 'boolean') throw wrong(name, value, 'true or false');
  return value === true;
}

/** A file's name: text alone, so that every function that takes one takes the same. */
export function fileName(name: string, value: unknown): string {
  if (typeof value !== 'string' || value === '' || value.includes('\0')) throw wrong(name, value, 'a path');
  return value;
}

/** By what is used of it: one of another realm (a vm context, jest's) is no instance of this one's AbortSignal. */
export function abortSignal(signal: unknown): void {
  if (signal === undefined) return;
  const { aborted, addEventListener, removeEventListener } = (signal ?? {}) as Partial<AbortSignal>;
  const listens = typeof addEventListener === 'function' && typeof removeEventListener === 'function';
  if (!listens || typeof aborted !== 'boolean') throw wrong('signal', signal, 'an AbortSignal');
}

export function callback<T>(name: string, value: T): T {
  if (value !== undefined && typeof value !== 'function') throw wrong(name, value, 'a function');
  return value;
}

export function wrong(name: string, given: unknown, allowed: string): MultifdError {
  let text: string;
  if (typeof given === 'string') text = JSON.stringify(given);
  else if (typeof given === 'object' && given !== null) text = describeObject(given);
  else text = String(given);
  return new MultifdError('ERR_MULTIFD_OPTION', `option ${name}: given ${text}, allowed ${allowed}`);
}

function describeObject(given: object): string {
  try {
    return JSON.stringify(given).slice(0, 200);
  } catch {
    return 'an object';
  }
}
