/**
 * A destination that reads slowly, TLS 1.3, no return path: every byte comes, long after the source has closed. What a
 * server sends behind the handshake (session tickets) lies unread at such a QEMU: its kernel would answer the close by a
 * reset, and what was on its way would be lost, while the source says `completed`.
 */
import net from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import { checkTlsOptions } from '../../src/transport/tls/check-options.js';
import { handshake } from '../../src/transport/tls/handshake.js';
import { within } from '../support/within.js';
import { requirePrograms } from './programs.js';
import { Qemu, workFolder } from './qemu.js';
import { HOST, type Kind, makeFolders, ourTls, setTls } from './tls.js';

const MiB = 2 ** 20;
const CHANNELS = 2;
const WAIT_MS = 60_000;
const HANDSHAKE_MS = 10_000;
/** From here on the destination is slow; the guest has about 24 MiB of data. */
const FAST_BYTES = 8 * MiB;
const SLOW_BYTES_PER_MS = (4 * MiB) / 1000;

const { qemu: program } = requirePrograms();
const folder = workFolder(t);
const dirs = makeFolders(folder);
const guest = Qemu.start(t, program, folder);

for (const kind of ['x509', 'psk'] as const satisfies readonly Kind[]) {
  t.test(`${kind}: a source that is done and gone has lost nothing`, async (t) => {
    const source = await guest;
    await source.waitUntilReady();
    const dir = (await dirs)[kind];
    const { credentials } = checkTlsOptions(ourTls(kind, dir, 'server'), 'server');
    /** In the order that they connect: main is the first. */
    const counts: number[] = [];
    const ends: Promise<string>[] = [];
    let total = 0;
    let turn = Promise.resolve();
    /** One after the other, so that the rate is all connections'. */
    const slowly = async (count: number): Promise<void> => {
      turn = turn.then(() => sleep(count / SLOW_BYTES_PER_MS));
      await turn;
    };
    const take = async (raw: net.Socket, i: number): Promise<string> => {
      t.teardown(() => raw.destroy());
      const { socket } = await handshake(raw, credentials, { timeoutMs: HANDSHAKE_MS });
      t.equal(socket.getProtocol(), 'TLSv1.3');
      socket.on('data', (bytes: Buffer) => {
        counts[i] += bytes.length;
        total += bytes.length;
        if (total < FAST_BYTES) return;
        socket.pause();
        void slowly(bytes.length).then(() => socket.resume());
      });
      return new Promise((resolve) => {
        socket.once('end', () => resolve('end'));
        socket.once('error', (error: NodeJS.ErrnoException) => resolve(String(error.code)));
        socket.once('close', () => resolve('close'));
      });
    };
    const server = net.createServer({ pauseOnConnect: true }, (raw) => {
      ends.push(take(raw, counts.push(0) - 1).catch(String));
    });
    t.teardown(() => server.close());
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    await source.execute('stop');
    await source.setMultifd({ channels: CHANNELS, compression: 'none' });
    await setTls(source, { kind, dir, endpoint: 'client', version: 'TLSv1.3', hostname: HOST });
    await source.setParameters({ 'max-bandwidth': 2 ** 40 });
    await source.execute('migrate', { uri: `tcp:127.0.0.1:${(server.address() as net.AddressInfo).port}` });
    const info = await source.migrationEnd();
    t.equal(info.status, 'completed', 'the source believes that all is well');
    const atEnd = total;
    const ended = await within(Promise.all(ends), WAIT_MS, 'all ends');
    t.same(ended, ['end', 'end', 'end'], 'main and the channels end in order');
    const sent = (info.ram as unknown as Record<string, number>)['multifd-bytes'];
    const came = counts.slice(1).reduce((sum, count) => sum + count, 0);
    t.equal(came, sent, 'and every byte has come');
    t.ok(total - atEnd > MiB, `${total - atEnd} of them after the source was done`);
    await source.execute('cont');
  });
}
