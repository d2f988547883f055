/**
 * The return path: messages from the destination to the source, in the reverse direction of the main connection. Only
 * there when the source has capability `return-path`, and begun by its command OPEN_RETURN_PATH. All integers
 * big-endian.
 *
 *     u16 type, u16 n, n bytes
 *
 *     type                  n
 *       1  SHUT             4   u32 status: 0 all is loaded, else the load failed
 *       2  PONG             4   u32 as in the PING
 *       3  REQ_PAGES_ID         postcopy only, as 4 to 6: src/postcopy/answers.ts
 *       4  REQ_PAGES
 *       5  RECV_BITMAP
 *       6  RESUME_ACK
 *       7  SWITCHOVER_ACK   0   with capability switchover-ack
 *  0x4d46  (of ours)       20   carries a broken migration on: resume-section.ts
 *  0x4d47  (of ours)
 *
 *     source                                          destination
 *     OPEN_RETURN_PATH, PING 1       ---->
 *                                    <----            PONG 1
 *     RAM, devices, VM description   ---->
 *     (waits)                        <----            SHUT 0, when all is loaded
 *     completed
 *
 * A receiver of ours encodes PONG and SHUT; a sender of ours decodes.
 */
import type { ByteReader } from './byte-reader.js';
import { refusal } from './codes.js';
import { encodeU32 } from './configuration.js';
import { COMMAND_PING, type CommandItem } from './records.js';

export const RP_SHUT = 1;
export const RP_PONG = 2;
export const RP_REQ_PAGES_ID = 3;
export const RP_REQ_PAGES = 4;
export const RP_RECV_BITMAP = 5;
export const RP_RESUME_ACK = 6;
export const RP_SWITCHOVER_ACK = 7;
/** "MF": far from QEMU's, which are counted on from 1. */
export const RP_RESUME = 0x4d46;
export const RP_RESUME_PAGES = 0x4d47;
const RESUME_BYTES = 20;
/** Its words are of the destination's cutting, a part of which is a name. */
const MAX_RESUME_PAGES_BYTES = 2 ** 15;
/** By choice: no message of the table has more than a block's name and 13 bytes. */
const MAX_MESSAGE_BYTES = 512;
const HEADER_BYTES = 4;

/** `raw` is the whole message, for who passes it on. */
export type ReturnPathMessage = { raw: Buffer } & (
  | { kind: 'shut'; status: number }
  | { kind: 'pong'; value: number }
  | { kind: 'switchover-ack' }
  | { kind: 'resume'; completed: number; key: Buffer }
  | { kind: 'resume-pages'; data: Buffer }
  /** Of a type that this library does nothing with. */
  | { kind: 'other'; type: number; data: Buffer }
);

/** That nothing here keeps the source from switching over. */
export function encodeSwitchoverAck(): Buffer {
  const bytes = Buffer.alloc(HEADER_BYTES);
  bytes.writeUInt16BE(RP_SWITCHOVER_ACK, 0);
  return bytes;
}

/** @param status 0 for success */
export function encodeShut(status: number): Buffer {
  return encodeMessage(RP_SHUT, encodeU32(status));
}

export function encodePong(value: number): Buffer {
  return encodeMessage(RP_PONG, encodeU32(value));
}

/** The value of a PING, which its PONG repeats; undefined for other commands. */
export function pingValue(item: CommandItem): number | undefined {
  return item.command === COMMAND_PING ? item.data.readUInt32BE(0) : undefined;
}

/**
 * The messages, to the end of the connection, which may come between two messages.
 *
 * @throws MultifdError STREAM_ERRORS.returnPath, .eof
 */
export async function* readReturnPath(
  reader: ByteReader,
): AsyncGenerator<ReturnPathMessage, void, undefined> {
  while ((await reader.peek(1)).length > 0) {
    const where = `${reader.name} at byte ${reader.position}`;
    const header = await reader.exactly(HEADER_BYTES, "a message's header");
    const type = header.readUInt16BE(0);
    const length = header.readUInt16BE(2);
    const expected = { [RP_SHUT]: 4, [RP_PONG]: 4, [RP_SWITCHOVER_ACK]: 0, [RP_RESUME]: RESUME_BYTES }[type];
    const maxBytes = type === RP_RESUME_PAGES ? MAX_RESUME_PAGES_BYTES : MAX_MESSAGE_BYTES;
    if (length > maxBytes || (expected !== undefined && length !== expected)) {
      const what = `${where}: bytes of message ${type}`;
      throw refusal('returnPath', what, length, expected ?? `at most ${maxBytes}`);
    }
    if (type === 0) throw refusal('returnPath', `${where}: message`, `type ${type}`, 'a type from 1 on');
    const data = await reader.exactly(length, 'a message');
    const raw = Buffer.concat([header, data]);
    if (type === RP_SHUT) yield { kind: 'shut', status: data.readUInt32BE(0), raw };
    else if (type === RP_PONG) yield { kind: 'pong', value: data.readUInt32BE(0), raw };
    else if (type === RP_SWITCHOVER_ACK) yield { kind: 'switchover-ack', raw };
    else if (type === RP_RESUME_PAGES) yield { kind: 'resume-pages', data, raw };
    else if (type === RP_RESUME)
      yield { kind: 'resume', completed: data.readUInt32BE(0), key: Buffer.from(data.subarray(4)), raw };
    else yield { kind: 'other', type, data, raw };
  }
}

export function encodeMessage(type: number, data: Buffer): Buffer {
  const header = Buffer.allocUnsafe(HEADER_BYTES);
  header.writeUInt16BE(type, 0);
  header.writeUInt16BE(data.length, 2);
  return Buffer.concat([header, data]);
}
