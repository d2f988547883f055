/**
 * What an input costs, by counts rather than clocks: the bytes of all Buffers that are made while it is parsed. Node's own
 * functions are replaced for that time, and Node itself (concat(), from()) calls them as well.
 */
const MAKERS = ['alloc', 'allocUnsafe', 'allocUnsafeSlow'] as const;

export class BufferMeter {
  /** Bytes asked for since begin(). */
  bytes = 0;
  // eslint-disable-next-line @typescript-eslint/unbound-method
  readonly #kept = MAKERS.map((name) => Buffer[name]);
  readonly #counting = this.#kept.map((make) => (size: number, ...rest: []) => {
    if (size > 0) this.bytes += size;
    return make.call(Buffer, size, ...rest);
  });

  begin(): void {
    this.bytes = 0;
    MAKERS.forEach((name, i) => (Buffer[name] = this.#counting[i]));
  }

  end(): void {
    MAKERS.forEach((name, i) => (Buffer[name] = this.#kept[i]));
  }
}

/** Processor time of this process so far, in milliseconds. */
export function cpuMs(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
}

/** The most memory that this process has had, in bytes. */
export function peakBytes(): number {
  return process.resourceUsage().maxRSS * 1024;
}
