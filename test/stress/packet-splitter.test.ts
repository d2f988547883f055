/** A channel's bytes cut into its packets, of real QEMUs, however they come; and what a fault does to them. */
import t from 'tap';
import { PacketSplitter, type Unit } from '../../src/stress/packet-splitter.js';
import { QEMU_FAULTS, qemuPlan } from '../../src/stress/qemu-plan.js';
import { CAPTURES, streamsOf } from '../migration/captures.js';

const PAGE_SIZE = 4096;

for (const capture of CAPTURES) {
  const { main, channels } = streamsOf(capture);
  t.test(`${capture.name}: every packet is one, in pieces of any size`, async (t) => {
    for (const bytes of channels) {
      const whole = new PacketSplitter(PAGE_SIZE).push(bytes);
      t.ok(
        Buffer.concat(whole.map((unit) => unit.bytes)).equals(bytes),
        'nothing is left, nothing is changed',
      );
      t.equal(whole[0].kind, 'hello');
      const packets = whole.slice(1);
      t.ok(packets.length > 2 && packets.every((unit) => unit.kind === 'packet'));
      for (const { bytes: packet } of packets) t.equal(packet.readUInt32BE(0), 0x11223344);
      // What has come of a packet is put together anew with each piece: of bytes one by one the headers are enough.
      for (const [size, most] of [
        [1, 5_000],
        [63, 100_000],
        [1345, Infinity],
        [70_000, Infinity],
      ]) {
        const splitter = new PacketSplitter(PAGE_SIZE);
        const units: Unit[] = [];
        const end = Math.min(most, bytes.length);
        for (let at = 0; at < end; at += size)
          units.push(...splitter.push(bytes.subarray(at, Math.min(end, at + size))));
        const expected = new PacketSplitter(PAGE_SIZE).push(bytes.subarray(0, end));
        t.same(lengths(units), lengths(expected), `pieces of ${size}`);
        t.equal(splitter.isMain, false);
      }
    }
    const splitter = new PacketSplitter(PAGE_SIZE);
    t.ok(Buffer.concat(splitter.push(main).map((unit) => unit.bytes)).equals(main));
    t.equal(splitter.isMain, true);
  });
}

t.test(
  'a plan follows from seed and run; every kind comes; only those of the main stream are counted there',
  async (t) => {
    t.same(qemuPlan(1, 5, 2), qemuPlan(1, 5, 2));
    const plans = Array.from({ length: 300 }, (_, run) => qemuPlan(1, run, 3));
    t.same([...new Set(plans.map(({ kind }) => kind))].sort(), [...QEMU_FAULTS].sort());
    t.same([...new Set(plans.map(({ channel }) => String(channel)))].sort(), ['0', '1', '2', 'main']);
    for (const { kind, channel } of plans) if (channel === 'main') t.match(kind, /^(cut-byte|flip|delay)$/);
  },
);

function lengths(units: readonly Unit[]): number[] {
  return units.map((unit) => unit.bytes.length);
}
