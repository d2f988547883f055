/** SWITCHOVER_ACK where it is owed: the rule, and what a source hears that opens the return path. */
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import t, { type Test } from 'tap';
import { type Address, type SwitchoverAck, receiveMigration, relayMigration } from '../../src/index.js';
import { AckOwed } from '../../src/migration/switchover-ack.js';
import { checkAddress } from '../../src/transport/address.js';
import { Run } from '../cli/cli.js';
import { eventually } from '../support/raw-channel.js';
import { within } from '../support/within.js';
import { streamsOf } from './captures.js';
import { some } from '../support/some.js';

const WAIT_MS = 20_000;
const ACK = '00070000';
const SHUT_0 = '0001000400000000';
/** pages_alloc of SYNC packets. */
const OLD_PROGRAM = 128;
const NEW_PROGRAM = 0;

t.test('the rule: machine types, programs, each at once or after the first SYNC', async (t) => {
  const owed = (machine: string | undefined, syncs: number[], when: SwitchoverAck = 'auto'): string => {
    const ack = new AckOwed(when);
    const said = [ack.atOpen(machine), ...syncs.map((pagesAlloc) => ack.afterSync(pagesAlloc))];
    return said.map((yes) => (yes ? 'A' : '-')).join('');
  };
  for (const machine of ['pc-i440fx-7.2', 'pc-q35-8.0', 'virt-5.2', 'pseries-2.12-sxxm']) {
    t.equal(owed(machine, [NEW_PROGRAM, NEW_PROGRAM]), '-A-', `${machine}, program >= 9.2`);
    t.equal(owed(machine, [OLD_PROGRAM, NEW_PROGRAM]), '---', `${machine}, an older one`);
  }
  for (const machine of ['pc-i440fx-8.1', 'pc-q35-9.0+pve0', 'virt-10.2', 's390-ccw-virtio-11.0']) {
    for (const program of [OLD_PROGRAM, NEW_PROGRAM]) t.equal(owed(machine, [program]), 'A-', machine);
  }
  const none = ['pc-i440fx-11.1', 'pc-q35-11.2', 'virt-11.1', 'virt-12.0', 'microvm', 'pc-q35-rhel9.6.0'];
  for (const machine of [...none, undefined]) {
    for (const program of [OLD_PROGRAM, NEW_PROGRAM]) t.equal(owed(machine, [program]), '--', `${machine}`);
  }
  for (const machine of ['pc-i440fx-7.2', 'pc-i440fx-10.0', 'pc-i440fx-11.1', undefined]) {
    t.equal(owed(machine, [NEW_PROGRAM], 'always'), 'A-', `${machine}`);
    t.equal(owed(machine, [NEW_PROGRAM], 'never'), '--', `${machine}`);
  }
  const again = new AckOwed('auto');
  t.same([again.atOpen('virt-9.0'), again.atOpen('virt-9.0')], [true, false], 'once for a source');
});

interface Case {
  capture: string;
  /** In the place of the capture's own. */
  machine?: string;
  receive?: SwitchoverAck;
  relay?: SwitchoverAck;
  acks: number;
  /** The same with a relay between, where it is not the same. */
  relayed?: number;
}

const CASES: Case[] = [
  { capture: 'q100-none', acks: 1 },
  { capture: 'q100-none', machine: 'pc-i440fx-11.0', acks: 1 },
  { capture: 'q100-none', machine: 'pc-i440fx-11.1', acks: 0 },
  { capture: 'q100-none', machine: 'pc-q35-noble', acks: 0 },
  { capture: 'q100-none-machine72', acks: 1 },
  { capture: 'q72-none', acks: 0 },
  { capture: 'q72-none', receive: 'always', acks: 1 },
  { capture: 'q100-none', receive: 'never', acks: 0 },
  { capture: 'q100-none', relay: 'never', acks: 1, relayed: 0 },
  { capture: 'q100-none', machine: 'pc-i440fx-11.1', relay: 'always', acks: 0, relayed: 1 },
  { capture: 'q100-none', receive: 'always', relay: 'always', acks: 1 },
];

for (const [index, it] of CASES.entries()) {
  for (const relayed of some([false, true], 2, index % 2)) {
    const { capture, machine, receive = 'auto', relay = 'auto', acks } = it;
    const who = `${capture}${machine === undefined ? '' : ` as ${machine}`}, receive ${receive}`;
    const expected = relayed ? (it.relayed ?? acks) : acks;
    const title = `${who}${relayed ? `, relay ${relay}` : ''}: the source gets ${expected} SWITCHOVER_ACK`;
    t.test(title, async (t) => {
      const out = path.join(folder(t), 'vm.mig');
      const sink = await listening((onListening) =>
        receiveMigration({ address: { port: 0 }, channels: 2, out, switchoverAck: receive, onListening }),
      );
      const { address, result } = relayed
        ? await listening((onListening) =>
            relayMigration({ listen: { port: 0 }, to: sink.address, switchoverAck: relay, onListening }),
          )
        : sink;
      const all = playAndHear(t, address, capture, machine);
      await within(Promise.all([result, sink.result]), WAIT_MS, 'the migration');
      await eventually(() => all().endsWith(SHUT_0), 'SHUT comes in');
      t.equal(all(), ACK.repeat(expected) + SHUT_0);
    });
  }
}

t.test('the commands take the option: receive with never, relay with always', async (t) => {
  const files = folder(t);
  const args = (name: string, ...more: string[]): string[] => [
    ...[name, '--listen', 'tcp:127.0.0.1:0', '--switchover-ack', ...more, '--json', '--no-progress'],
  ];
  const address = async (command: Run): Promise<string> =>
    (await command.line((line) => line.type === 'listening')).address as string;
  const receive = new Run(t, args('receive', 'never', '--out', path.join(files, 'a.mig')));
  const heard = playAndHear(t, checkAddress(await address(receive), 1), 'q100-none');
  t.equal((await within(receive.ended, WAIT_MS, 'multifd receive')).code, 0);
  t.equal(heard(), SHUT_0);
  const sink = new Run(t, args('receive', 'never', '--out', path.join(files, 'b.mig')));
  const relay = new Run(t, args('relay', 'always', '--to', await address(sink)));
  const passed = playAndHear(t, checkAddress(await address(relay), 1), 'q100-none');
  t.equal((await within(relay.ended, WAIT_MS, 'multifd relay')).code, 0);
  t.equal((await within(sink.ended, WAIT_MS, 'multifd receive')).code, 0);
  t.equal(passed(), ACK + SHUT_0);
});

t.test('another word for the option is refused', async (t) => {
  const error = {
    code: 'ERR_MULTIFD_OPTION',
    message: /switchoverAck: given "maybe", allowed auto, always, never/,
  };
  const switchoverAck = 'maybe' as SwitchoverAck;
  await t.rejects(receiveMigration({ address: { port: 0 }, channels: 1, out: '/x', switchoverAck }), error);
  await t.rejects(relayMigration({ listen: 'tcp:127.0.0.1:0', to: 'tcp:127.0.0.1:1', switchoverAck }), error);
});

/** Plays the capture as a source that opens the return path. @returns what has come back so far, in hex */
function playAndHear(t: Test, address: Address, capture: string, machine?: string): () => string {
  const streams = streamsOf({ name: capture, compression: 'none' });
  const heard: Buffer[] = [];
  const all = (): string => Buffer.concat(heard).toString('hex');
  const sockets = [withReturnPath(streams.main, machine), ...streams.channels].map((bytes) => {
    const socket = net.connect(address as net.NetConnectOpts).on('error', () => {});
    t.teardown(() => socket.destroy());
    socket.on('data', (chunk) => {
      heard.push(chunk);
      // As QEMU does: it leaves all open until it is told.
      if (all().endsWith(SHUT_0)) for (const each of sockets) each.end();
    });
    socket.write(bytes);
    return socket;
  });
  return all;
}

/** OPEN_RETURN_PATH behind the configuration, which is the machine's name alone: header 8, 07, length, name. */
function withReturnPath(main: Buffer, machine?: string): Buffer {
  const configured = 8 + 1 + 4 + main.readUInt32BE(9);
  const name = Buffer.from(machine ?? main.toString('latin1', 13, configured));
  const length = Buffer.alloc(4);
  length.writeUInt32BE(name.length);
  const command = Buffer.from('0800010000', 'hex');
  return Buffer.concat([main.subarray(0, 9), length, name, command, main.subarray(configured)]);
}

function folder(t: Test): string {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'multifd-ack-'));
  t.teardown(() => fs.rmSync(directory, { recursive: true, force: true }));
  return directory;
}

/** A call that listens: resolves with its address, and has its result beside it. */
async function listening<T>(
  call: (onListening: (address: Address) => void) => Promise<T>,
): Promise<{ address: Address; result: Promise<T> }> {
  let result!: Promise<T>;
  const address = await new Promise<Address>((resolve, reject) => {
    result = call(resolve);
    result.catch(reject);
  });
  return { address, result };
}
