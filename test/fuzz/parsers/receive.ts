/**
 * A whole migration into a file, from sockets to the rename: main stream and channels of a source, any of them changed. What
 * fails leaves nothing under the final name. An input is
 *
 *     u32 length of the main stream, u32 length of channel 0, main stream, channel 0, channel 1
 */
import { mkdirSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { type Address, MultifdError, receiveMigration } from '../../../src/index.js';
import { encodeConfiguration, encodeFileHeader } from '../../../src/stream/configuration.js';
import {
  encodeEos,
  encodeFlush,
  encodeFooter,
  encodeMemSize,
  encodeSection,
} from '../../../src/stream/main-writer.js';
import { helloBytes, packetBytes, syncBytes } from '../../support/raw-channel.js';
import { Fault, cut, u32, type Fuzzer, type Seed } from '../contract.js';
import { HELLO_FIELDS, PAGE, cutHeader, itemsSeed } from '../seeds.js';

const SYNCS = 2;

async function seed(): Promise<Seed> {
  const end = [encodeFlush(), encodeEos(), encodeFooter(2)];
  const json = Buffer.from('{"page_size": 4096, "devices": [{"name": "x", "instance_id": 0, "fields": []}]}');
  const main = await itemsSeed(
    Buffer.concat([
      encodeFileHeader(),
      encodeConfiguration({ machine: 'pc-i440fx-10.0' }),
      ...[encodeSection('start', 2), encodeMemSize([{ name: 'a', usedLength: 4 * PAGE }]), ...end],
      ...[encodeSection('end', 2), ...end],
      Buffer.from(
        `0400000000017800000000000000017e00000000${'00'}06${json.length.toString(16).padStart(8, '0')}`,
        'hex',
      ),
      json,
    ]),
  );
  const channels = [0, 1].map((id) => {
    const payload = Buffer.alloc(PAGE, 'a page ');
    const packet = packetBytes({ ramblock: 'a', normal: [id * PAGE], zero: [(2 + id) * PAGE], payload });
    const headers = [packet.subarray(0, -payload.length), ...Array<Buffer>(SYNCS).fill(syncBytes())];
    const [first, ...syncs] = headers.map(cutHeader);
    return [...cut(helloBytes({ id }), HELLO_FIELDS), ...first, ...cut(payload, []), ...syncs.flat()];
  });
  const length = (pieces: Seed): number => pieces.reduce((sum, { bytes }) => sum + bytes.length, 0);
  return [u32(length(main)), u32(length(channels[0])), ...main, ...channels.flat()];
}

const fuzzer: Fuzzer = {
  name: 'receive',
  what: 'a whole migration into a file: nothing under the final name unless all is well',
  runs: 3,
  most: { bytes: 2 ** 28, perByte: 100 },
  seeds: async () => [await seed()],
  open() {
    const folder = mkdtempSync(path.join(os.tmpdir(), 'multifd-fuzz-'));
    const socket = path.join(folder, 'socket');
    const kept = path.join(folder, 'out');
    return {
      async run(input) {
        rmSync(kept, { recursive: true, force: true });
        const out = path.join(kept, 'vm.mig');
        mkdirSync(kept);
        const sockets: net.Socket[] = [];
        try {
          let result!: Promise<unknown>;
          const address = await new Promise<Address>((resolve, reject) => {
            const limits = { connectTimeoutMs: 300, stallTimeoutMs: 500, acceptTimeoutMs: 2000 };
            result = receiveMigration({ address: { path: socket }, out, onListening: resolve, ...limits });
            result.catch(reject);
          });
          sockets.push(...play(address, input));
          await result;
          if (readdirSync(kept).join() !== 'vm.mig')
            throw new Fault(`beside the file there is ${readdirSync(kept).join()}`);
        } catch (error) {
          const left = readdirSync(kept);
          const isKept = left.join() === 'vm.mig.part' && error instanceof MultifdError;
          if (left.length > 0 && !isKept && !(error instanceof Fault))
            throw new Fault(`left behind: ${left.join()}: ${String(error)}`);
          throw error;
        } finally {
          for (const one of sockets) one.destroy();
        }
      },
      close: () => rmSync(folder, { recursive: true, force: true }),
    };
  },
};
export default fuzzer;

/** As a source does, each on a connection of its own, main last. */
function play(address: Address, input: Buffer): net.Socket[] {
  const head = Buffer.alloc(8);
  input.copy(head);
  const body = input.subarray(8);
  const ends = [head.readUInt32BE(0), head.readUInt32BE(0) + head.readUInt32BE(4), body.length];
  const [main, ...channels] = [0, 1, 2].map((i) => body.subarray(i === 0 ? 0 : ends[i - 1], ends[i]));
  return [...channels, main].map((bytes) => {
    const socket = net.connect(address as net.NetConnectOpts);
    socket.on('error', () => {}).resume();
    socket.end(bytes);
    return socket;
  });
}
