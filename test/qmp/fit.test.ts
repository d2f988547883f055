/** requireFit(): what a QEMU that waits says of itself, against what a file needs. */
import t, { type Test } from 'tap';
import { requireFit } from '../../src/qmp/fit.js';
import { Qmp } from '../../src/qmp/qmp.js';
import { answer, fakeQmp, refusal } from './fake-qmp.js';

const MIB = 2 ** 20;

interface Waiting {
  machine?: string;
  memdevs?: unknown;
  /** Of the machine; undefined: it has no such property. */
  backend?: string;
}

async function fits(t: Test, waiting: Waiting, file: Record<string, number>): Promise<string | undefined> {
  const machine = 'pc-q35-10.0';
  const fake = await fakeQmp(t, (command) => {
    const { execute, arguments: args } = command;
    if (execute === 'query-memdev' && waiting.memdevs !== undefined) return answer(command, waiting.memdevs);
    if (args?.property === 'type') return answer(command, `${waiting.machine ?? machine}-machine`);
    if (args?.property === 'memory-backend' && waiting.backend !== undefined)
      return answer(command, waiting.backend);
    return refusal(command, 'not known');
  });
  const qmp = await Qmp.connect({ path: fake.path });
  try {
    const blocks = Object.entries(file).map(([name, mib]) => ({ name, usedLength: mib * MIB }));
    await requireFit(qmp, { machine, blocks });
    return undefined;
  } catch (error) {
    return (error as Error).message;
  } finally {
    qmp.close();
  }
}

const MEM0 = { id: 'mem0', size: 64 * MIB };
const ROM = { 'pc.bios': 1, '0000:00:02.0/vga.vram': 16, 'tpm-ppi': 1, 'a.b': 1 };

t.test('memory of another id, or none: refused, and what to start is said', async (t) => {
  const backend = '/objects/mem0';
  t.equal(await fits(t, { memdevs: [MEM0], backend }, { mem0: 64, ...ROM }), undefined);
  const other = await fits(t, { memdevs: [{ ...MEM0, id: 'mem1' }], backend }, { mem0: 64, ...ROM });
  t.match(
    other,
    /RAM block mem0: received none, but mem1, expected 67108864 bytes, the file's: start QEMU with -machine pc-q35-10.0,memory-backend=mem0 -m 64M -object memory-backend-ram,id=mem0,size=64M -incoming defer$/,
  );
  const module = { 'pc.ram': 64, d0: 128, ...ROM };
  const own = [{ id: 'pc.ram', size: 64 * MIB }];
  t.match(
    await fits(t, { memdevs: own, backend: '/objects/pc.ram' }, module),
    /RAM block d0: received none, /,
  );
  const both = [...own, { id: 'd0', size: 64 * MIB }];
  t.match(
    await fits(t, { memdevs: both, backend: '' }, module),
    /bytes of RAM block d0: received 67108864, /,
  );
  t.match(await fits(t, { memdevs: [MEM0], backend }, { 'pc.ram': 64 }), /RAM block pc.ram: received none/);
  t.match(
    await fits(t, { memdevs: [MEM0], backend }, { '/objects/m': 64 }),
    /RAM block \/objects\/m: received none/,
  );
});

t.test("where QEMU does not tell it, or the name may be a device's, nothing is refused", async (t) => {
  const file = { mem0: 64, ...ROM };
  t.equal(await fits(t, { memdevs: [{ ...MEM0, id: 'mem1' }] }, file), undefined, 'before 5.0');
  t.equal(await fits(t, { backend: '' }, file), undefined);
  t.equal(
    await fits(t, { memdevs: [{ size: 1 }, null], backend: '' }, file),
    undefined,
    'objects without id',
  );
  t.match(
    await fits(t, { memdevs: [], backend: '', machine: 'pc-q35-9.0' }, file),
    /\(: |this QEMU: machine type: [^;]*$/,
  );
});
