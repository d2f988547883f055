/** The options of createMigrationDestination(), checked before anything is listened on. */
import { callback, checkKeys, flag, integer, wrong } from '../option-checks.js';
import {
  RECEIVER_KEYS,
  checkReceiverOptions,
  checkTls,
  type CheckedReceiverOptions,
  type ReceiverOptions,
} from '../options.js';
import { makeBlocks, type RAMBlock, type RAMBlockOptions } from '../ram/block.js';
import { BOUND_KEYS, type BoundOptions, type Bounds, checkBounds } from '../stream/bounds.js';
import { checkAddress, type Address, type AddressText } from '../transport/address.js';
import { loadTls } from '../transport/tls/loaded.js';
import { CONNECT_TIMEOUT_MS, requireOptions } from '../migration/options.js';
import type { DeviceId } from './device-sections.js';
import { checkDevices, checkMachine, checkVerify, requireHook } from './options.js';
import type { DestinationState } from './states.js';

/** By choice. */
const MAX_DEVICE_BYTES = 2 ** 28;
const RESUME_TIMEOUT_MS = 300_000;

interface AnyDestinationDevice {
  /** Its name, at most 255 ASCII characters; with `instanceId` unique in the VM. */
  idstr: string;
  /** Default 0. */
  instanceId?: number;
  /** Of the form of its state (default 1): one of a later version is refused. */
  version?: number;
}

/** A device that takes its state over: in one, or part by part where it is too large for that. */
export type DestinationDevice = AnyDestinationDevice &
  (
    | {
        stream?: false;
        /**
         * Takes its state; called once, when all of the VM has come, in the order of `devices`. The bytes are its own to keep.
         *
         * @param version of the form that `data` has
         */
        load: (data: Buffer, version: number) => void | Promise<void>;
      }
    | {
        stream: true;
        /**
         * The same; the parts have any length, and each is its own to keep. All of them have come, as without `stream`.
         */
        load: (data: AsyncIterable<Buffer>, version: number) => void | Promise<void>;
      }
  );

/** A block that the source has. */
export interface OfferedBlock {
  name: string;
  /** In bytes. */
  size: number;
}

interface AnyDestinationOptions
  extends Omit<ReceiverOptions, 'address' | 'blocks' | 'devices' | 'deviceStateBytes'>, BoundOptions {
  /** Where the source connects: an object, `tcp:HOST:PORT`, `unix:PATH`. */
  listen: Address | AddressText;
  /** The machine type's full name, such as `v86-1.0`: the source's must be the same. */
  machine: string;
  /** All devices whose state comes (default none): each must, and no other may. */
  devices?: readonly DestinationDevice[];
  /** Bytes of the devices' state, all together (default 256 MiB): it is kept in memory until all of it has come. */
  maxDeviceBytes?: number;
  /**
   * Compare digests of all of the guest's memory before it is started (default false): SHA-256, made at both ends while it stands
   * still. The source must have it set as well.
   */
  verify?: boolean;
  /**
   * Where the connections break before all has come: keep the pages and wait for the source to carry on (default false). Takes
   * sources with the same option alone.
   */
  resumable?: boolean;
  /** Milliseconds that are waited for it, each time (default 300000). */
  resumeTimeoutMs?: number;
  /** Starts the guest: all is loaded, and the source knows it. */
  start: () => void | Promise<void>;
  /** Called with each state but the first. */
  onState?: (state: DestinationState) => void;
}

/** With `blocks`, or with a function that gives them when the source has said which it has. */
export type MigrationDestinationOptions = AnyDestinationOptions &
  (
    | { blocks: readonly RAMBlockOptions[]; acceptBlocks?: undefined }
    | {
        blocks?: undefined;
        acceptBlocks: (
          offered: readonly OfferedBlock[],
        ) => readonly RAMBlockOptions[] | Promise<readonly RAMBlockOptions[]>;
      }
  );

type OwnKeys = Exclude<keyof AnyDestinationOptions | 'acceptBlocks', keyof ReceiverOptions>;
const OWN_OPTIONS: Record<OwnKeys, true> = {
  ...BOUND_KEYS,
  listen: true,
  machine: true,
  acceptBlocks: true,
  maxDeviceBytes: true,
  verify: true,
  resumable: true,
  resumeTimeoutMs: true,
  start: true,
  onState: true,
};
const RECEIVER_ONLY = RECEIVER_KEYS.filter(
  (key) => !['address', 'blocks', 'devices', 'deviceStateBytes'].includes(key),
);
export const DESTINATION_KEYS = [...Object.keys(OWN_OPTIONS), 'blocks', 'devices', ...RECEIVER_ONLY];

export type CheckedDestinationDevice = DeviceId & { given: DestinationDevice };

export interface CheckedDestination {
  /** As they were given, for the hooks, which are called on it. */
  given: MigrationDestinationOptions;
  receiver: CheckedReceiverOptions;
  machine: string;
  /** Undefined with acceptBlocks. */
  blocks: RAMBlock[] | undefined;
  devices: CheckedDestinationDevice[];
  maxDeviceBytes: number;
  verify: boolean;
  bounds: Bounds;
  resumable: boolean;
  resumeTimeoutMs: number;
}

/** @throws MultifdError ERR_MULTIFD_OPTION, ERR_MULTIFD_BLOCK, ERR_MULTIFD_HOOK, ERR_MULTIFD_TLS */
export async function checkDestination(options: MigrationDestinationOptions): Promise<CheckedDestination> {
  requireOptions(options);
  checkKeys(options, DESTINATION_KEYS);
  const { listen, acceptBlocks, blocks } = options;
  const address = checkAddress(listen, 0, 'listen');
  await loadTls(options.tls);
  const tls = checkTls(options.tls, 'server', 'tls', address);
  const given = options as unknown as Record<string, unknown>;
  const ofReceiver = Object.fromEntries(
    RECEIVER_ONLY.filter((key) => key !== 'tls' && given[key] !== undefined).map((key) => [key, given[key]]),
  );
  const receiver = checkReceiverOptions(
    { connectTimeoutMs: CONNECT_TIMEOUT_MS, ...ofReceiver, address },
    true,
    [],
    tls,
  );
  callback('acceptBlocks', acceptBlocks);
  if ((blocks === undefined) === (acceptBlocks === undefined))
    throw wrong(
      'blocks',
      blocks === undefined ? blocks : 'blocks and acceptBlocks',
      'either blocks or acceptBlocks',
    );
  requireHook('start', options.start);
  callback('onState', options.onState);
  const devices = checkDevices(options.devices, 'load');
  return {
    given: options,
    receiver,
    machine: checkMachine(options.machine),
    blocks: blocks === undefined ? undefined : makeBlocks(blocks, receiver.pageSize),
    devices,
    maxDeviceBytes: integer(
      'maxDeviceBytes',
      options.maxDeviceBytes,
      MAX_DEVICE_BYTES,
      0,
      Number.MAX_SAFE_INTEGER,
    ),
    verify: checkVerify(options.verify),
    bounds: checkBounds(options),
    resumable: flag('resumable', options.resumable),
    resumeTimeoutMs: integer('resumeTimeoutMs', options.resumeTimeoutMs, RESUME_TIMEOUT_MS, 1, 2 ** 31 - 1),
  };
}
