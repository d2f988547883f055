import t from 'tap';
import { machineRules, machineVersion, parseQemuVersion, toldPageSize } from '../../src/stream/machine.js';

t.test("a machine type's version is read from its name", async (t) => {
  const cases: [name: string, version: string | undefined][] = [
    ['pc-i440fx-7.2', '7.2'],
    ['pc-q35-10.0', '10.0'],
    ['virt-9.2', '9.2'],
    ['s390-ccw-virtio-8.1', '8.1'],
    ['pseries-2.12-sxxm', '2.12'],
    ['pc-q35-9.0+pve0', '9.0'],
    ['pc-i440fx-jammy', undefined],
    ['pc-q35-rhel9.4.0', undefined],
    ['microvm', undefined],
    ['raspi4b', undefined],
    ['none', undefined],
    ['pc-i440fx-10', undefined],
    ['x-99999.1', undefined],
    ['', undefined],
  ];
  for (const [name, version] of cases) {
    const read = machineVersion(name);
    t.equal(read && `${read.major}.${read.minor}`, version, name);
  }
});

t.test("a program's version is read as QEMU prints it", async (t) => {
  t.same(parseQemuVersion('7.2'), { major: 7, minor: 2 });
  t.same(parseQemuVersion('10.0.2'), { major: 10, minor: 0 });
  for (const text of ['', '7', 'v7.2', '7.2.1.1', '7.2-rc1', ' 7.2'])
    t.equal(parseQemuVersion(text), undefined);
});

t.test('marker, zero pages and switchover change with the versions of the table', async (t) => {
  const rules = (name: string): unknown[] => {
    const { marker, zeroPageDetection, switchoverStart, tlsBye } = machineRules(name);
    return [marker, zeroPageDetection, switchoverStart, tlsBye];
  };
  t.same(rules('pc-i440fx-2.12'), ['eos', 'legacy', false, false]);
  t.same(rules('pc-i440fx-7.2'), ['eos', 'legacy', false, false]);
  t.same(rules('pc-i440fx-8.0'), ['eos', 'legacy', false, false]);
  t.same(rules('pc-i440fx-8.1'), ['flush', 'legacy', false, false]);
  t.same(rules('virt-8.2'), ['flush', 'legacy', false, false]);
  t.same(rules('virt-9.0'), ['flush', 'multifd', false, false]);
  t.same(rules('pc-q35-9.2'), ['flush', 'multifd', false, false]);
  t.same(rules('pc-q35-10.0'), ['flush', 'multifd', true, true]);
  t.same(rules('pc-q35-11.1'), ['flush', 'multifd', true, true]);
});

t.test('an older program than the machine type asks for wins', async (t) => {
  const peer = { major: 7, minor: 2 };
  t.match(machineRules('pc-i440fx-10.0', peer), {
    version: { major: 7, minor: 2 },
    marker: 'eos',
    zeroPageDetection: 'legacy',
    switchoverStart: false,
  });
  t.match(machineRules('pc-i440fx-7.2', { major: 10, minor: 0 }), {
    version: { major: 7, minor: 2 },
    marker: 'eos',
    zeroPageDetection: 'legacy',
  });
  t.match(machineRules('pc-i440fx-8.2', { major: 8, minor: 10 }), { version: { major: 8, minor: 2 } });
});

t.test('a name without a version gets what works most widely, or what the program does', async (t) => {
  for (const name of ['microvm', 'pc-q35-noble', '', undefined]) {
    t.same(machineRules(name), {
      version: undefined,
      marker: 'flush',
      zeroPageDetection: 'legacy',
      switchoverStart: false,
      tlsBye: false,
    });
    t.match(machineRules(name, { major: 7, minor: 2 }), { version: { major: 7 }, marker: 'eos' });
    t.match(machineRules(name, { major: 10, minor: 0 }), {
      marker: 'flush',
      zeroPageDetection: 'multifd',
      switchoverStart: true,
    });
  }
});

t.test(
  'the page size is told by the page bits, or by the name of a machine whose target has only one',
  (t) => {
    t.equal(toldPageSize({ machine: 'virt-10.0', targetPageBits: 16 }), 65536);
    for (const machine of ['clipper', 'sun4u', 'sun4v', 'or1k-sim']) t.equal(toldPageSize({ machine }), 8192);
    for (const machine of [
      'pc-i440fx-7.2',
      'pc-q35-11.1',
      's390-ccw-virtio-9.2',
      'pseries-10.0',
      'microvm',
    ]) {
      t.equal(toldPageSize({ machine }), 4096);
    }
    for (const machine of ['virt', 'virt-10.0', 'malta', 'xpc-q35-9.0', ''])
      t.equal(toldPageSize({ machine }), undefined);
    t.equal(toldPageSize(undefined), undefined);
    t.end();
  },
);
