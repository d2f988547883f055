/**
 * QEMU's control socket: what it says to the commands of park and resume. An input is its lines: the greeting, then one for
 * each command, on a real socket.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { queryGuest, queryMigration } from '../../../src/qmp/machine.js';
import { Qmp } from '../../../src/qmp/qmp.js';
import { QmpSchema } from '../../../src/qmp/schema.js';
import { MigrationSettings } from '../../../src/qmp/settings.js';
import { GREETING } from '../../qmp/fake-qmp.js';
import { json, type Fuzzer } from '../contract.js';

const IDLE_TURNS = 60;
const LIMITS = { connectMs: 5000, greetingMs: 5000, commandMs: 5000 };
const CAPABILITIES =
  '{"return": [{"capability": "multifd", "state": false}, {"capability": "events", "state": true}], "id": 3}';
const SCHEMA = `{"return": [
  {"name": "migrate-set-parameters", "meta-type": "command", "arg-type": "12"},
  {"name": "12", "meta-type": "object", "members": [{"name": "multifd-compression", "type": "34"}]},
  {"name": "34", "meta-type": "enum", "values": ["none", "zstd"]},
  {"name": "migrate-set-capabilities", "arg-type": "13"}, {"name": "13", "members": [{"name": "capabilities", "type": "[35]"}]},
  {"name": "[35]", "element-type": "35"}, {"name": "35", "members": [{"name": "capability", "type": "34"}]}], "id": 1}`;

const CONVERSATION = [
  GREETING.trim(),
  '{"return": {}, "id": 0}',
  SCHEMA.replaceAll(/\s+/g, ' '),
  '{"return": {"status": "running", "running": true}, "id": 2}',
  CAPABILITIES,
  '{"return": {"max-bandwidth": 9223372036853727232, "tls-creds": "", "multifd-channels": 2}, "id": 4}',
  '{"return": {"status": "active", "blocked-reasons": ["a"], "error-desc": "x", "ram": {"total": 18446744073709551615, "remaining": 1}}, "id": 5}',
];
const SHORT = CONVERSATION.map((line, i) => (i === 2 ? '{"return": [{"name": "migrate"}], "id": 1}' : line));
const REFUSING = [
  ...CONVERSATION.slice(0, 5),
  '{"id": 4, "error": {"class": "GenericError", "desc": "no"}}',
  '{"event": "STOP"}',
];

const DEEP = 20_000;
/** Values, and what breaks the text. */
const WORDS = [
  ...['null', 'true', '[]', '{}', '""', '-0', '1e400', '0.5', '9223372036853727232', '-9223372036854775809'],
  ...[
    '{"toString": 1, "valueOf": 1}',
    '[{"toString": null, "valueOf": null}]',
    '{"__proto__": null}',
    '"\\u00011"',
  ],
  ...[
    '"return"',
    '"error"',
    '"event"',
    '"id"',
    '"QMP"',
    '"desc"',
    '"name"',
    '"members"',
    '"values"',
    '"status"',
  ],
  `${'['.repeat(DEEP)}${']'.repeat(DEEP)}`,
  `${'{"a":'.repeat(DEEP)}1${'}'.repeat(DEEP)}`,
  '"\\"'.repeat(DEEP),
  ...['{', '}', '[', ']', '"', '\\"', '\\', ':', ',', '\n', '\xff', '\0'],
];

const fuzzer: Fuzzer = {
  name: 'qmp',
  what: "QMP: QEMU's greeting and its answers to what park and resume ask",
  runs: 1200,
  most: { bytes: 2 ** 20, perByte: 40 },
  words: WORDS.map((word) => Buffer.from(word, 'latin1')),
  seeds: () =>
    [CONVERSATION, SHORT, REFUSING].map((lines) => json(lines.map((line) => `${line}\n`).join(''))),
  async open() {
    const folder = mkdtempSync(path.join(os.tmpdir(), 'multifd-fuzz-'));
    const address = { path: path.join(folder, 'qmp') };
    let lines: Buffer[] = [];
    const server = net.createServer((socket) => {
      const left = [...lines];
      let turns = 0;
      let idle: NodeJS.Immediate | undefined;
      const say = (): void => {
        const line = left.shift();
        if (line === undefined) return void socket.destroy();
        socket.write(line);
        turns = 0;
      };
      // What was no answer is waited for behind it: the next line comes all the same, some turns of the loop later.
      const look = (): void => {
        if (++turns > IDLE_TURNS) say();
        if (!socket.destroyed) idle = setImmediate(look);
      };
      socket.on('error', () => {});
      socket.on('close', () => clearImmediate(idle));
      socket.on('data', say);
      say();
      look();
    });
    await new Promise<void>((resolve) => server.listen(address.path, resolve));
    return {
      async run(input) {
        lines = linesOf(input);
        const qmp = await Qmp.connect(address, LIMITS);
        try {
          const schema = await QmpSchema.query(qmp);
          schema.hasArgument('migrate', 'uri');
          await queryGuest(qmp);
          const settings = await MigrationSettings.remember(qmp);
          settings.switchedOff(['multifd']);
          await queryMigration(qmp);
        } finally {
          qmp.close();
        }
      },
      async close() {
        await new Promise((resolve) => server.close(resolve));
        rmSync(folder, { recursive: true, force: true });
      },
    };
  },
};
export default fuzzer;

function linesOf(input: Buffer): Buffer[] {
  const lines: Buffer[] = [];
  for (let from = 0; from < input.length;) {
    const end = input.indexOf(0x0a, from);
    const to = end < 0 ? input.length : end + 1;
    lines.push(input.subarray(from, to));
    from = to;
  }
  return lines;
}
