/** The source of ends.ts, in a process of its own: it reads the image, migrates, and says how long that took. */
import { fork } from 'node:child_process';
import fs from 'node:fs';
import { createSender } from '../../src/index.js';
import { nextMessage, type Compared, type Listening, type Moved, type Plan } from './ends.js';
import { windows } from './image.js';

async function migrate(plan: Plan): Promise<Moved> {
  const { image, bytes, channels, compression } = plan;
  const destination = fork(new URL('./ends-destination.js', import.meta.url));
  destination.send(plan);
  const [{ address }, memory] = await Promise.all([
    nextMessage<Listening>(destination),
    readImage(image, bytes),
  ]);
  const blocks = [{ name: 'pc.ram', memory }];
  const sender = await createSender({ address, blocks, channels, compression });
  destination.send('ready');
  await nextMessage(destination);

  const begun = performance.now();
  destination.send('sync');
  const synced = nextMessage(destination);
  await sender.queueRange('pc.ram', 0, bytes);
  await Promise.all([sender.sync(), synced]);
  const seconds = (performance.now() - begun) / 1000;

  const { bytes: wireBytes } = sender.stats();
  await sender.end();
  destination.send('compare');
  if (!(await nextMessage<Compared>(destination)).equal)
    throw new Error("the destination's RAM is not the image");
  return { seconds, wireBytes };
}

/** The file is in memory; asynchronous, so that the destination makes its RAM meanwhile. */
async function readImage(file: string, bytes: number): Promise<SharedArrayBuffer> {
  const memory = new SharedArrayBuffer(bytes);
  const handle = await fs.promises.open(file);
  try {
    let position = 0;
    for (const window of windows(memory)) {
      for (let at = 0; at < window.length;) {
        const { bytesRead } = await handle.read(window, at, window.length - at, position);
        if (bytesRead === 0) throw new Error(`${file} has ${position} bytes, expected ${bytes}`);
        at += bytesRead;
        position += bytesRead;
      }
    }
  } finally {
    await handle.close();
  }
  return memory;
}

// With this process its destination ends, which is disconnected then.
process.on('disconnect', () => process.exit());
process.once('message', (plan: Plan) => {
  // A listener keeps the channel to the parent referenced, and with it this process.
  process.on('message', () => {});
  migrate(plan).then(
    (moved) => process.send?.(moved),
    (error) => {
      console.error(error);
      process.exit(1);
    },
  );
});
