/**
 * A listing of machine code into bytes: what the demo's guest is written in, so that nothing has to be downloaded or built for it.
 *
 *     loop:   bb =START       ; mov ebx, START      a line: label, bytes in hex, comment
 *             74 .loop        ; jz                  .label   distance to it, one byte
 *             e8 ~print       ; call                ~label   the same, four bytes
 *             a1 @ticks       ; mov eax, [ticks]    @label   its address, four bytes
 *             "at "                                 text
 *
 * `=NAME` is a constant, four bytes, little-endian as all others. A label is as far as the listing has come, from `origin` on.
 */

const TOKEN = /"[^"]*"|\S+/g;

/** @throws Error where the listing is wrong: it is the program's own */
export function assemble(listing: string, origin: number, constants: Record<string, number> = {}): Buffer {
  const bytes: number[] = [];
  const labels = new Map<string, number>();
  const patches: { at: number; length: 1 | 4; label: string; isAbsolute: boolean }[] = [];
  const put = (value: number, length: number): void => {
    for (let i = 0; i < length; i++) bytes.push((value >>> (8 * i)) & 0xff);
  };
  for (const line of listing.split('\n')) {
    for (const token of line.replace(/;.*/, '').match(TOKEN) ?? []) {
      const name = token.slice(1);
      if (token.endsWith(':')) labels.set(token.slice(0, -1), origin + bytes.length);
      else if (token.startsWith('"')) bytes.push(...Buffer.from(token.slice(1, -1), 'latin1'));
      else if (token.startsWith('=')) put(wanted(constants[name], token), 4);
      else if (/^[.~@]/.test(token)) {
        const length = token.startsWith('.') ? 1 : 4;
        patches.push({ at: bytes.length, length, label: name, isAbsolute: token.startsWith('@') });
        put(0, length);
      } else if (/^[0-9a-f]{2}$/.test(token)) bytes.push(parseInt(token, 16));
      else throw new Error(`listing: ${JSON.stringify(token)}`);
    }
  }
  const code = Buffer.from(bytes);
  for (const { at, length, label, isAbsolute } of patches) {
    const target = wanted(labels.get(label), label);
    // A distance counts from the end of its instruction, which it ends.
    const value = isAbsolute ? target : target - (origin + at + length);
    if (length === 1) code.writeInt8(value, at);
    else code.writeInt32LE(value | 0, at);
  }
  return code;
}

function wanted(value: number | undefined, name: string): number {
  if (value === undefined) throw new Error(`listing: nothing is called ${name}`);
  return value;
}
