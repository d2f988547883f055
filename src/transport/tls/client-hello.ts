/**
 * Which versions of TLS a client offers, read off its first record (RFC 8446, section 4.1.2).
 *
 * For a server whose tickets cannot be stopped (session-tickets.ts): TLS 1.2 sends nothing behind the handshake, so it is
 * taken from whoever offers it.
 *
 *     record  16 03 xx LENGTH(2)   handshake  01 LENGTH(3)   03 03 RANDOM(32)
 *     session id: 1 + n   cipher suites: 2 + n   compression: 1 + n   extensions: 2 + n, each TYPE(2) LENGTH(2) data
 */
const SUPPORTED_VERSIONS = 43;
const TLS_1_2 = 0x0303;
const SESSION_ID_AT = 5 + 4 + 2 + 32;

/** @param record whole; of a hello that cannot be read the answer is false */
export function offersTls12(record: Buffer): boolean {
  try {
    let at = SESSION_ID_AT;
    at += 1 + record.readUInt8(at);
    at += 2 + record.readUInt16BE(at);
    at += 1 + record.readUInt8(at);
    // Without extensions there is nothing newer.
    if (at === record.length) return true;
    const end = at + 2 + record.readUInt16BE(at);
    for (at += 2; at < end;) {
      const type = record.readUInt16BE(at);
      const length = record.readUInt16BE(at + 2);
      if (type === SUPPORTED_VERSIONS) {
        for (let i = at + 5; i < at + 4 + length; i += 2) if (record.readUInt16BE(i) === TLS_1_2) return true;
        return false;
      }
      at += 4 + length;
    }
    return true;
  } catch {
    return false;
  }
}
