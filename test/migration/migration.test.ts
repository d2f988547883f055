/** Migrations from end to end, with the captures of real QEMUs as the source. */
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import t, { type Test } from 'tap';
import {
  type Address,
  describeMigrationFile,
  readMappedRam,
  receiveMigration,
  relayMigration,
  sendMigration,
} from '../../src/index.js';
import { encodeFileHeader } from '../../src/stream/configuration.js';
import { encodeEos, encodeFooter, encodeSection } from '../../src/stream/main-writer.js';
import { MappedRamWriter } from '../../src/mapped-ram/writer.js';
import { analyze } from '../support/analyze.js';
import { eventually } from '../support/raw-channel.js';
import { within } from '../support/within.js';
import { CAPTURES, PC_RAM, play, ramOf, readBytes, streamsOf, tailOf } from './captures.js';
import { some } from '../support/some.js';

const WAIT_MS = 20_000;

function folder(t: Test): string {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'multifd-migration-'));
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

const TCP = { port: 0 };

/** Where the VM description begins. */
const jsonAt = (stream: Buffer): number => stream.indexOf('{', stream.lastIndexOf(0));

for (const capture of CAPTURES) {
  for (const order of [
    ['main', 0, 1],
    [1, 0, 'main'],
  ] as ('main' | number)[][]) {
    t.test(`${capture.name}, ${order.join(' ')}: received into a file that is sound and equal`, async (t) => {
      const out = path.join(folder(t), 'vm.mig');
      const { address, result } = await listening((onListening) =>
        receiveMigration({ address: TCP, channels: 2, compression: capture.compression, out, onListening }),
      );
      const streams = streamsOf(capture);
      await play(address, streams, order);
      const received = await within(result, WAIT_MS, 'receiveMigration()');
      t.match(received.machine, /^pc-i440fx-/);
      t.equal(received.returnPath, false);
      t.ok((await ramOf(out)).equals(PC_RAM), 'RAM');
      const tail = await tailOf(out);
      // Up to the description's length; what it says more than the source's is all that differs.
      const { main } = streams;
      const [devices, theirs] = [tail, main].map((bytes) => bytes.subarray(0, jsonAt(bytes) - 4));
      t.ok(
        devices.length > 1000 && theirs.subarray(-devices.length).equals(devices),
        'devices, byte for byte',
      );
      const { configuration, ...rest } = JSON.parse(tail.toString('utf8', jsonAt(tail))) as object & {
        configuration: { subsections: unknown[] };
      };
      t.equal(configuration.subsections.length, 1);
      t.match(JSON.parse(main.toString('utf8', jsonAt(main))), rest);
      const analyzed = analyze(fs.readFileSync(out));
      t.equal(analyzed.ram.get('pc.ram'), createHash('sha256').update(PC_RAM).digest('hex'));
      t.same(
        analyzed.capabilities,
        ['mapped-ram'],
        "and a reader in the manner of QEMU's script goes through it",
      );
      t.same(fs.readdirSync(path.dirname(out)), ['vm.mig'], 'and nothing beside it');
      t.equal(received.blocks.find(({ name }) => name === 'pc.ram')?.presentPages, 80, 'present pages');
    });
  }
}

for (const name of ['q100-mappedram-multifd', 'q100-mappedram-single']) {
  for (const mode of ['multifd', 'legacy', 'none'] as const) {
    t.test(`${name}: QEMU's own file sent on, zero pages ${mode}, twice, and received equal`, async (t) => {
      const directory = folder(t);
      const file = path.join(directory, 'qemu.mig');
      fs.writeFileSync(file, readBytes(`${name}.mig`));
      for (const compression of ['none', 'zstd'] as const) {
        const out = path.join(directory, `${compression}.mig`);
        const { address, result } = await listening((onListening) =>
          receiveMigration({ address: TCP, channels: 3, compression, out, onListening }),
        );
        const sending = sendMigration({
          file,
          to: address,
          channels: 3,
          compression,
          zeroPageDetection: mode,
        });
        const sent = await within(sending, WAIT_MS, 'sendMigration()');
        const received = await within(result, WAIT_MS, 'receiveMigration()');
        t.equal(received.returnPath, true, 'the return path told the truth');
        t.equal(sent.zeroPageDetection, mode);
        t.ok((await ramOf(out)).equals(PC_RAM), 'RAM');
        t.ok((await tailOf(out)).equals(await tailOf(file)), 'devices');
        t.equal(sent.stats.zeroPages > 0, mode === 'multifd', 'where zero pages went');
      }
    });
  }
}

t.test(
  'a page that the file has is sent as it is, and looked at again only where that is asked for',
  async (t) => {
    const directory = folder(t);
    const file = path.join(directory, 'qemu.mig');
    const bytes = readBytes('q100-mappedram-multifd.mig');
    fs.writeFileSync(file, bytes);
    const [block] = (await readMappedRam(file)).blocks;
    // All of its pages are there now, and those that were not read as zero.
    bytes.fill(0xff, block.bitmapOffset, block.bitmapOffset + block.pageCount / 8);
    const { zeroPages } = block;
    t.ok(zeroPages > 0);
    fs.writeFileSync(file, bytes);
    for (const asked of [undefined, 'multifd'] as const) {
      const out = path.join(directory, `${asked}.mig`);
      const { address, result } = await listening((onListening) =>
        receiveMigration({ address: TCP, channels: 2, out, onListening }),
      );
      const sending = sendMigration({
        file,
        to: address,
        channels: 2,
        ...(asked !== undefined && { zeroPageDetection: asked }),
      });
      await within(sending, WAIT_MS, 'sendMigration()');
      const { blocks } = await within(result, WAIT_MS, 'receiveMigration()');
      const there = blocks.find(({ name }) => name === block.name)?.presentPages;
      t.equal(there, asked === undefined ? block.pageCount : block.presentPages, `pages, ${asked}`);
      t.ok((await ramOf(out)).equals(PC_RAM), 'RAM');
    }
  },
);

for (const capture of some(CAPTURES, 3)) {
  t.test(`${capture.name}: relayed with other channels and zstd, received equal`, async (t) => {
    const out = path.join(folder(t), 'vm.mig');
    const sink = await listening((onListening) =>
      receiveMigration({ address: TCP, channels: 3, compression: 'zstd', out, onListening }),
    );
    const relay = await listening((onListening) =>
      relayMigration({
        listen: TCP,
        to: sink.address,
        in: { channels: 2, compression: capture.compression },
        out: { channels: 3, compression: 'zstd' },
        onListening,
      }),
    );
    await play(relay.address, streamsOf(capture), [0, 'main', 1]);
    const [relayed] = await within(Promise.all([relay.result, sink.result]), WAIT_MS, 'relay and receiver');
    t.equal(relayed.received.normalPages, relayed.sent.normalPages);
    t.ok((await ramOf(out)).equals(PC_RAM), 'RAM');
  });
}

// ---- what goes wrong ----

const capture = CAPTURES[2];
const streams = streamsOf(capture);
const BROKEN: Record<string, { streams: typeof streams; compression?: 'none' | 'zlib'; code: RegExp }> = {
  'the main stream ends in the devices': {
    streams: { ...streams, main: streams.main.subarray(0, streams.main.length - 100) },
    code: /ERR_MULTIFD_EOF/,
  },
  'the main stream ends in RAM': {
    streams: { ...streams, main: streams.main.subarray(0, 200) },
    code: /ERR_MULTIFD_EOF/,
  },
  'a channel is cut': {
    streams: { ...streams, channels: [streams.channels[0].subarray(0, 5000), streams.channels[1]] },
    code: /ERR_MULTIFD_EOF/,
  },
  'the method is another': { streams, compression: 'zlib', code: /ERR_MULTIFD_METHOD/ },
};

for (const [name, { streams, compression = capture.compression, code }] of Object.entries(BROKEN)) {
  for (const keepPartial of [false, true]) {
    t.test(`${name}, ${keepPartial ? 'the partial file kept' : 'nothing kept'}: a clear error`, async (t) => {
      const out = path.join(folder(t), 'vm.mig');
      const { address, result } = await listening((onListening) =>
        receiveMigration({ address: TCP, channels: 2, compression, out, keepPartial, onListening }),
      );
      const { closed } = await play(address, streams);
      await t.rejects(within(result, WAIT_MS, 'receiveMigration()'), { name: 'MultifdError', code });
      await within(closed, WAIT_MS, 'every connection ends');
      t.same(fs.readdirSync(path.dirname(out)), keepPartial ? ['vm.mig.part'] : []);
    });
  }
}

/** A file of two blocks whose pages are of another size; block `a` has data in each odd page. */
async function fileOf(file: string, machine: string, pageSize: number): Promise<void> {
  const handle = await fs.promises.open(file, 'w+');
  const writer = new MappedRamWriter(handle, { pageSize });
  const blocks = ['a', 'b'].map((name) => ({ name, usedLength: 64 * pageSize }));
  const sizes = { at: 0, raw: Buffer.alloc(0) };
  await writer.accept({ kind: 'header', ...sizes, raw: encodeFileHeader() });
  await writer.accept({ kind: 'configuration', configuration: { machine }, ...sizes });
  await writer.accept({
    kind: 'section',
    section: 'start',
    sectionId: 1,
    ...sizes,
    raw: encodeSection('start', 1),
  });
  await writer.accept({ kind: 'mem-size', total: 128 * pageSize, blocks, ...sizes });
  const eos = { kind: 'eos', sync: false, at: 0, raw: encodeEos() } as const;
  const footer = { kind: 'footer', sectionId: 1, at: 0, raw: encodeFooter(1) } as const;
  await writer.accept({ ...eos, section: 'start' });
  await writer.accept(footer);
  await writer.accept({
    kind: 'section',
    section: 'end',
    sectionId: 1,
    ...sizes,
    raw: encodeSection('end', 1),
  });
  await writer.accept({ ...eos, section: 'end' });
  await writer.accept(footer);
  const json = '{"devices": []}';
  await writer.accept({ kind: 'tail', at: 0, raw: Buffer.from(`\0\x06\0\0\0\x0f${json}`) });
  const words = new Int32Array(2).fill(0xaaaaaaaa);
  for (let page = 1; page < 64; page += 2) {
    const at = (writer.blocks?.[0].pagesOffset ?? 0) + page * pageSize;
    await handle.write(Buffer.alloc(pageSize, page), 0, pageSize, at);
  }
  await writer.finish(({ name }) => (name === 'a' ? words : new Int32Array(2)));
  await handle.close();
}

for (const [machine, pageSize, given] of [
  ['clipper', 8192, undefined],
  ['sun4u', 8192, 8192],
  ['somewhat', 16384, 16384],
] as const) {
  const how = given === undefined ? 'by its name' : 'as told';
  t.test(
    `a guest of machine ${machine} has pages of ${pageSize} bytes, ${how}: sent, relayed, received`,
    async (t) => {
      const directory = folder(t);
      const [file, out] = ['in.mig', 'out.mig'].map((name) => path.join(directory, name));
      await fileOf(file, machine, pageSize);
      const size = given === undefined ? {} : { pageSize: given };
      const sink = await listening((onListening) =>
        receiveMigration({ address: TCP, compression: 'zstd', out, onListening, ...size }),
      );
      const relay = await listening((onListening) =>
        relayMigration({ listen: TCP, to: sink.address, out: { compression: 'zstd' }, onListening, ...size }),
      );
      await within(sendMigration({ file, to: relay.address }), WAIT_MS, 'sendMigration()');
      t.equal((await within(relay.result, WAIT_MS, 'relayMigration()')).pageSize, pageSize);
      const received = await within(sink.result, WAIT_MS, 'receiveMigration()');
      t.equal(received.pageSize, pageSize);
      t.equal(received.blocks[0].presentPages, 32);
      const ram = await ramOf(out, 'a');
      t.ok(ram.equals(await ramOf(file, 'a')), 'RAM');
      t.equal(ram[ram.length - 1], 63);
      t.equal((await readMappedRam(out)).pageSize, pageSize);
    },
  );
}

t.test('a wrong page size is refused, and the message names the option', async (t) => {
  const directory = folder(t);
  const file = path.join(directory, 'in.mig');
  for (const [machine, pageSize, given, code] of [
    ['sun4u', 8192, 4096, 'ERR_MULTIFD_STREAM'],
    ['pc-q35-10.0', 4096, 8192, 'ERR_MULTIFD_STREAM'],
    // Nothing tells, but that packets do not begin where they should.
    ['somewhat', 8192, undefined, 'ERR_MULTIFD_MAGIC'],
  ] as const) {
    await fileOf(file, machine, pageSize);
    const out = path.join(directory, 'out.mig');
    const size = given === undefined ? {} : { pageSize: given };
    const sink = await listening((onListening) =>
      receiveMigration({ address: TCP, out, onListening, channels: 1, ...size }),
    );
    sendMigration({ file, to: sink.address, channels: 1 }).catch(() => {});
    const message = /received 8192, expected 4096|received 4096, expected 8192|another size than 4096/;
    const refused = await within(sink.result, WAIT_MS, 'receiveMigration()').catch((error: unknown) => error);
    t.match(refused, { code, message }, machine);
    t.match((refused as Error).message, 'option pageSize, --page-size');
  }
});

t.test('a file that is there already is not overwritten, unless that is asked for', async (t) => {
  const out = path.join(folder(t), 'vm.mig');
  fs.writeFileSync(out, 'precious');
  const options = { address: TCP, channels: 2, compression: capture.compression, out };
  await t.rejects(receiveMigration(options), { code: 'ERR_MULTIFD_IO', message: /exists already/ });
  t.equal(fs.readFileSync(out, 'utf8'), 'precious');
  const { address, result } = await listening((onListening) =>
    receiveMigration({ ...options, overwrite: true, onListening }),
  );
  await play(address, streamsOf(capture));
  await within(result, WAIT_MS, 'receiveMigration()');
  t.ok((await ramOf(out)).equals(PC_RAM));
});

t.test('an abort while waiting for the source, and in the middle, leaves nothing', async (t) => {
  for (const begin of [false, true]) {
    const out = path.join(folder(t), 'vm.mig');
    const abort = new AbortController();
    const { address, result } = await listening((onListening) =>
      receiveMigration({
        address: TCP,
        channels: 2,
        compression: capture.compression,
        out,
        signal: abort.signal,
        onListening,
        onStart: () => abort.abort(new Error('enough')),
      }),
    );
    if (begin) await play(address, streamsOf(capture));
    else abort.abort(new Error('enough'));
    await t.rejects(within(result, WAIT_MS, 'receiveMigration()'), { code: 'ERR_MULTIFD_ABORTED' });
    t.same(fs.readdirSync(path.dirname(out)), []);
  }
});

t.test('options are checked before anything is opened', async (t) => {
  const out = path.join(folder(t), 'vm.mig');
  const file = path.join(folder(t), 'qemu.mig');
  fs.writeFileSync(file, readBytes('q100-mappedram-multifd.mig'));
  let connections = 0;
  const nobody = net.createServer((socket) => (connections++, socket.destroy())).listen(0, '127.0.0.1');
  await once(nobody, 'listening');
  t.teardown(() => nobody.close());
  const to = nobody.address() as net.AddressInfo;
  const send = { file, to: { host: '127.0.0.1', port: to.port } };
  const wrong: [string, Promise<unknown>][] = [
    ['zeroPageDetection', sendMigration({ ...send, zeroPageDetection: 'bogus' as 'none' })],
    ['zstdLevel', sendMigration({ ...send, zstdLevel: 99 })],
    ['connectTimeoutMs', sendMigration({ ...send, connectTimeoutMs: 'x' as unknown as number })],
    ['offset', sendMigration({ ...send, offset: '0' as unknown as number })],
    ['offset', describeMigrationFile(file, { offset: -1 })],
    ['channels', relayMigration({ listen: TCP, to: send.to, out: { channels: 999 } })],
    ['zlibLevel', relayMigration({ listen: TCP, to: send.to, out: { zlibLevel: 77 } })],
    ['compression', receiveMigration({ address: TCP, out, compression: 'lz4' as 'none' })],
    ['out', receiveMigration({ address: TCP })],
    ['options', sendMigration(undefined as never)],
    ['options', receiveMigration(undefined as never)],
    ['options', relayMigration(undefined as never)],
  ];
  for (const [name, call] of wrong) {
    await t.rejects(within(call, WAIT_MS, name), {
      name: 'MultifdError',
      code: 'ERR_MULTIFD_OPTION',
      message: new RegExp(`^(option )?${name}\\b.*given .*allowed`),
    });
  }
  t.equal(connections, 0, 'nobody was connected to');
  t.same(fs.readdirSync(path.dirname(out)), [], 'no file was made');
  const thrown = new Error('mine');
  const onListening = (): void => {
    throw thrown;
  };
  await t.rejects(receiveMigration({ address: TCP, out, onListening }), {
    code: 'ERR_MULTIFD_HOOK',
    cause: thrown,
  });
});

t.test('a pipe, a directory: refused, and not waited for', async (t) => {
  const directory = folder(t);
  const pipe = path.join(directory, 'pipe');
  execFileSync('mkfifo', [pipe]);
  for (const file of [pipe, directory]) {
    const refused = { code: 'ERR_MULTIFD_IO', message: /neither a regular file nor a block device/ };
    await t.rejects(within(describeMigrationFile(file), WAIT_MS, 'describe'), refused);
    await t.rejects(within(readMappedRam(file), WAIT_MS, 'read'), refused);
    await t.rejects(within(sendMigration({ file, to: { port: 1 } }), WAIT_MS, 'send'), refused);
  }
  await t.rejects(receiveMigration({ address: TCP, out: directory, overwrite: true }), {
    code: 'ERR_MULTIFD_IO',
    message: /is a directory/,
  });
});

t.test('a partial file that is kept says which pages it has', async (t) => {
  const out = path.join(folder(t), 'vm.mig');
  const { address, result } = await listening((onListening) =>
    receiveMigration({
      ...{ address: TCP, channels: 2, compression: capture.compression, out, onListening },
      keepPartial: true,
    }),
  );
  await play(address, { ...streams, main: streams.main.subarray(0, -100) });
  await t.rejects(within(result, WAIT_MS, 'receiveMigration()'), { code: 'ERR_MULTIFD_EOF' });
  const kept = await readMappedRam(`${out}.part`);
  t.equal(kept.blocks.find(({ name }) => name === 'pc.ram')?.presentPages, 80);
  t.match(kept.problems, [{ kind: 'tail', fatal: true }]);
});

t.test(
  'a source that opened the return path and does not wait for its end: the whole file, but not its name',
  async (t) => {
    // OPEN_RETURN_PATH behind the configuration: header 8, 07, length, name.
    const { main } = streams;
    const configured = 8 + 1 + 4 + main.readUInt32BE(9);
    const command = Buffer.from('0800010000', 'hex');
    const asked = Buffer.concat([main.subarray(0, configured), command, main.subarray(configured)]);
    for (const waits of [true, false]) {
      const out = path.join(folder(t), 'vm.mig');
      const { address, result } = await listening((onListening) =>
        receiveMigration({ address: TCP, channels: 2, compression: capture.compression, out, onListening }),
      );
      const back: Buffer[] = [];
      const sockets = [asked, ...streams.channels].map((bytes) => {
        const socket = net.connect(address as net.NetConnectOpts).on('error', () => {});
        socket.on('data', (chunk) => back.push(chunk));
        if (waits) socket.write(bytes);
        else socket.end(bytes);
        return socket;
      });
      const file = waits ? out : `${out}.part`;
      if (waits) {
        t.equal((await within(result, WAIT_MS, 'receiveMigration()')).returnPath, true);
        await eventually(() => Buffer.concat(back).length >= 12, 'the messages come in');
        // SWITCHOVER_ACK, then SHUT 0.
        t.equal(Buffer.concat(back).toString('hex'), '000700000001000400000000');
      } else {
        const message =
          /closed its main stream before it was told; the whole file is kept as .*vm\.mig\.part$/;
        const error = { code: 'ERR_MULTIFD_CONNECTION', message };
        await t.rejects(within(result, WAIT_MS, 'receiveMigration()'), error);
      }
      t.same(fs.readdirSync(path.dirname(out)), [path.basename(file)]);
      t.ok((await ramOf(file)).equals(PC_RAM), 'RAM');
      for (const socket of sockets) socket.destroy();
    }
  },
);

t.test('a main stream that stops, and all stays open, is a stall', async (t) => {
  for (const length of [200, streams.main.length - 5000]) {
    const out = path.join(folder(t), 'vm.mig');
    const { address, result } = await listening((onListening) =>
      receiveMigration({
        ...{ address: TCP, channels: 2, compression: capture.compression, out, onListening },
        stallTimeoutMs: 600,
      }),
    );
    const sockets: net.Socket[] = [];
    for (const bytes of [streams.main.subarray(0, length), ...streams.channels]) {
      const socket = net.connect(address as net.NetConnectOpts).on('error', () => {});
      sockets.push(socket);
      socket.write(bytes);
    }
    await t.rejects(within(result, WAIT_MS, 'receiveMigration()'), { code: 'ERR_MULTIFD_STALL' });
    for (const socket of sockets) socket.destroy();
    t.same(fs.readdirSync(path.dirname(out)), []);
  }
});

t.test('connections that never come: the main stream, a channel', async (t) => {
  for (const [order, message] of [
    [[0, 1], /channels, no other within 400 ms: received 2, expected 2; the main stream has not come in/],
    [['main'], /channels, no other within 400 ms: received 0, expected 2$/],
    [['main', 1], /channels, no other within 400 ms: received 1, expected 2$/],
  ] as [('main' | number)[], RegExp][]) {
    const out = path.join(folder(t), 'vm.mig');
    const { address, result } = await listening((onListening) =>
      receiveMigration({
        address: TCP,
        channels: 2,
        compression: capture.compression,
        connectTimeoutMs: 400,
        out,
        onListening,
      }),
    );
    const { sockets } = await play(address, streams, order);
    await t.rejects(within(result, WAIT_MS, 'receiveMigration()'), { code: 'ERR_MULTIFD_TIMEOUT', message });
    for (const socket of sockets) socket.destroy();
    t.same(fs.readdirSync(path.dirname(out)), []);
  }
});

t.test('sendMigration refuses what is no mapped-ram file, a wrong peer, and nobody there', async (t) => {
  const directory = folder(t);
  const file = path.join(directory, 'file');
  fs.writeFileSync(file, 'not a migration at all');
  await t.rejects(sendMigration({ file, to: { port: 1 } }), { name: 'MultifdError' });
  await t.rejects(sendMigration({ file, to: { port: 1 }, peer: 'new' }), {
    code: 'ERR_MULTIFD_OPTION',
    message: /given "new"/,
  });
  fs.writeFileSync(file, readBytes('q100-mappedram-multifd.mig'));
  const nobody = path.join(directory, 'nobody');
  await t.rejects(sendMigration({ file, to: { path: nobody } }), { code: 'ERR_MULTIFD_CONNECT' });
});
