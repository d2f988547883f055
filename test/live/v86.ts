/**
 * PCs of v86 for the tests: with a guest that runs, or room for one. Whether a guest has lost anything is seen in two ways: by its
 * own lines (GuestConsole), and by holding its memory against its twin in JavaScript, byte by byte.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Test } from 'tap';
import {
  createMigrationDestination,
  createMigrationSource,
  type Address,
  type MigrationDestination,
  type MigrationDestinationOptions,
  type MigrationSource,
  type MigrationSourceOptions,
} from '../../src/index.js';
import { checkRegion } from '../../src/cli/demo/v86/check-region.js';
import { guestProgram, type GuestProgramOptions } from '../../src/cli/demo/v86/guest-program.js';
import { Pc } from '../../src/cli/demo/v86/pc.js';
import { PcHost } from '../../src/cli/demo/v86/pc-host.js';
import { pcOptions } from '../../src/cli/demo/v86/pc-options.js';
import { within } from '../support/within.js';
import { WAIT_MS, failure } from './scene.js';

const MIB = 2 ** 20;
export const REGION_BYTES = MIB;
const RAM_BYTES = 4 * MIB;
/** Never: while a guest reads all of its memory it writes nothing, and a migration could end that is not to. */
const NO_LINES = 2 ** 31 - 1;

/** Sleeps between its steps, and says nothing. */
export const SLEEPER: GuestProgramOptions = { regionBytes: REGION_BYTES, ticksPerLine: NO_LINES };
/** Writes to some 64 pages in each millisecond, without an end. */
export const WRITER: GuestProgramOptions = { ...SLEEPER, sleeps: false, spin: 100_000 };

/** So many steps reach nearly all of its pages. */
const WARM_STEPS = 4 * (REGION_BYTES / 4096);

/** @param guest undefined: room for one; with one, it has written to its memory */
export async function makePc(t: Test, guest?: GuestProgramOptions, ramBytes = RAM_BYTES): Promise<Pc> {
  const pc = await Pc.boot(pcOptions(guest && guestProgram(guest), ramBytes));
  t.teardown(() => pc.emulator.destroy());
  if (guest !== undefined) {
    pc.start();
    await does(t, pc, WARM_STEPS);
  }
  return pc;
}

async function does(t: Test, pc: Pc, wanted: number): Promise<void> {
  const deadline = performance.now() + WAIT_MS;
  while (steps(pc) < wanted && performance.now() < deadline) await sleep(5);
  t.ok(steps(pc) >= wanted, `it does ${wanted} steps`);
}

export function steps(pc: Pc): number {
  return pc.cpu.reg32[6] >>> 0;
}

/** It does steps, and what is in its memory is what they make of it. */
export async function runsHere(t: Test, pc: Pc): Promise<void> {
  await does(t, pc, steps(pc) + 1);
  await within(pc.pause(), WAIT_MS, 'pause()');
  t.match(checkRegion(pc, REGION_BYTES), { differsAt: null }, 'its memory is what its steps make of it');
}

export interface PcScene {
  here: Pc;
  there: Pc;
  source: MigrationSource;
  destination: MigrationDestination;
}

export interface PcSceneOptions {
  guest?: GuestProgramOptions;
  ramBytesThere?: number;
  source?: (source: () => MigrationSource, here: Pc) => Partial<MigrationSourceOptions>;
  destination?: Partial<MigrationDestinationOptions>;
  /** Where the source connects in place of the destination. */
  through?: (address: Address) => Promise<Address>;
}

/** Both in this process. */
export async function pcScene(t: Test, options: PcSceneOptions = {}): Promise<PcScene> {
  const here = await makePc(t, options.guest ?? SLEEPER);
  const there = await makePc(t, undefined, options.ramBytesThere);
  const destination = await createMigrationDestination({
    listen: { host: '127.0.0.1', port: 0 },
    ...there.destination,
    ...options.destination,
  } as MigrationDestinationOptions);
  t.teardown(() => destination.cancel());
  const to = (await options.through?.(destination.address)) ?? destination.address;
  const source = await sourceOf(t, here, to, options.source);
  return { here, there, source, destination };
}

/** @param more called before there is a source, which it is given as a function for its hooks */
export async function sourceOf(
  t: Test,
  here: Pc,
  to: Address,
  more?: PcSceneOptions['source'],
): Promise<MigrationSource> {
  const source: MigrationSource = await createMigrationSource({
    to,
    ...here.source,
    ...more?.(() => source, here),
  });
  t.teardown(() => source.cancel());
  return source;
}

/** @returns the source's error */
export async function failsAndRunsOn(t: Test, { here, source }: Pick<PcScene, 'here' | 'source'>) {
  const error = await failure(source.done);
  await runsHere(t, here);
  return error;
}

/** A process with a PC, or room for one; what becomes of it does not matter to the test. */
export function pcHost(t: Test, onConsole: (text: string) => void = () => {}): PcHost {
  const host = new PcHost(new AbortController(), 'PC', { console: onConsole, progress: () => {} });
  t.teardown(() => host.end());
  return host;
}
