/**
 * Sizes as people type them: plain bytes, or a number with K, M, G or T (binary, as QEMU's own options take them), or with
 * KiB, MiB, GiB or TiB, as virsh's --bandwidth and libvirt's XML have them.
 */
const UNITS = { '': 1, K: 2 ** 10, M: 2 ** 20, G: 2 ** 30, T: 2 ** 40 };

/** `64M`, `1.5G`, `4096`: bytes, or undefined if the text is no whole number of bytes. */
export function parseSize(text: string): number | undefined {
  // As QEMU prints offsets: at most 52 bits.
  if (/^0x[\da-f]{1,13}$/i.test(text)) return Number(text);
  const match = /^(\d+(?:\.\d+)?)(?:([KMGT])(?:iB)?)?$/i.exec(text);
  if (match === null) return undefined;
  const bytes = Number(match[1]) * UNITS[(match[2] ?? '').toUpperCase() as keyof typeof UNITS];
  return Number.isSafeInteger(bytes) ? bytes : undefined;
}
