/**
 * multifd: QEMU's multifd live-migration data plane for Node.
 *
 *     source process                                     destination process
 *     const sender = await createSender({...});          const receiver = await createReceiver({...});
 *     await sender.queueRange('pc.ram', 0, size);        await receiver.ready;
 *     await sender.sync();                               await receiver.sync();
 *     await sender.end();                                await receiver.end();
 *
 * The bytes on the wire are QEMU's own. All failures are `MultifdError`s with a stable `code`.
 *
 * The layers; each knows only those below it:
 *
 *     cli/            commands | demo | terminal
 *     stress/         what the command stress does: faults by chance between two processes of this engine
 *     index.ts        this file
 *     qmp/            a QEMU's monitor: a VM parked in a file and resumed, all that QEMU is to be told included
 *     live/           a VM of an embedder's own, migrated while it runs: rounds, dirty pages, switch-over, destination
 *     migration/      a whole migration: receive into a file, send from one, relay
 *     libvirt/        the head of libvirt's save images, and what unpacks them
 *     postcopy/       a guest that runs before its memory has been read from the file
 *     mapped-ram/     files in QEMU's mapped-ram format           stream/  QEMU's main stream
 *     packed/         the same, packed: frames, seek table, threads that pack
 *     send/  recv/    the two ends: slots, packets, sync points   session.ts  errors and ends, channel-pool.ts  threads
 *     transport/      every socket: addresses, connecting, listening, telling connections apart, descriptors to threads,
 *                     reads and writes, stalls, ends; plain or tls/
 *     methods/        none, zlib, zstd                            shared/  slots and semaphores, the only Atomics
 *     wire/  ram/     bytes of hello and packets; blocks, bitmaps, zero pages
 *     native/         the door to C's libraries, where the optional koffi is installed
 *     errors.ts       options.ts: every option, checked in one place
 *
 *     calling thread   migration, the queueing side and the receiver, main's connection and handshake
 *     channel threads  one for each channel (workers/): its connection, its handshake, its codec
 */
export { createReceiver, createSender, type Receiver, type Sender } from './public-session.js';
export type { ReceiverStats } from './recv/receiver.js';
export type { ChannelStats, Stats } from './session-stats.js';
export {
  type CommonOptions,
  type Compression,
  type Device,
  type ReceiverOptions,
  type SenderOptions,
  type ZeroPageDetection,
} from './options.js';
export { parseAddress, type Address, type AddressText } from './transport/address.js';
export type {
  BlockKind,
  FileBlockOptions,
  MemoryBlockOptions,
  RAMBlockOptions,
  SessionBlock as RAMBlock,
} from './ram/block.js';
export type {
  TlsCommonOptions,
  TlsFolderOptions,
  TlsOptions,
  TlsPeer,
  TlsPskOptions,
  TlsVersion,
  TlsX509Options,
} from './transport/tls/options.js';
export { adviseHugePages, allocateRam } from './ram/allocate.js';
export type { BlockMemory, FixedMemory, WasmMemory, WasmMemoryRange } from './ram/memory.js';
export type { ReceivedBitmap } from './ram/bitmap.js';
export { ERROR_CODES, MultifdError, type ErrorCode } from './errors.js';
export { TRACE_POINTS, type TracePoint } from './trace.js';
export { receiveMigration } from './migration/receive.js';
export type { ReceiveMigrationOptions, ReceivedMigration } from './migration/receive-options.js';
export {
  sendMigration,
  type OutgoingStart,
  type SendMigrationOptions,
  type SentMigration,
  type StreamRecords,
} from './migration/send.js';
export type { PostcopyOptions } from './postcopy/options.js';
export type {
  PostcopyResult,
  PostcopySession,
  PostcopyStart,
  PostcopyState,
  PostcopyStats,
} from './postcopy/session.js';
export {
  relayMigration,
  type RelayMigrationOptions,
  type RelayedMigration,
  type RelaySide,
} from './migration/relay.js';
export { parkVm } from './qmp/park.js';
export type { ParkProgress, ParkThen, ParkVmOptions, ParkedVm } from './qmp/park-options.js';
export { resumeVm, type ResumedVm } from './qmp/resume.js';
export type { ResumeVmOptions } from './qmp/resume-options.js';
export type { InstantResumeOptions, InstantlyResumedVm } from './qmp/resume-instant.js';
export type { QemuTlsOptions } from './qmp/qemu-tls.js';
export { createMigrationSource, type MigrationSource } from './live/source.js';
export type { MigrationSourceOptions, SourceDevice, Throttle } from './live/source-options.js';
export type { SavedState } from './live/device-sender.js';
export type { DirtyBitmap, DirtyFunction, DirtyOption, DirtyRange } from './live/dirty-pages.js';
export type { MigrationProgress, MigrationRamProgress } from './live/progress.js';
export type { DestinationState, SourceState } from './live/states.js';
export { createMigrationDestination, type MigrationDestination } from './live/destination.js';
export type { ArrivedMigration } from './live/incoming.js';
export type {
  DestinationDevice,
  MigrationDestinationOptions,
  OfferedBlock,
} from './live/destination-options.js';
export type { Discard } from './migration/discard.js';
export type { SwitchoverAck } from './migration/switchover-ack.js';
export {
  packMigration,
  unpackMigration,
  type PackMigrationOptions,
  type PackedMigration,
  type UnpackMigrationOptions,
} from './migration/pack.js';
export {
  describeMigrationFile,
  type DescribeOptions,
  type MigrationFileDescription,
} from './migration/describe.js';
export type {
  MappedRamBlockDescription,
  MappedRamDescription,
  MappedRamProblem,
} from './mapped-ram/description.js';
export { readMappedRam, type ReadMappedRamOptions } from './mapped-ram/read.js';
export type { SaveFormat, SaveImage } from './libvirt/save-image.js';
export type { BoundOptions } from './stream/bounds.js';
export type { MainStreamDescription } from './stream/describe-main-stream.js';
export type { VmDescription, VmDevice } from './stream/vm-description.js';
export { verifyMappedRam, type VerifiedBlock, type VerifyOptions } from './mapped-ram/verify.js';
