/** An embedder of sendMigration() in a process of its own: the package is loaded before it is told what to send. */
import { sendMigration, type SendMigrationOptions } from '../../src/index.js';

process.on('disconnect', () => process.exit());
process.on('message', (options: SendMigrationOptions) => {
  sendMigration(options).then(
    () => process.send?.('sent'),
    (error) => {
      console.error(error);
      process.exit(1);
    },
  );
});
process.send?.('ready');
