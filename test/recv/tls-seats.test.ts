/** Which thread a connection's handshake comes to (src/recv/tls-seats.ts), with the threads' ends of the ports in the test's hands. */
import { once } from 'node:events';
import net from 'node:net';
import type { MessagePort } from 'node:worker_threads';
import t, { type Test } from 'tap';
import type { FromSeat, ToSeat } from '../../src/recv/tls-seat.js';
import { TlsSeats } from '../../src/recv/tls-seats.js';
import { Admission } from '../../src/transport/admission.js';
import { takeDescriptor, type TakenConnection } from '../../src/transport/descriptor.js';
import type { CheckedTls } from '../../src/transport/tls/check-options.js';
import type { TlsPeer } from '../../src/transport/tls/options.js';
import { eventually } from '../support/raw-channel.js';
import { within } from '../support/within.js';

const WAIT_MS = 10_000;
const PEER = { version: 'TLSv1.3' } as unknown as TlsPeer;

async function setUp(t: Test, channels: number, maxStrays: number, authorize?: CheckedTls['authorize']) {
  const server = net.createServer();
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const ports: MessagePort[] = [];
  const heard: ToSeat[][] = [];
  let strays = 0;
  const seats = new TlsSeats({
    tls: { credentials: { toPlain: () => ({}) }, authorize } as unknown as CheckedTls,
    admission: new Admission(channels, undefined),
    maxStrays,
    helloMs: 1000,
    start: (seat, _task, port) => {
      ports[seat] = port;
      heard[seat] = [];
      port.on('message', (message: ToSeat) => heard[seat].push(message));
    },
    admitted: () => {},
    refused: () => {},
    stray: () => strays++,
  });
  t.teardown(() => {
    seats.release();
    for (const port of ports) port.close();
    server.close();
  });
  const take = async (): Promise<void> => {
    const peer = net.connect((server.address() as net.AddressInfo).port, '127.0.0.1').on('error', () => {});
    t.teardown(() => peer.destroy());
    const [socket] = (await within(once(server, 'connection'), WAIT_MS, 'connection')) as [net.Socket];
    seats.take(takeDescriptor(socket) as TakenConnection, undefined);
  };
  const closed = async (seat: number, n: number): Promise<void> => {
    const before = strays;
    ports[seat].postMessage({ kind: 'closed', n, error: undefined } satisfies FromSeat);
    await eventually(() => strays > before, 'the stray is told');
  };
  /** What the seat is told of a client. */
  const consent = async (n: number): Promise<boolean> => {
    ports[0].postMessage({ kind: 'ask', n, peer: PEER } satisfies FromSeat);
    const isAnswer = (message: ToSeat): boolean => message.kind === 'consent' && message.n === n;
    await eventually(() => heard[0].some(isAnswer), 'an answer');
    const answer = heard[0].find(isAnswer);
    return answer?.kind === 'consent' && answer.yes;
  };
  return { take, closed, consent, heard, started: () => ports.length };
}

t.test(
  'a connection comes to a thread that has none, to a new one, then to the one with the fewest',
  async (t) => {
    const { take, closed, started, heard } = await setUp(t, 2, 10);
    await take();
    t.equal(started(), 1);
    await closed(0, 0);
    await take();
    t.equal(started(), 1, 'the thread whose stray has gone is free again');
    await take();
    t.equal(started(), 2);
    for (let i = 0; i < 2; i++) await take();
    t.equal(started(), 2, 'no more threads than channels');
    await eventually(() => heard.flat().length === 5, 'all were given to a thread');
    t.same(
      heard.map((messages) =>
        messages.map(({ kind, ...more }) => ('n' in more ? `${kind} ${more.n}` : kind)),
      ),
      [
        ['take 0', 'take 1', 'take 3'],
        ['take 2', 'take 4'],
      ],
    );
  },
);

t.test('beyond maxStrays the oldest is dropped, once', async (t) => {
  const { take, heard } = await setUp(t, 1, 2);
  for (let i = 0; i < 4; i++) await take();
  await eventually(() => heard[0].length === 6, 'all is said');
  t.same(
    heard[0].filter(({ kind }) => kind === 'drop').map((message) => 'n' in message && message.n),
    [0, 1],
  );
});

t.test('an authorize() that throws, rejects, or says anything but true is no consent', async (t) => {
  const answers: [string, () => unknown, boolean][] = [
    ['true', () => true, true],
    ['a promise of it', () => Promise.resolve(true), true],
    ['false', () => false, false],
    ['nothing', () => undefined, false],
    ['a name', () => 'somebody', false],
    [
      'it throws',
      () => {
        throw new Error('no directory');
      },
      false,
    ],
    ['it rejects', () => Promise.reject(new Error('no directory')), false],
  ];
  let answer = (): unknown => false;
  const { take, consent } = await setUp(t, 1, 10, () => answer() as boolean);
  for (const [n, [what, given, isLetIn]] of answers.entries()) {
    await take();
    answer = given;
    t.equal(await consent(n), isLetIn, what);
  }
});
