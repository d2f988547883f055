/**
 * When a source is owed a SWITCHOVER_ACK. With capability switchover-ack (QEMU >= 8.1) it does not stop its guest before
 * it has one; the capability itself is not on the wire. Which rule holds goes by the machine type, whether the message is
 * known at all by the source's program:
 *
 *     machine type    program   with the capability   without it          `auto`
 *     <= 8.0          < 8.1     is not there          ACK: it fails       after the first SYNC, if pages_alloc in that
 *                     8.1 on    one                   bears one           is 0: the program is 9.2 or newer
 *     8.1 to 11.0     8.1 on    one                   bears one           at once
 *     >= 11.1                   none from here        ACK: it fails       no
 *     no version      any       not known             not known           no
 *
 * From machine type 11.1 on the source counts the devices that ask for one, and those are not for us to take (VFIO). The
 * gap of `auto` is a machine type before 8.1 under QEMU 8.1 to 9.1, whose packets are those of 7.2, and a machine type
 * without a version, with the capability on: there the option must say `always`. An ACK that is missing leaves the guest
 * running; so does one too many, but it ends the migration, also where nobody asked for the capability.
 */
import { didYouMean } from '../did-you-mean.js';
import { MultifdError } from '../errors.js';
import { isAtLeast, machineRules } from '../stream/machine.js';

export const SWITCHOVER_ACKS = ['auto', 'always', 'never'] as const;
export type SwitchoverAck = (typeof SWITCHOVER_ACKS)[number];

/** @throws MultifdError ERR_MULTIFD_OPTION */
export function checkSwitchoverAck(value: SwitchoverAck = 'auto'): SwitchoverAck {
  if (SWITCHOVER_ACKS.includes(value)) return value;
  throw new MultifdError(
    'ERR_MULTIFD_OPTION',
    `option switchoverAck: given ${JSON.stringify(value)}, allowed ${SWITCHOVER_ACKS.join(', ')}${didYouMean(value, SWITCHOVER_ACKS)}`,
  );
}

/** Of one source; says true once at the most. */
export class AckOwed {
  readonly #when: SwitchoverAck;
  #opened = false;
  #byProgram = false;

  constructor(when: SwitchoverAck) {
    this.#when = when;
  }

  /** At OPEN_RETURN_PATH, which a source that is resumed may send again. @param machine undefined if it was not told */
  atOpen(machine: string | undefined): boolean {
    if (this.#opened) return false;
    this.#opened = true;
    if (this.#when !== 'auto') return this.#when === 'always';
    const { version } = machineRules(machine);
    if (version === undefined || isAtLeast(version, 11, 1)) return false;
    this.#byProgram = !isAtLeast(version, 8, 1);
    return !this.#byProgram;
  }

  /** After each sync point. @param pagesAlloc of its SYNC packets */
  afterSync(pagesAlloc: number): boolean {
    const owed = this.#byProgram && pagesAlloc === 0;
    // The first SYNC tells for good.
    this.#byProgram = false;
    return owed;
  }
}
