/** What `multifd stress qemu` says of a destination follows from what went out to it: none that has its guest is said to hang. */
import t from 'tap';
import { watched } from '../../src/stress/qemu-destination.js';
import { QemuFault, type Given } from '../../src/stress/qemu-fault.js';
import type { QemuPlan } from '../../src/stress/qemu-plan.js';
import type { QemuEnd } from '../../src/stress/started-qemu.js';
import { EndWatch, endOfSections } from '../../src/stress/stream-end.js';
import type { PassedConnection } from '../../src/transport/pass-on.js';
import { CAPTURES, streamsOf } from '../migration/captures.js';

const PAGE_SIZE = 4096;
const PIECE = 5000;
const PLAN: QemuPlan = {
  seed: 1,
  run: 1,
  kind: 'none',
  channel: 'main',
  packet: 0,
  byte: 0,
  place: 0,
  bit: 0,
  ms: 1,
};

const { main, channels } = streamsOf(CAPTURES[0]);
const END = endOfSections(main);
const MARK = main.subarray(END - 4096, END);

/** Everything, through the fault. */
function through(plan: Partial<QemuPlan>): QemuFault {
  const fault = new QemuFault({ ...PLAN, ...plan }, true, PAGE_SIZE, MARK);
  const passed: Buffer[] = [];
  for (const bytes of [...channels, main]) {
    const towards: Partial<PassedConnection['towards']> = {};
    const nothing = (): void => {};
    const connection = { towards, connect: nothing, cut: nothing, hold: nothing, release: nothing };
    fault.connection(connection as unknown as PassedConnection);
    for (let at = 0; at < bytes.length; at += PIECE)
      passed.push(...(towards.filter?.(bytes.subarray(at, at + PIECE)) ?? []));
  }
  fault.end();
  return fault;
}

t.test('the end of what is needed is behind the last section, before the description', async (t) => {
  for (const capture of CAPTURES) {
    const { main } = streamsOf(capture);
    const end = endOfSections(main);
    t.equal(main.subarray(end - 1, end + 1).toString('hex'), '0006', capture.name);
    t.equal(main[end + 5], '{'.charCodeAt(0), capture.name);
    for (const size of [1, 777, main.length]) {
      const watch = new EndWatch(main.subarray(end - 100, end));
      let at = 0;
      for (; !watch.hasPassed; at += size) watch.push(main.subarray(at, at + size));
      t.equal(
        Math.floor((at - 1) / size),
        Math.floor((end - 1) / size),
        `${capture.name}, pieces of ${size}`,
      );
    }
  }
  t.equal(endOfSections(Buffer.from([4, 1, 0])), 3, 'without a description');
});

t.test('what a destination was given, by where the fault struck', async (t) => {
  t.ok(END < main.length - 100);
  const cases: [Partial<QemuPlan>, Given, QemuFault['effect']][] = [
    [{ kind: 'none' }, 'unknown', 'same'],
    [{ kind: 'cut-byte', byte: END }, 'yes', 'unknown'],
    [{ kind: 'cut-byte', byte: END + 90 }, 'yes', 'unknown'],
    [{ kind: 'cut-byte', byte: END - 1 }, 'no', 'unknown'],
    [{ kind: 'flip', byte: END }, 'yes', 'same'],
    [{ kind: 'flip', byte: END - 1 }, 'unknown', 'unknown'],
    [{ kind: 'flip', byte: 100 }, 'unknown', 'unknown'],
    [{ kind: 'cut-packet', channel: 0 }, 'no', 'unknown'],
    [{ kind: 'cut-byte', channel: 1, byte: 100 }, 'no', 'unknown'],
    [{ kind: 'stall', channel: 0, packet: 1 }, 'no', 'unknown'],
    [{ kind: 'delay', channel: 0 }, 'unknown', 'same'],
  ];
  for (const [plan, given, effect] of cases) {
    const fault = through(plan);
    if (plan.kind !== 'none') t.not(fault.struckAt, undefined, JSON.stringify(plan));
    t.same([fault.given, fault.effect], [given, effect], JSON.stringify(plan));
  }
});

t.test('a flip in the main stream says which byte it is', async (t) => {
  t.equal(
    through({ kind: 'flip', byte: 8158, place: 0.9, bit: 6 }).what,
    'byte 8158 of the main stream, bit 6',
  );
});

t.test('one that is alive hangs only where it cannot have loaded', async (t) => {
  const verdict = (given: Given, ending: QemuEnd | undefined = undefined, ours = 'ERR_MULTIFD_EOF: why') =>
    watched({ passOn: held, qemu: { ending }, ours, given: () => given }, 30);
  const held = { connections: [{ farHasEnded: true }, { farHasEnded: false }] };
  const notKnown = 'not known: it is alive; ask its monitor';
  t.equal(await verdict('yes'), 'loaded');
  t.equal(await verdict('unknown'), notKnown);
  t.equal(await verdict('no'), 'hung');
  t.equal(await verdict('yes', 'refused'), 'refused');
  t.equal(await verdict('no', 'crashed'), 'crashed');
  t.equal(await verdict('yes', 'well'), 'loaded', 'its guest has switched itself off');
  t.equal(await verdict('no', 'well'), 'refused');
  t.equal(await verdict('unknown', 'well'), 'closed');
  t.equal(await verdict('yes', undefined, 'ERR_MULTIFD_STREAM: SHUT: received 1'), 'refused');
  const gone = { connections: [{ farHasEnded: true }] };
  const others = await watched(
    { passOn: gone, qemu: { ending: undefined }, ours: '', given: () => 'no' },
    30,
  );
  t.equal(others, 'closed', 'what is alive of its command need not be QEMU');
  const seen = (isClosed: boolean, given: Given) => {
    const passOn = { connections: [{ farHasEnded: true }, { farHasEnded: isClosed }] };
    return watched({ passOn, qemu: undefined, ours: '', given: () => given }, 30);
  };
  t.equal(await seen(true, 'yes'), 'closed', 'of one that nobody has started here nothing more is known');
  t.equal(await seen(false, 'yes'), notKnown);
  t.equal(await seen(false, 'no'), 'hung');
});
