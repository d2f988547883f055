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
 * the source wrote it. Descriptions of subsections that were there are kept. A value that is larger or deeper than any
 * QEMU's is left alone.
 */
import { type Configuration, NAME_CAPABILITIES, describedSubsections } from './configuration.js';
import { type Place, VmDescriptionReader } from './description-reader.js';

/** QEMU's has a few KiB, and one object for each of some fifty capabilities. It is parsed in one piece. */
const MAX_VALUE_BYTES = 65536;
/** Nesting is no deeper than there are brackets. */
const MAX_VALUE_BRACKETS = 1024;
const BLANKS = new Set(Buffer.from(' \t\n\r'));
const BRACKETS = new Set(Buffer.from('{['));

/**
 * @param json a whole description, as parseVmDescription() takes it
 * @param found where the value of its "configuration" lies: of who has read it. By default it is looked for
 * @returns `json` itself where it has a "configuration" that is no description of one
 */
export function describeConfiguration(
  json: Buffer,
  configuration: Configuration,
  found: Place | 'none' | 'other' = placeOf(json),
): Buffer {
  if (found === 'other') return json;
  if (found === 'none') {
    const made = Buffer.from(`"configuration": ${serialize(describe(configuration, []))}, `);
    const inside = json.indexOf('{') + 1;
    return Buffer.concat([json.subarray(0, inside), made, json.subarray(inside)]);
  }
  const { from, to } = found;
  if (to - from > MAX_VALUE_BYTES || bracketsOf(json, found) > MAX_VALUE_BRACKETS) return json;
  const given: unknown = JSON.parse(json.toString('utf8', from, to));
  if (typeof given !== 'object' || given === null || Array.isArray(given)) return json;
  const { subsections = [] } = given as { subsections?: unknown };
  const described = describe(configuration, Array.isArray(subsections) ? subsections : []);
  const value = Buffer.from(serialize({ ...described, ...given, subsections: described.subsections }));
  let behind = to;
  while (BLANKS.has(json[behind])) behind++;
  return Buffer.concat([json.subarray(0, from), value, json.subarray(behind)]);
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

function placeOf(json: Buffer): Place | 'none' | 'other' {
  const reader = new VmDescriptionReader(false);
  reader.push(json);
  return reader.configuration;
}

function bracketsOf(json: Buffer, { from, to }: Place): number {
  let count = 0;
  for (let at = from; at < to; at++) if (BRACKETS.has(json[at])) count++;
  return count;
}
