/** An embedder of sendMigration() in a process of its own; a child of qemu-file.ts. */
import { sendMigration, type SendMigrationOptions } from '../../src/index.js';
import { serve } from './child.js';

serve<object>(async (_start, parent) => {
  parent.tell({ ready: true });
  await sendMigration(await parent.next<SendMigrationOptions>());
  parent.tell({ sent: true });
});
