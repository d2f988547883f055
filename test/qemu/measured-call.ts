/** One call in a process of its own, forked by large.interop.ts: its result, and the most memory that the process had. */
import { MultifdError, receiveMigration, sendMigration } from '../../src/index.js';
import type { ReceiveMigrationOptions } from '../../src/migration/receive.js';
import type { SendMigrationOptions } from '../../src/migration/send.js';

export type Call = { receive: ReceiveMigrationOptions } | { send: SendMigrationOptions };
export type Message = { listening: true } | { peakBytes: number } | { error: string };

const tell = (message: Message): void => void process.send?.(message);

async function run(call: Call): Promise<void> {
  try {
    if ('send' in call) await sendMigration(call.send);
    else await receiveMigration({ ...call.receive, onListening: () => tell({ listening: true }) });
    // maxRSS is in KiB.
    tell({ peakBytes: process.resourceUsage().maxRSS * 1024 });
  } catch (error) {
    tell({ error: error instanceof MultifdError ? `${error.code}: ${error.message}` : String(error) });
  }
  process.disconnect();
}

process.once('message', (call: Call) => void run(call));
