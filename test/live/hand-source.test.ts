/** What a destination of a live migration refuses of a source that does not do as ours do; made by hand, stream and all. */
import net from 'node:net';
import t, { type Test } from 'tap';
import {
  createMigrationDestination,
  createSender,
  type MigrationDestination,
  type MigrationDestinationOptions,
} from '../../src/index.js';
import { encodeDeviceSection, encodeEnd, type DeviceState } from '../../src/live/device-sections.js';
import { MainStreamBuilder, encodeCommand, encodePageRecord } from '../../src/stream/main-writer.js';
import { COMMAND_OPEN_RETURN_PATH } from '../../src/stream/records.js';
import { within } from '../support/within.js';
import { MACHINE, PAGES, SIZE, WAIT_MS, failure } from './scene.js';

const PAGE = 4096;
const SHUT_0 = Buffer.from('0001000400000000', 'hex');
const SHUT_1 = Buffer.from('0001000400000001', 'hex');
const cpu: DeviceState = {
  device: { idstr: 'cpu', instanceId: 0, version: 1 },
  data: Buffer.from('state'),
};

interface Play {
  /** Without its return path. */
  untold?: boolean;
  withoutConfiguration?: boolean;
  /** Pages over the channels, of 64. */
  pages?: number;
  /** On the main stream, within PART. */
  records?: Buffer;
  tail?: Buffer;
}

interface Played {
  destination: MigrationDestination;
  notes: string[];
  there: SharedArrayBuffer;
  back: () => Buffer;
}

const configuration = { machine: MACHINE };

function tailOf(states: DeviceState[]): Buffer {
  const sections = states.flatMap((state, index) => encodeDeviceSection(1 + index, state));
  return Buffer.concat([...sections, encodeEnd(states, configuration, PAGE)]);
}

async function play(t: Test, how: Play): Promise<Played> {
  const notes: string[] = [];
  const there = new SharedArrayBuffer(SIZE);
  const destination = await createMigrationDestination({
    listen: { host: '127.0.0.1', port: 0 },
    machine: MACHINE,
    blocks: [{ name: 'ram', memory: there }],
    devices: [{ idstr: 'cpu', load: () => void notes.push('load') }],
    start: () => void notes.push('start'),
  } satisfies MigrationDestinationOptions);
  t.teardown(() => destination.cancel());
  const back: Buffer[] = [];
  const main = net.connect(destination.address as net.NetConnectOpts);
  main.on('error', () => {}).on('data', (bytes) => back.push(bytes));
  t.teardown(() => main.destroy());
  const builder = new MainStreamBuilder(
    {
      configuration: how.withoutConfiguration === true ? undefined : configuration,
      blocks: [{ name: 'ram', usedLength: SIZE }],
      sectionId: 0,
      footers: true,
    },
    { marker: 'flush', switchoverStart: true },
  );
  main.write(builder.setup(how.untold === true ? [] : [encodeCommand(COMMAND_OPEN_RETURN_PATH)]));
  const here = new SharedArrayBuffer(SIZE);
  new Uint8Array(here).fill(7);
  const send = async (): Promise<void> => {
    const sender = await createSender({
      address: destination.address,
      blocks: [{ name: 'ram', memory: here }],
    });
    t.teardown(() => sender.close());
    await sender.sync();
    main.write(builder.endSection());
    main.write(builder.part());
    main.write(how.records ?? Buffer.alloc(0));
    await sender.queueRange('ram', 0, (how.pages ?? PAGES) * PAGE);
    await sender.sync();
    main.write(builder.endSection());
    main.write(builder.end());
    await sender.sync();
    main.write(builder.endSection());
    main.write(how.tail ?? tailOf([cpu]));
  };
  // It may be refused at any step.
  void send().catch(() => {});
  return { destination, notes, there, back: () => Buffer.concat(back) };
}

t.test('one that does all as ours do: its guest is started, and it is told', async (t) => {
  const { destination, notes, there, back } = await play(t, {});
  await within(destination.done, WAIT_MS, 'done');
  t.same(notes, ['load', 'start']);
  t.ok(new Uint8Array(there).every((byte) => byte === 7));
  t.ok(back().includes(SHUT_0));
});

t.test('pages of the main stream are taken as well', async (t) => {
  const page = Buffer.alloc(PAGE, 9);
  const records = Buffer.concat([encodePageRecord('ram', (PAGES - 1) * PAGE, false), page]);
  const { destination, there } = await play(t, { pages: PAGES - 1, records });
  await within(destination.done, WAIT_MS, 'done');
  t.ok(Buffer.from(there, SIZE - PAGE).equals(page));
  t.equal(new Uint8Array(there)[SIZE - PAGE - 1], 7);
});

const REFUSED: Record<string, [Play, RegExp]> = {
  'a page that never came': [
    { pages: PAGES - 1 },
    /^RAM block "ram": pages that have come by ram's END: received 63, expected 64/,
  ],
  'no return path': [{ untold: true }, /^command OPEN_RETURN_PATH: received none/],
  'no configuration': [
    { withoutConfiguration: true },
    /^configuration: received none, expected machine "model-1.0" \(option machine\)/,
  ],
  'a device twice': [
    { tail: tailOf([cpu, cpu]) },
    /^device "cpu" 0: sections: received a second one, expected one/,
  ],
  'a section that is none': [{ tail: Buffer.of(0x55) }, /^devices' state at byte 0: section: received/],
  'the footer of another section': [
    {
      tail: Buffer.concat([...encodeDeviceSection(1, cpu).slice(0, 3), Buffer.from('7e00000002', 'hex')]),
    },
    /^device "cpu" 0: section id of its footer: received 2, expected 1/,
  ],
  'no description': [
    { tail: Buffer.concat([...encodeDeviceSection(1, cpu), Buffer.of(0, 0)]) },
    /^behind EOF: section: received|^behind EOF: received/,
  ],
  'an endless device': [
    {
      tail: Buffer.concat([encodeDeviceSection(1, cpu)[0], Buffer.from('fffffffe', 'hex')]),
    },
    /^device "cpu" 0: bytes of its state: received 4294967294, expected at most/,
  ],
};

for (const [name, [how, message]] of Object.entries(REFUSED)) {
  t.test(`${name}: refused, and nothing is loaded or started`, async (t) => {
    const { destination, notes, back } = await play(t, how);
    const error = await failure(destination.done);
    t.match(error, { code: 'ERR_MULTIFD_STREAM', message });
    t.same(notes, []);
    t.notOk(back().includes(SHUT_0));
    if (how.untold !== true && how.withoutConfiguration !== true) t.ok(back().includes(SHUT_1), 'it is told');
  });
}

t.test('a stream that ends anywhere behind RAM starts nothing', async (t) => {
  const tail = tailOf([cpu]);
  for (const length of [0, 1, 20, tail.length - 1]) {
    const { destination, notes } = await play(t, { tail: tail.subarray(0, length) });
    await within(
      new Promise<void>((resolve) => {
        const timer = setInterval(() => {
          if (destination.stats().syncs < 6) return;
          clearInterval(timer);
          resolve();
        }, 5);
      }),
      WAIT_MS,
      'all of RAM',
    );
    await destination.cancel();
    t.same(notes, [], `${length} bytes of it`);
  }
});
