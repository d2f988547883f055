/** Is a guest's memory what its steps make of it? Held against its twin in JavaScript, byte by byte. */
import { GuestModel, REGION } from './guest-program.js';
import type { Pc } from './pc.js';
import type { Finish } from './pc-messages.js';

/** Of x86's registers, as v86 numbers them. */
const ESI = 6;

/** @param pc which is stopped */
export function checkRegion(pc: Pc, regionBytes: number): Finish {
  const steps = pc.cpu.reg32[ESI] >>> 0;
  const there = Buffer.from(pc.emulator.read_memory(REGION, regionBytes));
  const model = new GuestModel(regionBytes);
  const expected = Buffer.from(model.words.buffer);
  model.runTo(steps);
  let differsAt = firstDifference(there, expected);
  // It may have been stopped in the middle of a step: the word is written, and not yet counted.
  if (differsAt !== null) {
    model.runTo(steps + 1);
    if (firstDifference(there, expected) === null) differsAt = null;
  }
  return { steps, differsAt };
}

function firstDifference(there: Buffer, expected: Buffer): number | null {
  if (there.equals(expected)) return null;
  return there.findIndex((byte, i) => byte !== expected[i]);
}
