/** The demo's handle on a process that has a PC, or room for one: pc-process.ts. */
import { fileURLToPath } from 'node:url';
import type { MigrationProgress } from '../../../index.js';
import { AskedProcess } from '../asked-process.js';
import type { PcReplies, PcRequest, PcSays } from './pc-messages.js';

export interface PcHostHears {
  console: (text: string) => void;
  progress: (progress: MigrationProgress) => void;
}

export class PcHost extends AskedProcess<PcRequest, PcReplies> {
  /** @param name as messages have it */
  constructor(stop: AbortController, name: string, hears: PcHostHears) {
    super(stop, name, fileURLToPath(new URL('pc-process.js', import.meta.url)), (message) => {
      const said = message as PcSays;
      if (said.type === 'console') hears.console(said.text);
      else hears.progress(said.progress);
    });
  }
}
