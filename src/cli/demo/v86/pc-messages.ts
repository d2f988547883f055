/**
 * What `multifd demo --v86` and its two processes say to each other over Node's IPC; pages and devices' state never go this way.
 *
 *     demo (parent)                 a process with a PC, or room for one
 *     boot: guest            --->   makes a PC, starts it; bootLinux: the same with a kernel
 *     listen: settings       --->   makes a PC without a guest, waits for a migration; replies with the address
 *     arrived                --->   replies when the guest runs here
 *     migrate: to, settings  --->   replies when it runs there, with the last figures of the source
 *     finish                 --->   stops the guest; replies with what its memory is
 *     (disconnects)                 exits; also when the demo dies
 *     <---  console, progress       at any time
 */
import type { Address, Compression, MigrationProgress } from '../../../index.js';
import type { GuestProgramOptions } from './guest-program.js';
import type { GuestStepsOptions } from './guest-steps.js';
import type { LinuxFiles } from './linux-guest.js';

/** The same at both ends. */
export interface SessionSettings {
  channels: number;
  compression: Compression;
  verify?: boolean;
}

export interface SourceSettings extends SessionSettings {
  zlibLevel?: number;
  zstdLevel?: number;
  maxBandwidth?: number;
  downtimeLimitMs?: number;
  notConverging?: 'switchover' | 'fail';
}

export type PcRequest =
  | { type: 'boot'; guest: GuestProgramOptions }
  | { type: 'bootLinux'; files: LinuxFiles; guest: GuestStepsOptions; ramBytes: number }
  | { type: 'listen'; settings: SessionSettings; ramBytes?: number }
  | { type: 'arrived' }
  | { type: 'migrate'; to: Address; settings: SourceSettings }
  | { type: 'finish'; regionBytes: number | null };

/** Of a guest that was stopped. */
export interface Finish {
  /** null: it is not the demo's own, and nobody knows what its memory has to be. */
  steps: number | null;
  /** Addresses in its region where a byte is not what so many steps make of it: the first one; null: nowhere. */
  differsAt: number | null;
}

export interface PcReplies {
  boot: null;
  bootLinux: null;
  listen: Address;
  arrived: null;
  migrate: MigrationProgress;
  finish: Finish;
}

/** `console` is what the guest has written to its serial port. */
export type PcSays = { type: 'console'; text: string } | { type: 'progress'; progress: MigrationProgress };
