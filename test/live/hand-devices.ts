/** A source made by hand that sends devices' state over the channels as it likes. */
import net from 'node:net';
import type { Test } from 'tap';
import { createSender, type Address } from '../../src/index.js';
import { PIECE_BYTES, PIECE_HEAD_BYTES, fillPieceHead } from '../../src/live/device-pieces.js';
import { encodeDeviceSection, encodeEnd, type DeviceState } from '../../src/live/device-sections.js';
import { MainStreamBuilder, encodeCommand } from '../../src/stream/main-writer.js';
import { COMMAND_OPEN_RETURN_PATH } from '../../src/stream/records.js';
import { MACHINE, PAGES, SIZE } from './scene.js';

const PAGE = 4096;

/** A DEVICE_STATE packet; what it has behind its head may be given in place of `bytes`. */
export interface Packet {
  index?: number;
  bytes?: number;
  payload?: Buffer;
  idstr?: string;
  instanceId?: number;
}

export interface Sent {
  packets?: readonly Packet[];
  /** Behind the SYNC of ram's END. */
  late?: readonly Packet[];
  /** What its sections say. */
  says?: readonly DeviceState[];
  /** In place of them, and of the end. */
  tail?: Buffer;
}

export const FULL = PIECE_BYTES;

/** Each piece has bytes of its own: its index, over and over. */
export function payloadOf({ index = 0, bytes = FULL, payload }: Packet): Buffer {
  if (payload !== undefined) return payload;
  const made = Buffer.alloc(PIECE_HEAD_BYTES + bytes, index + 1);
  fillPieceHead(made, index);
  return made;
}

export function cpu(bytes: number, pieces: number): DeviceState {
  return { device: { idstr: 'cpu', instanceId: 0, version: 1 }, data: { bytes, pieces } };
}

export function tailOf(says: readonly DeviceState[]): Buffer {
  const sections = says.flatMap((state, index) => encodeDeviceSection(1 + index, state));
  return Buffer.concat([...sections, encodeEnd(says, { machine: MACHINE }, PAGE)]);
}

function mainStream(): MainStreamBuilder {
  const parts = {
    configuration: { machine: MACHINE },
    blocks: [{ name: 'ram', usedLength: SIZE }],
    sectionId: 0,
    footers: true,
  };
  return new MainStreamBuilder(parts, { marker: 'flush', switchoverStart: true });
}

/** What a main stream begins with. */
export function setup(builder = mainStream()): Buffer {
  return builder.setup([encodeCommand(COMMAND_OPEN_RETURN_PATH)]);
}

/** @returns what comes back on its main stream */
export function handSource(t: Test, to: Address, sent: Sent): () => Buffer {
  const back: Buffer[] = [];
  const main = net.connect(to as net.NetConnectOpts);
  main.on('error', () => {}).on('data', (bytes) => back.push(bytes));
  t.teardown(() => main.destroy());
  const builder = mainStream();
  main.write(setup(builder));
  const here = new SharedArrayBuffer(SIZE);
  const send = async (): Promise<void> => {
    // One channel, which keeps the order; how much it may send is for the receiver to say.
    const sender = await createSender({
      address: to,
      channels: 1,
      blocks: [{ name: 'ram', memory: here }],
      deviceStateBytes: 2 ** 22,
    });
    t.teardown(() => sender.close());
    const queue = async (packets: readonly Packet[] = []): Promise<void> => {
      for (const packet of packets) {
        const { idstr = 'cpu', instanceId = 0 } = packet;
        await sender.queueDeviceState(idstr, instanceId, payloadOf(packet));
      }
    };
    await sender.sync();
    main.write(builder.endSection());
    main.write(builder.part());
    await sender.queueRange('ram', 0, PAGES * PAGE);
    await sender.sync();
    main.write(builder.endSection());
    await queue(sent.packets);
    main.write(builder.end());
    await sender.sync();
    if (sent.late !== undefined) {
      await queue(sent.late);
      await sender.flush();
    }
    main.write(builder.endSection());
    main.write(sent.tail ?? tailOf(sent.says ?? []));
  };
  // It may be refused at any step.
  void send().catch(() => {});
  return () => Buffer.concat(back);
}
