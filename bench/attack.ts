/**
 * What one peer can cost: each attack on a fresh process, which tells its longest turn of the event loop, time, memory and
 * descriptors. The source is played here: it claims what it likes, and sends no page.
 *
 *     description of 16 MiB    of shapes of which JSON.parse() makes up to 30 times its size; and the same in a file
 *     4 TiB of RAM             two bitmaps of 128 MiB, a file of 4 TiB
 *     4096 blocks              each a range of the same file, on each channel
 *     2000 connections         that say nothing
 *     zstd                     packets of as many blocks as may be, one byte each, and a window of 32 MiB on each channel;
 *                              and a window above that
 */
import { once } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Address } from '../src/index.js';
import { DEFAULT_BOUNDS } from '../src/stream/bounds.js';
import { encodeConfiguration, encodeFileHeader } from '../src/stream/configuration.js';
import {
  encodeEos,
  encodeFlush,
  encodeFooter,
  encodeMemSize,
  encodeSection,
} from '../src/stream/main-writer.js';
import { MULTIFD_FLAG_ZSTD, MULTIFD_PACKET_BYTES } from '../src/wire/packet.js';
import type { AttackCost, AttackStart } from './support/attack-endpoint.js';
import { Child } from './support/child.js';
import { row, type Row } from './support/measure.js';

const MIB = 2 ** 20;
const ROUNDS = 3;
const PAGE = 4096;
/** Milliseconds: what nobody notices. */
const TURN_CEILING = 50;
/** A device's section without a state, and its footer. */
const DEVICE = Buffer.from('04' + '00000000' + '0178' + '00000000' + '00000001' + '7e00000000', 'hex');
const MAGIC = 0x11223344;
const HELLO_BYTES = 64;
const PAGES = 128;
const PACKET_BYTES = 320 + 8 * PAGES;
/** One for each 256 bytes of a packet's pages, and 16: src/methods/zstd-frame.ts. */
const ZSTD_BLOCKS = 16 + MULTIFD_PACKET_BYTES / 256;
const ZSTD_PACKETS = 64;
const NOTHING = Buffer.alloc(0);

interface Claims {
  blocks?: number;
  /** Of each block. */
  size?: number;
  description?: string;
}

interface Attack {
  claims?: Claims;
  channels?: number;
  /** Windows' logarithm of the packets with pages that each channel brings. */
  zstdWindowLog?: number;
  /** Connections that say nothing. */
  silent?: number;
  /** A capture with this description is described, and nothing is received. */
  inFile?: string;
  /** Seconds, MiB, and descriptors, where they are what the attack is aimed at. */
  ceilings: { seconds?: number; memory?: number; descriptors?: number };
}

/** As long as a description may be. */
function filled(begin: string, unit: string, end: string): string {
  const count = Math.floor((DEFAULT_BOUNDS.maxDescription - begin.length - end.length) / unit.length);
  return begin + unit.repeat(count) + end;
}

const DEEP = DEFAULT_BOUNDS.maxDescription / 2 - 100;
const DEVICES = filled('{"devices": [', '{"name":"","instance_id":0},', '{"name":"","instance_id":0}]}');
const SHAPES: Record<string, string> = {
  arrays: filled('{"a": [', '[],', '0], "devices": []}'),
  devices: DEVICES,
  keys: filled('{', '"abcdefg":0,', '"devices": []}'),
  'nested arrays': `{"a": ${'['.repeat(DEEP)}${']'.repeat(DEEP)}, "devices": []}`,
};

const ATTACKS: Record<string, Attack> = {
  ...Object.fromEntries(
    Object.entries(SHAPES).map(([shape, description]) => [
      `description of 16 MiB, ${shape}`,
      { claims: { description }, ceilings: { seconds: 5, memory: 100 } },
    ]),
  ),
  // Half a million devices are what it says, and what is told.
  'description of 16 MiB, devices, in a file': { inFile: DEVICES, ceilings: { seconds: 5, memory: 200 } },
  '4 TiB of RAM': { claims: { size: DEFAULT_BOUNDS.maxRam }, ceilings: { seconds: 5, memory: 64 } },
  '4096 blocks': { claims: { blocks: 4096 }, ceilings: { seconds: 5, memory: 100, descriptors: 32 } },
  'zstd, 64 packets of 2064 blocks': {
    claims: { size: MULTIFD_PACKET_BYTES },
    zstdWindowLog: 25,
    ceilings: { seconds: 10, memory: 200 },
  },
  'zstd, a window of 128 MiB': {
    claims: { size: MULTIFD_PACKET_BYTES },
    zstdWindowLog: 27,
    ceilings: { seconds: 5, memory: 64 },
  },
  '2000 silent connections': { claims: {}, silent: 2000, ceilings: { descriptors: 300, memory: 64 } },
};

export async function* run(): AsyncGenerator<Row, void, undefined> {
  for (const [name, attack] of Object.entries(ATTACKS)) {
    const costs: AttackCost[] = [];
    for (let round = 0; round < ROUNDS; round++) costs.push(await costOf(attack));
    const of = (key: keyof Omit<AttackCost, 'outcome'>, unit = 1): number[] =>
      costs.map((cost) => cost[key] / unit);
    const { seconds, memory, descriptors } = attack.ceilings;
    const ceiling = (value: number | undefined): object => (value === undefined ? {} : { ceiling: value });
    const outcome = `${name} (${costs[0].outcome})`;
    yield row('attack', `${outcome}: longest turn of the event loop`, 'ms', of('turnMs'), {
      ceiling: TURN_CEILING,
    });
    yield row('attack', `${outcome}: time`, 's', of('seconds'), ceiling(seconds));
    yield row('attack', `${outcome}: memory`, 'MiB', of('memoryBytes', MIB), ceiling(memory));
    yield row('attack', `${outcome}: descriptors`, '', of('descriptors'), ceiling(descriptors));
  }
}

async function costOf({
  claims = {},
  channels = 2,
  silent = 0,
  inFile,
  zstdWindowLog,
}: Attack): Promise<AttackCost> {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'multifd-attack-file-'));
  const file = path.join(folder, 'main.bin');
  try {
    if (inFile !== undefined) fs.writeFileSync(file, mainStream({ description: inFile }));
    const start: AttackStart = {
      channels,
      compression: zstdWindowLog === undefined ? 'none' : 'zstd',
      ...(inFile !== undefined && { file }),
    };
    const child = new Child('./attack-endpoint.js', start);
    await play(await addressOf(child), {}, channels);
    if (inFile === undefined) {
      const address = await addressOf(child);
      const sockets = await connectMany(address, silent);
      // They are to be there, and to be dropped.
      if (silent > 0) await sleep(500);
      await play(address, claims, channels, zstdWindowLog);
      for (const socket of sockets) socket.destroy();
    }
    const cost = await child.next<AttackCost>();
    await child.end();
    return cost;
  } finally {
    fs.rmSync(folder, { recursive: true, force: true });
  }
}

async function addressOf(child: Child): Promise<Address> {
  return (await child.next<{ address: Address }>()).address;
}

async function connectMany(address: Address, count: number): Promise<net.Socket[]> {
  const sockets: net.Socket[] = [];
  for (let i = 0; i < count; i++) {
    const socket = connect(address);
    await Promise.race([once(socket, 'connect'), once(socket, 'close')]);
    sockets.push(socket);
  }
  return sockets;
}

function connect(address: Address): net.Socket {
  return net.connect(address as net.NetConnectOpts).on('error', () => {});
}

/** Main stream and channels, to the end of what they have to say. */
async function play(
  address: Address,
  claims: Claims,
  channels: number,
  zstdWindowLog?: number,
): Promise<void> {
  const pages = zstdWindowLog === undefined ? NOTHING : tinyBlocks(zstdWindowLog);
  const sockets = [mainStream(claims), ...channelStreams(channels, pages)].map((bytes) => {
    const socket = connect(address).resume();
    socket.end(bytes);
    return socket;
  });
  await Promise.all(sockets.map((socket) => new Promise((resolve) => socket.once('close', resolve))));
}

function mainStream({ blocks = 1, size = PAGE, description = '{"devices": []}' }: Claims): Buffer {
  const list = Array.from({ length: blocks }, (_, i) => ({ name: `block${i}`, usedLength: size }));
  const end = [encodeFlush(), encodeEos(), encodeFooter(2)];
  const json = Buffer.from(description);
  const head = Buffer.from('000600000000', 'hex');
  head.writeUInt32BE(json.length, 2);
  return Buffer.concat([
    encodeFileHeader(),
    encodeConfiguration({ machine: 'pc-i440fx-10.0' }),
    ...[encodeSection('start', 2), encodeMemSize(list), ...end],
    ...[encodeSection('end', 2), ...end],
    ...[DEVICE, head, json],
  ]);
}

/** Packets of one zstd frame: in each as many blocks of a byte as are taken, and four that make up its pages. */
function tinyBlocks(windowLog: number): Buffer {
  const tiny = ZSTD_BLOCKS - 4;
  const block = (bytes: number): Buffer => {
    const rle = Buffer.alloc(4, 0x5a);
    rle.writeUIntLE((bytes << 3) | 2, 0, 3);
    return rle;
  };
  const rest = MULTIFD_PACKET_BYTES - tiny;
  const large = [2 ** 17, 2 ** 17, 2 ** 17, rest - 3 * 2 ** 17].map(block);
  const blocks = Buffer.concat([...Array.from({ length: tiny }, () => block(1)), ...large]);
  const begin = Buffer.from([0x28, 0xb5, 0x2f, 0xfd, 0, (windowLog - 10) << 3]);
  const packets = Array.from({ length: ZSTD_PACKETS }, (_, i) => {
    const payload = i === 0 ? Buffer.concat([begin, blocks]) : blocks;
    const header = Buffer.alloc(PACKET_BYTES);
    for (const [at, word] of [MAGIC, 1, MULTIFD_FLAG_ZSTD, PAGES, PAGES, payload.length].entries()) {
      header.writeUInt32BE(word, 4 * at);
    }
    header.write('block0', 64);
    for (let page = 0; page < PAGES; page++) header.writeBigUInt64BE(BigInt(PAGE * page), 320 + 8 * page);
    return Buffer.concat([header, payload]);
  });
  return Buffer.concat(packets);
}

/** Hello, and a SYNC for each of the two sync points; in between the pages, if there are any. */
function channelStreams(count: number, pages: Buffer): Buffer[] {
  return Array.from({ length: count }, (_, id) => {
    const bytes = Buffer.alloc(HELLO_BYTES + 2 * PACKET_BYTES);
    for (const at of [0, HELLO_BYTES, HELLO_BYTES + PACKET_BYTES]) {
      bytes.writeUInt32BE(MAGIC, at);
      bytes.writeUInt32BE(1, at + 4);
      if (at > 0) bytes.writeUInt32BE(1, at + 8);
    }
    bytes[24] = id;
    const first = HELLO_BYTES + PACKET_BYTES;
    return Buffer.concat([bytes.subarray(0, first), pages, bytes.subarray(first)]);
  });
}
