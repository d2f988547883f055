/** What the demo's PC is made of: the listing's assembler, the guest's twin, and the console that checks each line. */
import t from 'tap';
import { MultifdError } from '../../src/index.js';
import { assemble } from '../../src/cli/demo/v86/assemble.js';
import { namingBandwidth } from '../../src/cli/demo/v86/demo-v86.js';
import { GuestConsole } from '../../src/cli/demo/v86/guest-console.js';
import { guestProgram } from '../../src/cli/demo/v86/guest-program.js';
import { GuestModel } from '../../src/cli/demo/v86/guest-steps.js';

const REGION_BYTES = 2 ** 16;

t.test('a listing becomes bytes: labels, distances, addresses, constants, text', async (t) => {
  const listing = `
    start: bb =N      ; mov ebx, N
           75 .start  ; back by 7
           e8 ~end    ; on by 4
           a1 @end
           "a b"
    end:   c3`;
  const hex = 'bb78563412' + '75f9' + 'e808000000' + 'a114000100' + '612062' + 'c3';
  t.equal(assemble(listing, 0x10000, { N: 0x12345678 }).toString('hex'), hex);
});

t.test('what a listing must not have', async (t) => {
  t.throws(() => assemble('75 .nowhere', 0), /nothing is called nowhere/);
  t.throws(() => assemble('bb =N', 0), /nothing is called =N/);
  t.throws(() => assemble('mov eax', 0), /"mov"/);
  t.throws(() => assemble(`75 .far ${'90 '.repeat(128)} far: c3`, 0), { code: 'ERR_OUT_OF_RANGE' });
});

t.test('the image begins as multiboot has it', async (t) => {
  const image = new DataView(guestProgram({ regionBytes: REGION_BYTES }));
  const words = [0, 4, 8].map((at) => image.getUint32(at, true));
  t.equal(words[0], 0x1badb002);
  t.equal((words[0] + words[1] + words[2]) % 2 ** 32, 0, 'the checksum');
});

t.test("the twin's sum is that of all of its words, each by its address", async (t) => {
  const model = new GuestModel(REGION_BYTES);
  model.runTo(1_000_000);
  const sum = model.words.reduce((sum, word, i) => (sum + Math.imul(word, (4 * i) | 1)) | 0, 0);
  t.equal(model.sum, sum);
  t.ok(
    model.words.every((word) => word !== 0),
    'it comes to all of them',
  );
});

/** What the guest says after so many steps. */
function lineOf(number: number, steps: number): string {
  const model = new GuestModel(REGION_BYTES);
  model.runTo(steps);
  const [n, s, sum] = [number, steps, model.sum].map((value) => (value >>> 0).toString(16).padStart(8, '0'));
  return `line ${n} steps ${s} sum ${sum} ok\n`;
}

t.test('a line that is begun in one process is ended in the other, whoever is heard first', async (t) => {
  const heard: [number, string][] = [];
  const console = new GuestConsole(REGION_BYTES, 0, ({ owner, text }) => heard.push([owner, text]));
  const [one, two] = [lineOf(1, 64), lineOf(2, 128)];
  console.take(0, one + two.slice(0, 10));
  console.take(1, two.slice(20));
  console.take(0, two.slice(10, 20));
  t.equal(console.count, 1);
  console.handOver(1);
  t.same(heard, [
    [0, one.trimEnd()],
    [1, two.trimEnd()],
  ]);
});

t.test('a guest that goes on twice is two, each with what had been begun', async (t) => {
  const console = new GuestConsole(REGION_BYTES, 0, () => {});
  const next = lineOf(2, 128);
  console.take(0, lineOf(1, 64) + next.slice(0, 5));
  const [twin, other] = [console.fork(0), console.fork(1)];
  twin.take(0, next.slice(5));
  t.same([twin.count, other.count], [2, 1]);
  other.take(1, next.slice(5));
  t.equal(other.count, 2);
});

for (const [what, wrong] of [
  ['a line is missing', lineOf(2, 64)],
  ['its sum is another one', lineOf(1, 64).replace(/sum ./, 'sum x')],
  ['a step is missing', lineOf(1, 64).replace('steps 00000040', 'steps 0000003f')],
  ['the guest has found something', lineOf(1, 64).replace('ok', 'BAD')],
  ['it is none', 'panic\n'],
]) {
  t.test(`refused: ${what}`, async (t) => {
    const console = new GuestConsole(REGION_BYTES, 0, () => {});
    t.throws(() => console.take(0, wrong), { code: 'ERR_CLI_DIFFERENT', message: /received "/ });
  });
}

t.test('a demo that is too slow for somebody who waits names the bandwidth that it was given', async (t) => {
  for (const code of ['ERR_MULTIFD_STALL', 'ERR_MULTIFD_TIMEOUT'] as const) {
    const thrown = new MultifdError(code, 'nothing came');
    t.match(namingBandwidth(thrown, 1), {
      code,
      message: 'nothing came; option --max-bandwidth: 1 bytes a second may be too few',
      cause: thrown,
    });
    t.equal(namingBandwidth(thrown, 0), thrown);
  }
  const other = new MultifdError('ERR_MULTIFD_EOF', 'it ended');
  t.equal(namingBandwidth(other, 1), other);
});
