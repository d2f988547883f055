/** The destination of a live migration as embedders see it; what it does is in incoming.ts. */
import type { ReceiverStats } from '../recv/receiver.js';
import type { Address } from '../transport/address.js';
import { checkDestination, type MigrationDestinationOptions } from './destination-options.js';
import { IncomingVm, type ArrivedMigration } from './incoming.js';
import { ResumableVm } from './resumable-destination.js';
import type { DestinationState } from './states.js';

export interface MigrationDestination extends AsyncDisposable {
  /** Where it listens, with the port that was bound. */
  readonly address: Address;
  readonly state: DestinationState;
  /** Settles when nothing is left of the migration: when start() has returned, else with the first error. */
  readonly done: Promise<ArrivedMigration>;
  /** Counters so far; also after the end. */
  stats(): ReceiverStats;
  /**
   * Ends it before the guest is started; the source's runs on. Resolves when nothing is left, and never rejects. It may come too
   * late: then the state is `completed`.
   */
  cancel(): Promise<void>;
}

/**
 * Listens. Resolves as soon as a source can connect; one source, once, or with option resumable until it has sent all.
 *
 * @throws MultifdError ERR_MULTIFD_OPTION, ERR_MULTIFD_BLOCK, ERR_MULTIFD_HOOK, ERR_MULTIFD_IO, ERR_MULTIFD_LISTEN,
 *   ERR_MULTIFD_TLS, ERR_MULTIFD_ABORTED
 */
export async function createMigrationDestination(
  options: MigrationDestinationOptions,
): Promise<MigrationDestination> {
  const checked = await checkDestination(options);
  const destination = checked.resumable ? new ResumableVm(checked) : new IncomingVm(checked);
  await destination.begin();
  const { life } = destination;
  return {
    get address() {
      return destination.address;
    },
    get state() {
      return life.state;
    },
    done: life.done,
    stats: () => destination.stats(),
    cancel: () => destination.cancel(),
    [Symbol.asyncDispose]: () => destination.cancel(),
  };
}
