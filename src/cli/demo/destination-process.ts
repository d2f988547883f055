/** The source's handle on the destination process, demo-destination.ts. */
import { fileURLToPath } from 'node:url';
import { AskedProcess } from './asked-process.js';
import type { Replies, Request } from './messages.js';

export class DestinationProcess extends AskedProcess<Request, Replies> {
  constructor(stop: AbortController) {
    super(stop, 'destination', fileURLToPath(new URL('demo-destination.js', import.meta.url)));
  }
}
