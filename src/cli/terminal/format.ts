/**
 * Figures for people. Sizes are binary (KiB, MiB, GiB), rates decimal (MB/s, GB/s), as the README's tables have them.
 */
const SIZE_UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
const RATE_UNITS = ['B/s', 'kB/s', 'MB/s', 'GB/s', 'TB/s'];

/** `1.5 GiB` */
export function formatSize(bytes: number): string {
  return scaled(bytes, 1024, SIZE_UNITS);
}

/** `2.31 GB/s` */
export function formatRate(bytesPerSecond: number): string {
  return scaled(bytesPerSecond, 1000, RATE_UNITS);
}

function scaled(value: number, base: number, units: string[]): string {
  let unit = 0;
  while (value >= base && unit < units.length - 1) {
    value /= base;
    unit++;
  }
  const digits = Number.isInteger(value) || value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return `${value.toFixed(digits)} ${units[unit]}`;
}

/** `34.1 %`; a dash where there is nothing to have a share of. */
export function formatShare(part: number, whole: number): string {
  return whole === 0 ? '-' : `${((100 * part) / whole).toFixed(1)} %`;
}

/** `1.55:1`; a dash while nothing has travelled. */
export function formatRatio(bytes: number, wireBytes: number): string {
  return wireBytes === 0 ? '-' : `${(bytes / wireBytes).toFixed(2)}:1`;
}

/** `1:05`, `2:00:00`: hours, minutes and seconds to go. */
export function formatTimeLeft(seconds: number): string {
  if (!Number.isFinite(seconds)) return '-:--';
  const whole = Math.ceil(Math.max(0, seconds));
  const two = (value: number): string => String(value).padStart(2, '0');
  const hours = Math.floor(whole / 3600);
  const minutes = Math.floor(whole / 60) % 60;
  return hours > 0 ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}
