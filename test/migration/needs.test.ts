/** What a QEMU is to be started with, as text that is copied: judged by a shell. */
import { spawnSync } from 'node:child_process';
import t from 'tap';
import { commandLineOf, qemuNeeds } from '../../src/migration/needs.js';

const MIB = 2 ** 20;

/** Its words, as a shell takes them. */
function words(command: string): string[] {
  const { stdout, stderr } = spawnSync('sh', ['-c', `printf '%s\\n' ${command}`], { encoding: 'utf8' });
  if (stderr !== '') throw new Error(stderr);
  return stdout.trimEnd().split('\n');
}

function lineOf(machine: string, blocks: Record<string, number> = { 'pc.ram': 16 }): string {
  const list = Object.entries(blocks).map(([name, mib]) => ({ name, usedLength: mib * MIB }));
  return commandLineOf(qemuNeeds({ machine, blocks: list }));
}

t.test('names of the file are one word each to a shell, and one value to QEMU', async (t) => {
  t.equal(lineOf('pc-i440fx-10.0'), '-machine pc-i440fx-10.0 -m 16M -incoming defer');
  for (const name of [
    'pc$(reboot);reboot #',
    "it's `reboot`",
    '-x y',
    'pc&reboot',
    '*',
    '~',
    'a\\',
    'a"b"',
    'a!b',
  ]) {
    t.same(words(lineOf(name)), ['-machine', `type=${name}`, '-m', '16M', '-incoming', 'defer'], name);
  }
  t.equal(words(lineOf('pc,dumpdtb=/etc/passwd'))[1], 'type=pc,,dumpdtb=/etc/passwd');
  t.equal(words(lineOf('dumpdtb=x'))[1], 'type=dumpdtb=x', 'nor a key of its own');
});

t.test('memory that is an object: it is told with its id, and -m where nothing else can be it', async (t) => {
  const q35 = 'pc-q35-10.0';
  const rom = { 'pc.bios': 1, '/rom@etc/acpi/tables': 1, '0000:00:02.0/vga.vram': 16, 'system.flash0': 4 };
  const object = (id: string, size: string): string => `-object memory-backend-ram,id=${id},size=${size}`;
  t.equal(lineOf(q35, { ...rom, 'pc.ram': 64 }), `-machine ${q35} -m 64M -incoming defer`);
  const alone = `-machine ${q35},memory-backend=mem0 -m 192M ${object('mem0', '192M')} -incoming defer`;
  t.equal(lineOf(q35, { mem0: 192, ...rom, 'tpm-ppi': 1 }), alone);
  t.equal(
    lineOf('pc-q35-4.0', { '/objects/mem0': 192, ...rom }),
    alone.replace('10.0', '4.0'),
    'older machine types',
  );
  const module = `-machine ${q35} -m 64M ${object('d0', '128M')} -incoming defer`;
  t.equal(lineOf(q35, { d0: 128, 'pc.ram': 64, ...rom }), module);
  // Which of them are modules, nothing tells.
  const several = `-machine ${q35} ${object('m0', '1024M')} ${object('d0', '512M')} -incoming defer`;
  t.equal(lineOf(q35, { m0: 1024, d0: 512, ...rom }), several);
  t.equal(lineOf('virt-10.0', { 'mach-virt.ram': 64 }), '-machine virt-10.0 -m 64M -incoming defer');
  t.equal(
    lineOf('pseries-10.0', { 'ppc_spapr.ram': 64, x: 1 }),
    '-machine pseries-10.0 -m 64M -incoming defer',
  );
  t.equal(
    lineOf('akita', { sram: 1, flash: 1 }),
    '-machine akita -incoming defer',
    'of devices, on other boards',
  );
});

t.test("a uuid that stands in the configuration is told as libvirt's is", async (t) => {
  const uuid = '00112233-4455-6677-8899-aabbccddeeff';
  const file = {
    machine: 'x',
    blocks: [],
    configuration: { uuid: Buffer.from(uuid.replaceAll('-', ''), 'hex') },
  };
  t.equal(commandLineOf(qemuNeeds(file)), `-machine x -uuid ${uuid} -incoming defer`);
  t.equal(qemuNeeds({ ...file, configuration: {} }).uuid, undefined);
});
