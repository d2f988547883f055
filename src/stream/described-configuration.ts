/**
 * Makes a VM description say what the CONFIGURATION section before it holds. A mapped-ram file that is made of a socket
 * migration has the subsection `configuration/capabilities`, which its source did not send and so did not describe; and
 * sections have no lengths, so who reads a stream by its description (QEMU's scripts/analyze-migration.py) is lost at
 * the first byte behind the machine's name.
 *
 *     {"configuration": {"vmsd_name": "configuration", "version": 1, "fields": [len, name],
 *        "subsections": [configuration/target-page-bits, configuration/capabilities, configuration/uuid]}, ...
 *
 * Only the value of "configuration" is replaced, or put in where there is none (QEMU < 8.0); every other byte stays as
 * the source wrote it. Descriptions of subsections that were there are kept.
 */
import { type Configuration, NAME_CAPABILITIES, describedSubsections } from './configuration.js';

const KEY = Buffer.from('"configuration"');
const QUOTE = 0x22;
const COLON = 0x3a;
const COMMA = 0x2c;
const BACKSLASH = 0x5c;

/**
 * @param json a whole description, as parseVmDescription() takes it
 * @returns `json` itself where it has a "configuration" that is no description of one
 */
export function describeConfiguration(json: Buffer, configuration: Configuration): Buffer {
  const found = valueOf(json, KEY);
  if (found === undefined) {
    const made = Buffer.from(`"configuration": ${serialize(describe(configuration, []))}, `);
    const inside = json.indexOf('{') + 1;
    return Buffer.concat([json.subarray(0, inside), made, json.subarray(inside)]);
  }
  const given: unknown = JSON.parse(json.toString('utf8', found.from, found.to));
  if (typeof given !== 'object' || given === null || Array.isArray(given)) return json;
  const { subsections = [] } = given as { subsections?: unknown };
  const described = describe(configuration, Array.isArray(subsections) ? subsections : []);
  const value = Buffer.from(serialize({ ...described, ...given, subsections: described.subsections }));
  return Buffer.concat([json.subarray(0, found.from), value, json.subarray(found.to)]);
}

interface Described {
  vmsd_name: string;
  version: number;
  fields: object[];
  subsections: unknown[];
}

function describe(configuration: Configuration, given: readonly unknown[]): Described {
  return {
    vmsd_name: 'configuration',
    version: 1,
    fields: [
      { name: 'len', type: 'uint32', size: 4 },
      { name: 'name', type: 'buffer', size: Buffer.byteLength(configuration.machine, 'latin1') },
    ],
    subsections: describedSubsections(configuration).map((ours) => {
      // Of capabilities ours is right: there is one more of them than the source sent.
      const theirs = given.find((one) => (one as Partial<Described> | null)?.vmsd_name === ours.vmsd_name);
      return theirs === undefined || ours.vmsd_name === NAME_CAPABILITIES ? ours : theirs;
    }),
  };
}

/** As QEMU writes JSON, so that the description looks like one piece: a blank behind commas and colons. */
function serialize(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(serialize).join(', ')}]`;
  if (typeof value !== 'object' || value === null) return JSON.stringify(value);
  const pairs = Object.entries(value).map(([key, one]) => `${JSON.stringify(key)}: ${serialize(one)}`);
  return `{${pairs.join(', ')}}`;
}

/** Where the value of the object's own key lies; `json` is valid, and keys are not escaped. */
function valueOf(json: Buffer, key: Buffer): { from: number; to: number } | undefined {
  let depth = 0;
  let from: number | undefined;
  for (let at = 0; at < json.length; at++) {
    const byte = json[at];
    if (byte === QUOTE) {
      const end = endOfString(json, at);
      if (depth === 1 && from === undefined && json.subarray(at, end).equals(key)) {
        const colon = skipBlanks(json, end);
        if (json[colon] === COLON) from = skipBlanks(json, colon + 1);
      }
      if (from !== undefined && from > at) at = from - 1;
      else at = end - 1;
    } else if (byte === 0x7b || byte === 0x5b) depth++;
    else if (byte === 0x7d || byte === 0x5d) {
      depth--;
      if (depth === 0 && from !== undefined) return { from, to: at };
    } else if (byte === COMMA && depth === 1 && from !== undefined) return { from, to: at };
  }
  return undefined;
}

/** Behind the closing quote. */
function endOfString(json: Buffer, at: number): number {
  for (let i = at + 1; i < json.length; i++) {
    if (json[i] === BACKSLASH) i++;
    else if (json[i] === QUOTE) return i + 1;
  }
  return json.length;
}

function skipBlanks(json: Buffer, at: number): number {
  while (json[at] === 0x20 || (json[at] >= 0x09 && json[at] <= 0x0d)) at++;
  return at;
}
