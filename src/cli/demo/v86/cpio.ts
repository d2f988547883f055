/**
 * A cpio archive as Linux unpacks one at its start (initramfs), format "newc":
 *
 *     070701 and 13 numbers of 8 hex digits | name, 0 | to a multiple of 4 | the file's bytes | to a multiple of 4 | the next one
 *     ...
 *     TRAILER!!!
 *
 * It says who owns a file and what a device's numbers are, so that nobody has to be root to make one.
 */

export interface CpioEntry {
  name: string;
  /** Type and permissions, as stat() has them. */
  mode: number;
  data?: Buffer;
  /** Of a device. */
  device?: { major: number; minor: number };
}

const MAGIC = '070701';
const HEADER_BYTES = 110;
const TRAILER = 'TRAILER!!!';

export function cpioArchive(entries: readonly CpioEntry[]): Buffer {
  const pieces = entries.map((entry, i) => encodeEntry(entry, i + 1));
  return Buffer.concat([...pieces, encodeEntry({ name: TRAILER, mode: 0 }, 0)]);
}

function encodeEntry({ name, mode, data = Buffer.alloc(0), device }: CpioEntry, inode: number): Buffer {
  const nameBytes = Buffer.byteLength(name) + 1;
  const links = 1;
  const fields = [inode, mode, 0, 0, links, 0, data.length, 0, 0, device?.major ?? 0, device?.minor ?? 0];
  const numbers = [...fields, nameBytes, 0].map((field) => field.toString(16).padStart(8, '0'));
  const head = Buffer.alloc(aligned(HEADER_BYTES + nameBytes));
  head.write(MAGIC + numbers.join('') + name);
  const body = Buffer.alloc(aligned(data.length));
  data.copy(body);
  return Buffer.concat([head, body]);
}

function aligned(bytes: number): number {
  return Math.ceil(bytes / 4) * 4;
}
