/** A RAM block in a file: the file that was there when the session was opened, whatever its name means later. */
import fs from 'node:fs';
import path from 'node:path';
import t from 'tap';
import { createReceiver, createSender } from '../../src/index.js';

const SIZE = 64 * 4096;
const TCP = { host: '127.0.0.1', port: 0 };

function descriptorsOf(file: string): number {
  return fs.readdirSync('/proc/self/fd').filter((fd) => {
    try {
      return fs.readlinkSync(`/proc/self/fd/${fd}`) === file;
    } catch {
      return false;
    }
  }).length;
}

t.test('channels read and write the files that were opened, not what has their names by now', async (t) => {
  const directory = fs.realpathSync(
    t.testdir({ from: Buffer.alloc(SIZE, 7).toString(), to: Buffer.alloc(SIZE).toString() }),
  );
  const [from, to] = [path.join(directory, 'from'), path.join(directory, 'to')];
  const received = fs.openSync(to, 'r');
  t.teardown(() => fs.closeSync(received));
  const block = (file: string): { name: string; file: string; size: number } => ({
    name: 'a',
    file,
    size: SIZE,
  });
  const receiver = await createReceiver({ address: TCP, channels: 3, blocks: [block(to)] });
  const sender = await createSender({ address: receiver.address, channels: 3, blocks: [block(from)] });
  await receiver.ready;
  t.equal(descriptorsOf(from), 1, 'one descriptor a file, however many channels');
  t.equal(descriptorsOf(to), 2, 'and the one of this test');
  for (const file of [from, to]) {
    fs.rmSync(file);
    fs.writeFileSync(file, Buffer.alloc(SIZE, 9));
  }
  await sender.queueRange('a', 0, SIZE);
  await Promise.all([sender.sync(), receiver.sync()]);
  await Promise.all([sender.end(), receiver.end()]);
  const bytes = Buffer.alloc(SIZE);
  fs.readSync(received, bytes, 0, SIZE, 0);
  t.ok(bytes.equals(Buffer.alloc(SIZE, 7)));
  t.ok(fs.readFileSync(to).equals(Buffer.alloc(SIZE, 9)), 'what took its place is as it was');
  t.equal(descriptorsOf(from) + descriptorsOf(`${from} (deleted)`), 0, 'closed at the end');
});

t.test('an open FileHandle is used, and stays its owner’s', async (t) => {
  const directory = t.testdir({ from: Buffer.alloc(SIZE, 7).toString(), to: Buffer.alloc(SIZE).toString() });
  const from = await fs.promises.open(path.join(directory, 'from'), 'r');
  const to = await fs.promises.open(path.join(directory, 'to'), 'r+');
  t.teardown(() => Promise.all([from.close(), to.close()]));
  const receiver = await createReceiver({
    ...{ address: TCP, channels: 2 },
    blocks: [{ name: 'a', file: to, size: SIZE }],
  });
  const sender = await createSender({
    ...{ address: receiver.address, channels: 2 },
    blocks: [{ name: 'a', file: from, size: SIZE }],
  });
  await sender.queueRange('a', 0, SIZE);
  await Promise.all([sender.sync(), receiver.sync()]);
  await Promise.all([sender.end(), receiver.end()]);
  const bytes = Buffer.alloc(SIZE);
  await to.read(bytes, 0, SIZE, 0);
  t.ok(bytes.equals(Buffer.alloc(SIZE, 7)), 'still open');
  for (const file of [{ fd: -1 }, { fd: 1.5 }, {} as { fd: number }]) {
    await t.rejects(createSender({ address: TCP, blocks: [{ name: 'a', file, size: SIZE }] }), {
      name: 'MultifdError',
    });
  }
  await t.rejects(
    createReceiver({ address: TCP, blocks: [{ name: 'a', file: { fd: 99_999 }, size: SIZE }] }),
    {
      code: 'ERR_MULTIFD_IO',
    },
  );
});
