/** What several fuzzers begin with: real captures, small enough to be run thousands of times, cut into fields. */
import { ByteReader } from '../../src/stream/byte-reader.js';
import { readMainStream } from '../../src/stream/main-stream.js';
import type { MainItem } from '../../src/stream/records.js';
import { chunked, readMain } from '../stream/support.js';
import { readCapture } from '../support/reference-decoder.js';
import { type Seed, bytes, cut, u32 } from './contract.js';

export const PAGE = 4096;
export const HELLO_FIELDS = ['+4', '+4', '=16', '+1', '=7', '=16', '=16'];
const HEADER_FIELDS = ['+4', '+4', '+4', '+4', '+4', '+4', '+8', '+4', '=28', '=256'];
const MOST_PAGES = 128;
export const HEADER_BYTES = 320 + 8 * MOST_PAGES;
/** Of a tail: a section or two, which are long enough. */
const TAIL_BYTES = 600;

/** A RAM packet's header in its fields. */
export function cutHeader(header: Buffer): Seed {
  return cut(header, [...HEADER_FIELDS, ...Array<string>(MOST_PAGES).fill('+8')]);
}

/** Hello and packets of a channel of method none, up to `limit` bytes. */
export function channelSeed(capture: string, channel: number, limit: number): Seed {
  const all = readCapture(`${capture}.ch${channel}`);
  const seed = cut(all.subarray(0, 64), HELLO_FIELDS);
  seed.push(...packetsOf(all.subarray(64), limit));
  return seed;
}

/** Packets with their payloads, as long as whole ones fit. */
export function packetsOf(all: Buffer, limit: number): Seed {
  const seed: Seed = [];
  for (let at = 0; at + HEADER_BYTES <= all.length;) {
    const header = all.subarray(at, at + HEADER_BYTES);
    const normal = header.readUInt32BE(16);
    const payload =
      normal === 0 ? 0 : (header.readUInt32BE(8) & 0x3e) === 0 ? normal * PAGE : header.readUInt32BE(20);
    const end = at + HEADER_BYTES + payload;
    if (end > limit) break;
    seed.push(...cutHeader(header));
    if (payload > 0) seed.push(bytes(all.subarray(at + HEADER_BYTES, end)));
    at = end;
  }
  return seed;
}

/** Fields of an item of the main stream, by its kind. */
function cutItem(item: MainItem): Seed {
  const { kind, raw } = item;
  switch (kind) {
    case 'header':
      return cut(raw, ['+4', '+4']);
    case 'configuration':
      return cut(raw, ['+1', '+4', `=${raw.readUInt32BE(1)}`, ...words(raw.length)]);
    case 'command':
      return cut(raw, ['+1', '+2', '+2']);
    case 'section':
      return cut(raw, ['+1', '+4', '+1', '=3', '+4', '+4']);
    case 'footer':
      return cut(raw, ['+1', '+4']);
    case 'mem-size': {
      const fields = ['+8'];
      for (let at = 8; at < raw.length;) {
        const name = raw[at];
        fields.push('+1', `=${name}`, '+8');
        at += 1 + name + 8;
      }
      return cut(raw, fields);
    }
    case 'zero':
    case 'page':
    case 'flush':
    case 'eos':
      return cut(raw, ['+8', '+1']);
    default:
      return cut(raw, words(raw.length));
  }
}

function words(length: number): string[] {
  return Array<string>(Math.min(Math.floor(length / 4), 40)).fill('+4');
}

/** A real main stream, its first items and its end: records in the middle are all alike. */
export async function mainSeed(capture: string): Promise<Seed> {
  return itemsSeed(readMain(capture));
}

export async function itemsSeed(
  stream: Buffer,
  options: Parameters<typeof readMainStream>[1] = {},
): Promise<Seed> {
  const seed: Seed = [];
  let records = 0;
  for await (const item of readMainStream(new ByteReader(chunked(stream)), options)) {
    if (item.kind === 'tail') {
      if (seed.length > 0) seed.push(...tailSeed(item.raw));
      break;
    }
    records = item.kind === 'zero' || item.kind === 'page' ? records + 1 : 0;
    if (records > 3) continue;
    seed.push(...cutItem(item));
  }
  return seed;
}

/** The begin of a tail, EOF, and a description that says so: of one device, whose bytes are those. */
function tailSeed(tail: Buffer): Seed {
  const json = Buffer.from(
    '{"page_size": 4096, "devices": [{"name": "timer", "instance_id": 0, "size": 16}]}',
  );
  return [
    ...cut(tail.subarray(0, TAIL_BYTES), ['+1', '+4', '+1', `=${tail[5]}`, '+4', '+4', ...words(40)]),
    bytes(Buffer.of(0x7e, 0, 0, 0, 2)),
    bytes(Buffer.of(0x00)),
    bytes(Buffer.of(0x06)),
    u32(json.length),
    bytes(json),
  ];
}
