/** What a stranger may say in QMP's own words: what `npm run fuzz -- qmp` has found, each with its kind. */
import { spawnSync } from 'node:child_process';
import t, { type Test } from 'tap';
import { MultifdError } from '../../src/index.js';
import { listenAt } from '../../src/qmp/incoming.js';
import { formatQmpJson, numberOf, parseQmpJson, textOf } from '../../src/qmp/json.js';
import { queryGuest, queryMigration, runOn } from '../../src/qmp/machine.js';
import { qemuTlsParameters } from '../../src/qmp/qemu-tls.js';
import { MAX_LINE_CHARACTERS, Qmp } from '../../src/qmp/qmp.js';
import { answer, fakeQmp, type Command } from './fake-qmp.js';

const LIMITS = { greetingMs: 5000, commandMs: 5000 };
/** No text of its own, nor a number. */
const NO_TEXT = { toString: 1, valueOf: 1 };
const DEEP = 20_000;

async function talking(t: Test, value: unknown): Promise<Qmp> {
  const { path } = await fakeQmp(t, (command: Command) => answer(command, value));
  const qmp = await Qmp.connect({ path }, LIMITS);
  t.teardown(() => qmp.close());
  return qmp;
}

t.test('an object whose toString is no function is text and a number all the same', async (t) => {
  t.equal(textOf(NO_TEXT), '{"toString":1,"valueOf":1}');
  t.equal(numberOf(NO_TEXT), 0);
  t.equal(numberOf(2n ** 63n), 2 ** 63);
  t.equal(textOf(undefined), 'undefined');
});

t.test('in place of a state, of reasons, of counts', async (t) => {
  const qmp = await talking(t, {
    status: NO_TEXT,
    'blocked-reasons': [NO_TEXT, 'b'],
    ram: { total: NO_TEXT },
  });
  t.equal((await queryGuest(qmp)).status, textOf(NO_TEXT));
  t.match(await queryMigration(qmp), {
    status: 'none',
    blockedReasons: [textOf(NO_TEXT), 'b'],
    totalBytes: 0,
  });
});

t.test('in place of an object and of its type', async (t) => {
  const qmp = await talking(t, [{ type: NO_TEXT, name: NO_TEXT }]);
  const error = { code: 'ERR_MULTIFD_OPTION', message: 'it has none' };
  const asked = {
    qemuTls: undefined,
    ours: true,
    endpoint: 'client',
    present: '',
    address: undefined,
  } as const;
  await t.rejects(qemuTlsParameters(qmp, asked), error);
});

t.test('a port that is none', async (t) => {
  for (const port of [NO_TEXT, 65536, 0.5, -1, null]) {
    const qmp = await talking(t, { 'socket-address': [{ port }] });
    const listening = listenAt(qmp, 'migrate-incoming', { host: '127.0.0.1', port: 0 });
    await t.rejects(listening, { code: 'ERR_MULTIFD_QMP', message: 'received no port' }, textOf(port));
    qmp.close();
  }
  const qmp = await talking(t, { 'socket-address': [{ port: '65535' }] });
  t.match(await listenAt(qmp, 'migrate-incoming', { host: '127.0.0.1', port: 0 }), { port: 65535 });
});

t.test('a refusal that is nested without end is no QMP, and nobody falls over it', async (t) => {
  const nested = `${'['.repeat(DEEP)}${']'.repeat(DEEP)}`;
  for (const said of [nested, nested.replaceAll('[', '{"a":').replaceAll(']', '}').replace(':}', ':1}')]) {
    const { path } = await fakeQmp(t, ({ id }) => `{"error": ${said}, "id": ${id}}\n`);
    const qmp = await Qmp.connect({ path }, LIMITS);
    const refused = qmp.execute('query-status');
    await t.rejects(refused, MultifdError);
    await t.rejects(refused, { code: 'ERR_MULTIFD_QMP', message: 'expected a QMP message' });
  }
});

t.test('nesting is taken as deep as QEMU takes it, and text with brackets is text', async (t) => {
  const nested = (depth: number): string => `${'['.repeat(depth)}9223372036853727232${']'.repeat(depth)}`;
  t.equal(formatQmpJson(parseQmpJson(nested(1024))), nested(1024));
  t.throws(() => parseQmpJson(nested(1025)), { name: 'SyntaxError' });
  const text = JSON.stringify([`${'[{'.repeat(DEEP)}\\"`, '"', '\\']);
  t.equal(formatQmpJson(parseQmpJson(text)), text);
});

t.test('what is no JSON is refused as soon as it has been read, however many quotes it has', async (t) => {
  // By the square of their number it would be hours.
  t.throws(() => parseQmpJson(`[9223372036853727232, "${'\\"'.repeat(2 ** 21)}`), { name: 'SyntaxError' });
});

t.test('a guest that stands still after each cont that was taken is not told so without end', async (t) => {
  const qmp = await talking(t, { status: 'paused', running: false });
  t.same(await runOn(qmp, 0), { status: 'paused', running: false });
});

/** In a process of its own: of a peak nothing is given back. */
const PEAK = `
  const { parseQmpJson } = await import(process.argv[1]);
  const line = '[9007199254740993' + ',{}'.repeat(Number(process.argv[2]) / 3 - 6) + ']';
  const before = process.resourceUsage().maxRSS;
  const parsed = parseQmpJson(Buffer.from(line).toString());
  if (parsed[0] !== 9007199254740993n) throw new Error('wrong');
  console.log(process.resourceUsage().maxRSS - before);
`;
/** Nodes 24 and 26 take twice what 20 does. */
const MOST_KIB = 0.3 * 2 ** 20;

t.test('the longest line takes no more memory than is said, with an integer of 64 bits in it', async (t) => {
  const { href } = new URL('../../src/qmp/json.js', import.meta.url);
  const args = ['--input-type=module', '-e', PEAK, href, `${MAX_LINE_CHARACTERS}`];
  const { stdout, stderr } = spawnSync(process.execPath, args, { encoding: 'utf8' });
  t.equal(stderr, '');
  t.ok(Number(stdout) > 0 && Number(stdout) < MOST_KIB, `${stdout.trim()} KiB`);
});

t.test('events without an end are taken a piece a turn: the event loop goes on', async (t) => {
  const event = '{"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}, "data": {}}\n';
  const PIECES = 128;
  const flood = event.repeat(Math.ceil(2 ** 16 / event.length));
  const { path } = await fakeQmp(t, (command) => flood.repeat(PIECES) + answer(command, 'at last'));
  const qmp = await Qmp.connect({ path }, { commandMs: 30_000 });
  t.teardown(() => qmp.close());
  let turns = 0;
  const turn = (): void => void (turns++, (timer = setImmediate(turn)));
  let timer = setImmediate(turn);
  t.equal(await qmp.execute('flood'), 'at last');
  clearImmediate(timer);
  t.ok(turns >= PIECES - 1, `${turns} turns for ${PIECES} pieces`);
});
