/**
 * keys.psk, the file of QEMU's tls-creds-psk and of GnuTLS's psktool:
 *
 *     qemu:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
 *     identity:key in hex; the first of two lines with the same identity counts
 */
import type { MultifdError } from '../../errors.js';
import { quote } from '../../printable.js';

export const PSK_SIZES = {
  /** A client of QEMU (GnuTLS 3.7) takes no shorter one. */
  minKeyBytes: 4,
  /** What TLS 1.3 of OpenSSL 3 takes; in TLS 1.2 it would be 512. */
  maxKeyBytes: 256,
  /** Of OpenSSL 3. */
  maxIdentityBytes: 256,
};

/**
 * @param where the file or the option, for messages; none of them prints a line
 * @param refuse makes the error
 */
export function parsePskFile(
  text: string,
  where: string,
  refuse: (text: string) => MultifdError,
): Map<string, Uint8Array> {
  const keys = new Map<string, Uint8Array>();
  for (const [index, line] of text.split(/\r?\n/).entries()) {
    if (line.trim() === '') continue;
    const place = `${where}, line ${index + 1}`;
    const colon = line.lastIndexOf(':');
    const identity = line.slice(0, colon);
    const bytes = Buffer.byteLength(identity);
    if (colon < 1 || bytes > PSK_SIZES.maxIdentityBytes) {
      const given = colon < 0 ? 'a line without a colon' : `an identity of ${bytes} bytes`;
      throw refuse(
        `${place}: given ${given}, allowed identity:hexkey, of 1 to ${PSK_SIZES.maxIdentityBytes} bytes`,
      );
    }
    const key = parsePskHex(line.slice(colon + 1), `${place}, identity ${quote(identity)}`, refuse);
    if (!keys.has(identity)) keys.set(identity, key);
  }
  if (keys.size === 0) throw refuse(`${where} has no line identity:hexkey`);
  return keys;
}

export function parsePskHex(hex: string, where: string, refuse: (text: string) => MultifdError): Uint8Array {
  const digits = hex.trim();
  const { minKeyBytes, maxKeyBytes } = PSK_SIZES;
  const allowed = `allowed ${minKeyBytes} to ${maxKeyBytes} bytes in hex, two digits each`;
  if (!/^[\da-f]*$/i.test(digits)) {
    throw refuse(`${where}: given a key with other characters than hex digits, ${allowed}`);
  }
  const bytes = digits.length / 2;
  if (!Number.isInteger(bytes) || bytes < minKeyBytes || bytes > maxKeyBytes) {
    throw refuse(`${where}: given a key of ${digits.length} hex digits, ${allowed}`);
  }
  return Uint8Array.from(Buffer.from(digits, 'hex'));
}
