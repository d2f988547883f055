/**
 * Text of a peer, of a file and of a file's name, and more of it than anybody reads, in each output of the commands. Where
 * raw, U+009B begins an escape sequence as ESC [ does.
 */
import fs from 'node:fs';
import path from 'node:path';
import t from 'tap';
import { play, readBytes, streamsOf } from '../migration/captures.js';
import { temporaryDirectory } from '../support/raw-channel.js';
import { Run, run } from './cli.js';

const EVIL = '\u009b31mEVIL\u009d0;title\u009c\x7f\x1b[2J\u202e\u2028\u2066';
const RAW = /[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u2028-\u202e\u2066-\u2069]/;

/** A capture up to ram's END, and behind it a description with these devices. */
function captureOf(devices: object[]): Buffer {
  const json = Buffer.from(JSON.stringify({ devices }));
  const head = Buffer.from('000600000000', 'hex');
  head.writeUInt32BE(json.length, 2);
  const main = readBytes('q100-none.main.bin');
  const footer = Buffer.from('7e00000001', 'hex');
  return Buffer.concat([main.subarray(0, main.lastIndexOf(footer) + footer.length), head, json]);
}

t.test('names of devices and of the file itself: none of them reaches the terminal raw', async (t) => {
  const file = path.join(temporaryDirectory(t), `${EVIL.replaceAll('/', '')}.bin`);
  const devices = [
    { name: EVIL, instance_id: 0 },
    { name: '__proto__', instance_id: 1 },
  ];
  fs.writeFileSync(file, captureOf(devices));
  for (const more of [[], ['--json']]) {
    const { code, stdout, stderr } = await run(t, ['inspect', file, ...more]);
    t.equal(code, 0, stderr);
    t.notMatch(stdout, RAW);
    t.notMatch(stderr, RAW);
    t.match(stdout, more.length > 0 ? '\\u009b31mEVIL' : '\\x9b31mEVIL');
    if (more.length === 0) continue;
    const record = JSON.parse(stdout) as { file: string; devices: { name: string }[] };
    t.equal(record.file, file, 'JSON of the same value');
    t.same(
      record.devices.map(({ name }) => name),
      [EVIL, '__proto__'],
    );
  }
  const missing = await run(t, ['inspect', `${file}.none`, '--json', '--verbose']);
  t.equal(missing.code, 1);
  t.notMatch(missing.stdout + missing.stderr, RAW, 'the error, its trace and its record');
  t.match(missing.stderr, /EVIL[^]*at async/);
  const wrong = await run(t, ['receive', '--listen', EVIL, '--json']);
  t.equal(wrong.code, 2);
  t.notMatch(wrong.stdout + wrong.stderr, RAW, 'wrong usage');
});

t.test('a machine type that is a command to a shell: what may be copied has it in quotes', async (t) => {
  const machine = 'pc$(reboot);reboot #';
  const main = readBytes('q100-none.main.bin');
  const behind = 13 + main.readUInt32BE(9);
  const head = Buffer.from(main.subarray(0, 13));
  head.writeUInt32BE(machine.length, 9);
  const file = path.join(temporaryDirectory(t), 'main.bin');
  fs.writeFileSync(file, Buffer.concat([head, Buffer.from(machine), main.subarray(behind)]));
  const { stdout } = await run(t, ['inspect', file]);
  t.match(stdout, /^resume in +qemu-system-\.\.\. -machine 'type=pc\$\(reboot\);reboot #' -m /m);
});

t.test("a channel's packet with such a name: receive says it, with and without a trace", async (t) => {
  const folder = temporaryDirectory(t);
  const { main, channels } = streamsOf({ name: 'q100-none', compression: 'none' });
  // Of the first packet that has pages; a packet is 1344 bytes.
  for (let at = 64; at < channels[0].length; at += 1344) {
    if (channels[0].readUInt32BE(at + 16) === 0) continue;
    channels[0].fill(0, at + 64, at + 320).write(EVIL, at + 64, 'latin1');
    break;
  }
  const command = ['receive', '--listen', 'tcp:127.0.0.1:0', '--out', path.join(folder, 'vm.mig')];
  const receiving = new Run(t, [...command, '--json', '--verbose']);
  const { address } = await receiving.line(({ type }) => type === 'listening');
  const port = Number(/:(\d+)$/.exec(address as string)?.[1]);
  const { sockets } = await play({ port }, { main, channels });
  t.teardown(() => sockets.forEach((socket) => socket.destroy()));
  const { code, stdout, stderr } = await receiving.ended;
  t.equal(code, 1);
  t.match(stdout, 'ERR_MULTIFD_RAMBLOCK');
  t.match(stderr, 'EVIL');
  t.notMatch(stdout + stderr, RAW);
});

t.test(
  '150,000 devices: people get the first of them and how many there are, machines get all',
  async (t) => {
    const file = path.join(temporaryDirectory(t), 'main.bin');
    fs.writeFileSync(
      file,
      captureOf(Array.from({ length: 150_000 }, (_, i) => ({ name: 'x', instance_id: i }))),
    );
    const text = await run(t, ['inspect', file]);
    t.equal(text.code, 0, text.stderr);
    t.ok(text.stdout.split('\n').length < 250);
    t.match(text.stdout, /^x {2}instance 199\b.*\nand 149800 more devices: --json has them all\n$/m);
    t.match(text.stdout, /^devices +150000,/m);
    const json = await run(t, ['inspect', file, '--json']);
    t.equal(json.code, 0, json.stderr);
    t.equal((JSON.parse(json.stdout) as { devices: unknown[] }).devices.length, 150_000);
  },
);
