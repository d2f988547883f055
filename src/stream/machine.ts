/**
 * What the machine type says about the stream. QEMU ties these to the machine type and not to the program, so that a
 * new QEMU that runs an old machine type speaks as the old one did; both sides have the same machine type.
 *
 *     rule                   machine type
 *     marker                 <= 8.0 each EOS of ram, >= 8.1 MULTIFD_FLUSH
 *     zero-page-detection    <= 8.2 legacy, >= 9.0 multifd
 *     SWITCHOVER_START       >= 10.0
 *     TLS bye on channels    expected with >= 10.0
 *
 * Names are `pc-i440fx-7.2`, `pc-q35-10.0`, `virt-9.2`, `s390-ccw-virtio-9.2`. A name without such a version (boards
 * that never had versions, distributions' names) has no compatibility rules in QEMU, so the program's own hold: those
 * of a new one for the marker. Where a choice works with every version, that is taken: ZERO records on the main stream,
 * and no SWITCHOVER_START.
 */
import type { Configuration } from './configuration.js';
import type { MarkerMode } from './records.js';

/** Of all targets that do not announce theirs and have multifd in practice, but for those of PAGE_SIZES. */
export const DEFAULT_PAGE_SIZE = 4096;

/**
 * Nothing early on the wire tells the page size of a target that has only one. Its machine types do, which are the
 * target's own: alpha, sparc64, or1k, tricore (as query-migrate of QEMU 10.0 says it). 4 KiB are named where they are
 * sure, so that a wrong option is refused at the configuration and not by a packet that makes no sense.
 */
const PAGE_SIZES: [machines: RegExp, pageSize: number][] = [
  [/^(clipper|sun4u|sun4v|niagara|or1k-sim)$/, 8192],
  [/^KIT_AURIX_TC277_TRB$/, 16384],
  [/^(pc-(i440fx|q35)-.*|pc|q35|isapc|microvm|s390-ccw-virtio-.*|pseries-.*)$/, 4096],
];

/** The target page size that the configuration tells, by its page bits or the machine's name; undefined if it does not. */
export function toldPageSize(configuration: Configuration | undefined): number | undefined {
  if (configuration?.targetPageBits !== undefined) return 2 ** configuration.targetPageBits;
  return PAGE_SIZES.find(([machines]) => machines.test(configuration?.machine ?? ''))?.[1];
}

export interface QemuVersion {
  major: number;
  minor: number;
}

export interface MachineRules {
  /** By what version the rules were chosen; undefined when neither the name nor a peer's version tells one. */
  version: QemuVersion | undefined;
  marker: MarkerMode;
  /** QEMU's default `zero-page-detection`. */
  zeroPageDetection: 'legacy' | 'multifd';
  switchoverStart: boolean;
  /** Must each TLS channel end with a bye? */
  tlsBye: boolean;
}

/** The version in a machine type's name; undefined without one. */
export function machineVersion(name: string): QemuVersion | undefined {
  // A vendor's suffix may follow: pc-q35-9.0+pve0.
  const match = /-(\d{1,3})\.(\d{1,3})(?:[+-].*)?$/.exec(name);
  return match === null ? undefined : { major: Number(match[1]), minor: Number(match[2]) };
}

/** A program's version, `7.2` or `10.0.2`; undefined if it is none. */
export function parseQemuVersion(text: string): QemuVersion | undefined {
  const match = /^(\d{1,3})\.(\d{1,3})(?:\.\d{1,3})?$/.exec(text);
  return match === null ? undefined : { major: Number(match[1]), minor: Number(match[2]) };
}

export function isAtLeast(version: QemuVersion, major: number, minor: number): boolean {
  return version.major > major || (version.major === major && version.minor >= minor);
}

/**
 * @param machine the name in the configuration; undefined when there is none
 * @param peer the other program's version, where it is known; an older program than the machine type asks for wins
 */
export function machineRules(machine: string | undefined, peer?: QemuVersion): MachineRules {
  const named = machine === undefined ? undefined : machineVersion(machine);
  const peerIsOlder = named !== undefined && peer !== undefined && !isAtLeast(peer, named.major, named.minor);
  const version = named === undefined || peerIsOlder ? peer : named;
  const from = (major: number, minor: number, unknown: boolean): boolean =>
    version === undefined ? unknown : isAtLeast(version, major, minor);
  return {
    version,
    marker: from(8, 1, true) ? 'flush' : 'eos',
    zeroPageDetection: from(9, 0, false) ? 'multifd' : 'legacy',
    switchoverStart: from(10, 0, false),
    tlsBye: from(10, 0, false),
  };
}
