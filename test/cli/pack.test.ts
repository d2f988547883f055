/** `multifd pack` and `multifd unpack` as processes of their own. */
import fs from 'node:fs';
import path from 'node:path';
import t from 'tap';
import { readBytes } from '../migration/captures.js';
import { Run, run } from './cli.js';

const MIG = readBytes('q100-mappedram-multifd.mig');

t.test('packed, inspected, and unpacked again', async (t) => {
  const folder = t.testdir({ 'vm.mig': MIG });
  const file = path.join(folder, 'vm.mig');
  const packed = await run(t, ['pack', file, '--json']);
  t.equal(packed.code, 0, packed.stderr);
  const packedBytes = fs.statSync(`${file}.zst`).size;
  t.match(packed.result, { ok: true, out: `${file}.zst`, plainBytes: MIG.length, packedBytes });
  const inspected = await run(t, ['inspect', `${file}.zst`, '--verify', '--direct-io']);
  t.equal(inspected.code, 0, inspected.stderr);
  t.match(inspected.stdout, /^packed +to 1[67]\d KiB, 1\.\d %/m);
  t.match(inspected.stdout, /^machine +pc-i440fx-10\.0$/m);
  fs.rmSync(file);
  const unpacked = await run(t, ['unpack', `${file}.zst`]);
  t.equal(unpacked.code, 0, unpacked.stderr);
  t.match(unpacked.stdout, /^unpacked +[\d.]+ s, /m);
  t.ok(fs.readFileSync(file).equals(MIG));
});

t.test('what is wrong is said in a line that names the option', async (t) => {
  const folder = t.testdir({ 'vm.mig': MIG, text: 'none at all' });
  const file = path.join(folder, 'vm.mig');
  for (const [args, code, message] of [
    [['pack'], 2, /argument|missing/],
    [['pack', file, '--pack-level', '21'], 2, /--pack-level/],
    [['pack', path.join(folder, 'none')], 1, /ERR_MULTIFD_IO/],
    [['pack', path.join(folder, 'text')], 1, /ERR_MULTIFD_STREAM/],
    [['pack', file, '--out', file, '--overwrite'], 1, /option out/],
    [['unpack', file], 1, /not packed/],
    [['unpack', file, '--pack-level', '3'], 2, /--pack-level/],
  ] as const) {
    const { code: ended, stderr } = await run(t, [...args]);
    t.equal(ended, code, `${args.join(' ')}: ${stderr}`);
    t.match(stderr, message);
  }
  t.same(fs.readdirSync(folder).sort(), ['text', 'vm.mig']);
});

t.test('Ctrl-C in the middle: exit code 130, and nothing is left', async (t) => {
  const folder = t.testdir({});
  const file = path.join(folder, 'vm.mig');
  fs.writeFileSync(file, MIG);
  // Random bytes behind the stream: as many as take seconds.
  const tail = Buffer.alloc(2 ** 20, 'a tail that nobody reads ');
  for (let i = 0; i < 300; i++) fs.appendFileSync(file, tail);
  const packing = new Run(t, ['pack', file, '--pack-level', '19', '--json']);
  await packing.line(({ type }) => type === 'progress');
  packing.child.kill('SIGINT');
  const { code } = await packing.ended;
  t.equal(code, 130);
  t.same(fs.readdirSync(folder), ['vm.mig']);
});

t.test('nobody reads the result: it is done all the same, and that is said', async (t) => {
  const folder = t.testdir({ 'vm.mig': MIG });
  const packing = new Run(t, ['pack', path.join(folder, 'vm.mig'), '--no-progress']);
  packing.child.stdout?.destroy();
  const { code, stderr } = await packing.ended;
  t.equal(code, 1);
  t.match(stderr, /^multifd: ERR_CLI_STDOUT: it is done, but stdout was closed/m);
  t.same(fs.readdirSync(folder), ['vm.mig', 'vm.mig.zst']);
});
