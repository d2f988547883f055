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
