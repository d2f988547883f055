/** What the models of the hand-over are searched through for, by spin. */
import { readModels, spinMissing, verify, type Models, type Verification } from './spin.js';

/** Many times what is needed. */
const SEARCH_MS = 200_000;

/** The least to search first. */
export const CASES: { name: string; file: string; defines: string[] }[] = [
  {
    name: 'a receiver fails or is stopped at any moment',
    file: 'receive.pml',
    defines: ['OPENED', 'FAILS', 'JOBS=0', 'SYNCS=0'],
  },
  {
    name: 'a sender fails or is stopped at any moment',
    file: 'send.pml',
    defines: ['OPENED', 'FAILS', 'JOBS=0', 'DEVICE_JOBS=0', 'SYNCS=0'],
  },
  { name: 'two channels offer and sync', file: 'receive.pml', defines: ['OPENED'] },
  { name: 'two channels sync twice', file: 'receive.pml', defines: ['OPENED', 'JOBS=0', 'SYNCS=2'] },
  { name: 'two channels start, sync and end', file: 'receive.pml', defines: ['JOBS=0'] },
  { name: 'two channels and two clients, from the start to the end', file: 'send.pml', defines: [] },
  {
    name: 'two clients wait with tickets for two busy channels',
    file: 'send.pml',
    defines: ['OPENED', 'BUSY', 'SYNCS=0'],
  },
  {
    name: 'a client has more jobs than there are channels, and no sync',
    file: 'send.pml',
    defines: ['OPENED', 'JOBS=3', 'DEVICE_JOBS=0', 'SYNCS=0'],
  },
];

const missing = spinMissing();
export const skip = missing === undefined ? false : `${missing}: the models are not searched`;
export const models = readModels();

export function searched(of: Models, { file, defines }: (typeof CASES)[number]): Verification {
  return verify(of, { file, defines, timeoutMs: SEARCH_MS });
}
