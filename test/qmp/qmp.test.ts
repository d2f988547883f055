/** The client of QEMU's control socket, with servers that are busy, closed, hostile, or no QMP at all. */
import net from 'node:net';
import t from 'tap';
import { MultifdError } from '../../src/index.js';
import { queryGuest, queryMigration } from '../../src/qmp/machine.js';
import { Qmp } from '../../src/qmp/qmp.js';
import { within } from '../support/within.js';
import { GREETING, answer, fakeQmp, refusal } from './fake-qmp.js';

const LIMITS = { greetingMs: 300, commandMs: 300 };
const WAIT_MS = 10_000;

async function failure(promise: Promise<unknown>): Promise<MultifdError> {
  const thrown = await within(
    promise.then(
      () => undefined,
      (error: unknown) => error,
    ),
    WAIT_MS,
    'an error',
  );
  if (!(thrown instanceof MultifdError)) throw new Error(`no MultifdError: ${String(thrown)}`);
  return thrown;
}

t.test('answers are told apart by their ids, whatever their order, with events in between', async (t) => {
  const late: string[] = [];
  const event = '{"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}, "more": [{}]}\n';
  const { path } = await fakeQmp(
    t,
    (command) => {
      late.push(answer(command, command.execute));
      return late.length < 2 ? undefined : event + late.reverse().join(event) + event;
    },
    GREETING.replace('}\n', ', "unknown": [1, {"2": null}]}\r\n'),
  );
  const qmp = await Qmp.connect({ path }, LIMITS);
  t.same(await Promise.all([qmp.execute('one'), qmp.execute('two')]), ['one', 'two']);
  qmp.close();
});

t.test('an answer that comes too late is not taken for the next one', async (t) => {
  let first = '';
  const { path } = await fakeQmp(t, (command) => {
    if (command.execute === 'slow') {
      first = answer(command, 'slow');
      return undefined;
    }
    return first + answer(command, 'fast');
  });
  const qmp = await Qmp.connect({ path }, LIMITS);
  t.match(await failure(qmp.execute('slow', {}, 20)), { code: 'ERR_MULTIFD_TIMEOUT', message: 'slow' });
  t.equal(await qmp.execute('fast'), 'fast');
  qmp.close();
});

t.test(
  'integers of 64 bits are given back as they came, and no digits of another number are taken for one',
  async (t) => {
    const numbers =
      '{"big": 9223372036853727232, "most": 18446744073709551615, "small": -5, "mbps": 0.12345678901234567, "ratio": -12.345678901234567, "e": 1234567890123456e-20, "text": "18446744073709551615"}';
    const { path, commands } = await fakeQmp(t, (command) =>
      command.execute === 'get' ? `{"id": ${command.id}, "return": ${numbers}}\n` : answer(command),
    );
    const qmp = await Qmp.connect({ path }, LIMITS);
    const got = (await qmp.execute('get')) as Record<string, unknown>;
    t.same(got, {
      big: 9223372036853727232n,
      most: 18446744073709551615n,
      small: -5,
      mbps: 0.12345678901234567,
      ratio: -12.345678901234567,
      e: 1234567890123456e-20,
      text: '18446744073709551615',
    });
    await qmp.execute('set', got);
    t.same(commands.at(-1)?.arguments, got);
    qmp.close();
  },
);

t.test("QEMU's refusal is told in its words", async (t) => {
  const { path } = await fakeQmp(t, (command) => refusal(command, 'State blocked by non-migratable device'));
  const qmp = await Qmp.connect({ path }, LIMITS);
  const error = await failure(qmp.execute('migrate'));
  t.match(error, {
    code: 'ERR_MULTIFD_QMP',
    message: /QEMU refuses migrate: State blocked by non-migratable device/,
  });
  t.ok(qmp.isOpen);
  qmp.close();
});

t.test('an error of an unknown shape is told as it stands', async (t) => {
  const { path } = await fakeQmp(t, ({ id }) => `{"error": {"why": "so"}, "id": ${id}}\n`);
  const qmp = await Qmp.connect({ path }, LIMITS);
  t.match(await failure(qmp.execute('x')), { code: 'ERR_MULTIFD_QMP', message: /\{"why":"so"\}/ });
  qmp.close();
});

t.test('a socket that another client holds: nothing is said, and that is told', async (t) => {
  const folder = await fakeQmp(t, answer, '');
  const error = await failure(Qmp.connect({ path: folder.path }, LIMITS));
  t.match(error, {
    code: 'ERR_MULTIFD_TIMEOUT',
    message: /busy: another client, such as libvirt, holds it.*-qmp/,
  });
  t.match(error.message, /within 300 ms/);
});

t.test('who waits for the greeting can be aborted', async (t) => {
  const { path } = await fakeQmp(t, answer, '');
  const controller = new AbortController();
  setTimeout(() => controller.abort(new Error('enough')), 50);
  const error = await failure(Qmp.connect({ path }, { greetingMs: 60_000 }, controller.signal));
  t.match(error, { code: 'ERR_MULTIFD_ABORTED', cause: { message: 'enough' } });
});

t.test('a socket that is not there', async (t) => {
  const error = await failure(Qmp.connect({ path: `${t.testdir({})}/none` }, LIMITS));
  t.match(error, { code: 'ERR_MULTIFD_CONNECT', message: /ENOENT/ });
});

const NO_QMP: [string, string, RegExp][] = [
  [
    'text',
    'HTTP/1.1 400 Bad Request\r\n',
    /received "HTTP\/1\.1 400 Bad Request\\r", expected QMP's greeting/,
  ],
  [
    'the monitor for people',
    "QEMU 10.0.2 monitor - type 'help' for more information\r\n(qemu) ",
    /monitor for people, give the socket of -qmp/,
  ],
  ['JSON of something else', '{"hello": 1}\n', /received "\{\\"hello\\": 1\}", expected QMP's greeting/],
  ['an array', '[]\n', /received "\[\]", expected/],
  ['null', 'null\n', /received "null", expected/],
  ['half a line', 'SSH-2.0-', /received "SSH-2\.0-", expected QMP's greeting/],
  ['bytes', '\x00\x01\x02\x1b[2J\n', /received "\\u0000\\u0001/],
  ['a long line', `${'x'.repeat(1000)}\n`, /received "x{60}\.\.\.", expected/],
];
for (const [name, said, message] of NO_QMP) {
  t.test(`what greets with ${name} is no QMP`, async (t) => {
    const { path } = await fakeQmp(t, answer, said);
    const error = await failure(Qmp.connect({ path }, LIMITS));
    t.equal(error.code, 'ERR_MULTIFD_QMP');
    t.match(error.message, message);
  });
}

for (const [name, said] of [
  ['garbage', '}{\n'],
  ['a message that is neither answer nor event', '{"what": 1}\n'],
  ['an answer without id', '{"return": {}}\n'],
]) {
  t.test(`${name} behind the greeting ends it`, async (t) => {
    const { path } = await fakeQmp(t, () => said);
    const qmp = await Qmp.connect({ path }, LIMITS);
    const error = await failure(qmp.execute('x'));
    t.match(error, { code: 'ERR_MULTIFD_QMP', message: /received .*, expected .*while x was under way/ });
    t.notOk(qmp.isOpen);
    t.match(await failure(qmp.execute('y')), { code: 'ERR_MULTIFD_QMP' }, 'the next is refused at once');
  });
}

t.test('a line without end is given up, not kept', async (t) => {
  const { path } = await fakeQmp(t, (_command, socket) => {
    const piece = 'x'.repeat(2 ** 20);
    const more = (): void => {
      if (!socket.destroyed) socket.write(piece, more);
    };
    more();
    return undefined;
  });
  const qmp = await Qmp.connect({ path }, { ...LIMITS, commandMs: WAIT_MS });
  t.match(await failure(qmp.execute('x')), {
    code: 'ERR_MULTIFD_QMP',
    message: /received a line of more than \d+ characters, expected at most 1048576/,
  });
});

t.test('data without end in the place of a greeting is given up, not kept', async (t) => {
  const server = net.createServer((socket) => {
    socket.on('error', () => {});
    const piece = 'x'.repeat(2 ** 20);
    const more = (): void => {
      if (!socket.destroyed) socket.write(piece, more);
    };
    more();
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.teardown(() => server.close());
  const { port } = server.address() as net.AddressInfo;
  const connected = Qmp.connect({ host: '127.0.0.1', port }, { greetingMs: WAIT_MS });
  t.match(await failure(connected), {
    code: 'ERR_MULTIFD_QMP',
    message: /a line of more than \d+ characters/,
  });
});

t.test("an answer to another's command, or to none, is nobody's", async (t) => {
  const { path } = await fakeQmp(t, ({ id }) =>
    [id + 7, String(id), null].map((other) => `{"return": 1, "id": ${JSON.stringify(other)}}\n`).join(''),
  );
  const qmp = await Qmp.connect({ path }, LIMITS);
  t.match(await failure(qmp.execute('x')), { code: 'ERR_MULTIFD_TIMEOUT', message: /no answer to x/ });
  t.ok(qmp.isOpen);
  qmp.close();
});

t.test('one that asks for an argument that nobody knows here is told in its words', async (t) => {
  const { path } = await fakeQmp(t, (command) => refusal(command, "Parameter 'reason' is missing"));
  const qmp = await Qmp.connect({ path }, LIMITS);
  t.match(await failure(qmp.execute('migrate')), {
    code: 'ERR_MULTIFD_QMP',
    message: /QEMU refuses migrate: Parameter 'reason' is missing/,
  });
  qmp.close();
});

t.test('a connection that was lost is made again, and what an old one still says is not heard', async (t) => {
  const fake = await fakeQmp(t, (command) => answer(command, command.execute));
  const qmp = await Qmp.connect({ path: fake.path }, LIMITS);
  fake.cut();
  t.match(await failure(qmp.execute('one')), { code: 'ERR_MULTIFD_QMP' });
  t.notOk(qmp.isOpen);
  await Promise.all([qmp.reconnect(), qmp.reconnect()]);
  t.ok(qmp.isOpen);
  t.equal(await qmp.execute('two'), 'two');
  t.equal(fake.commands.filter(({ execute }) => execute === 'qmp_capabilities').length, 2, 'once');
  qmp.close();
  t.notOk(qmp.isOpen, 'at once');
});

t.test('a server that closes in the middle fails what is under way and what comes after', async (t) => {
  const { path } = await fakeQmp(t, (_command, socket) => void socket.end('{"return":'));
  const qmp = await Qmp.connect({ path }, LIMITS);
  const error = await failure(qmp.execute('query-migrate'));
  t.match(error, {
    code: 'ERR_MULTIFD_QMP',
    message: /QEMU has closed QMP, while query-migrate was under way/,
  });
  t.match(await failure(qmp.execute('cont')), { code: 'ERR_MULTIFD_QMP', message: /has closed QMP/ });
});

t.test('a server that closes before its greeting', async (t) => {
  const server = net.createServer((socket) => socket.end());
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.teardown(() => server.close());
  const { port } = server.address() as net.AddressInfo;
  const error = await failure(Qmp.connect({ host: '127.0.0.1', port }, LIMITS));
  t.match(error, { code: 'ERR_MULTIFD_QMP', message: `tcp:127.0.0.1:${port}: QEMU has closed QMP` });
});

for (const [name, say] of [
  ['an answer and its end', true],
  ['its end alone', false],
] as const) {
  t.test(`quit is done with ${name}`, async (t) => {
    const { path } = await fakeQmp(t, (command, socket) => {
      socket.end(say ? answer(command) : '');
      return undefined;
    });
    const qmp = await Qmp.connect({ path }, LIMITS);
    await within(qmp.quit(), WAIT_MS, 'quit()');
    t.notOk(qmp.isOpen);
  });
}

t.test("QEMU's words stay in their line, whatever is in them", async (t) => {
  const words = 'no\nmultifd: all is well\u001b[2J\u202e';
  const shown = 'no\\x0amultifd: all is well\\x1b[2J\\u202e';
  const { path } = await fakeQmp(t, (command) => {
    if (command.execute === 'query-migrate')
      return answer(command, { status: 'failed\n', 'error-desc': words, 'blocked-reasons': [words] });
    return command.execute === 'query-status' ? answer(command, { status: words }) : refusal(command, words);
  });
  const qmp = await Qmp.connect({ path });
  t.teardown(() => qmp.close());
  await t.rejects(qmp.execute('stop'), { message: `unix:${path}: QEMU refuses stop: ${shown}` });
  t.match(await queryMigration(qmp), { status: 'failed\\x0a', error: shown, blockedReasons: [shown] });
  t.match(await queryGuest(qmp), { status: shown });
});
