/** Is a guest's memory what its steps make of it? Held against its twin in JavaScript, byte by byte. */
import { readGuestMemory } from './guest-memory.js';
import { GuestModel, REGION, STEPS_AT } from './guest-steps.js';
import type { Pc } from './pc.js';
import type { Finish } from './pc-messages.js';

/** @param pc which is stopped */
export function checkRegion(pc: Pc, regionBytes: number): Finish {
  const steps = readGuestMemory(pc, STEPS_AT, 4).readUInt32LE();
  const there = readGuestMemory(pc, REGION, regionBytes);
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
