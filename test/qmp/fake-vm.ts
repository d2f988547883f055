/** A VM as its monitor shows it, with settings of its own and things that nobody knows here. */
import net from 'node:net';
import { answer, refusal, type Command } from './fake-qmp.js';

export class FakeVm {
  capabilities: Record<string, boolean> = {
    multifd: false,
    'return-path': false,
    xbzrle: true,
    events: true,
    'x-of-the-future': true,
  };
  parameters: Record<string, unknown> = {
    'multifd-channels': 7,
    'multifd-compression': 'zlib',
    'max-bandwidth': 1234,
    'tls-creds': null,
    mode: 'normal',
    future: { a: [1] },
  };
  guest = 'running';
  migration: Record<string, unknown> = {};
  /** What happens at `migrate`. */
  onMigrate = (): void => {};
  /** The state that it is in when it was cancelled, with its guest. */
  cancelled = { status: 'cancelled', guest: 'running' };
  /** Where it is to migrate to. */
  uri = '';
  connected: net.Socket | undefined;
  /** One connection, on which nothing comes. */
  connect = (): void => {
    this.connected = net.connect(this.uri);
    this.connected.on('error', () => {});
  };
  /** Its tls-creds objects: id and endpoint. */
  tlsCreds: Record<string, string> = {};
  /** How often it answers that it has something left of its migration; undefined: it does not know the command. */
  putsAway: number | undefined;
  /** Commands that QEMU refuses, with its words. */
  refused: Record<string, string> = {};

  readonly say = (command: Command): string | undefined => {
    const { execute, arguments: args } = command;
    if (this.refused[execute] !== undefined) return refusal(command, this.refused[execute]);
    switch (execute) {
      case 'query-qmp-schema':
        return answer(command, SCHEMA);
      case 'query-status':
        return answer(command, { status: this.guest, running: this.guest === 'running', new: 1 });
      case 'query-migrate':
        return answer(command, this.migration);
      case 'query-migrate-capabilities':
        return answer(
          command,
          Object.entries(this.capabilities).map(([capability, state]) => ({ capability, state })),
        );
      case 'query-migrate-parameters':
        return answer(command, this.parameters);
      case 'migrate-set-capabilities':
        for (const { capability, state } of args.capabilities as { capability: string; state: boolean }[])
          this.capabilities[capability] = state;
        return answer(command);
      case 'migrate-set-parameters':
        Object.assign(this.parameters, args);
        return answer(command);
      case 'migrate':
        this.migration = { status: 'setup' };
        this.uri = (args.uri as string).slice('unix:'.length);
        this.connect();
        this.onMigrate();
        return answer(command);
      case 'migrate_cancel':
        this.migration = { status: this.cancelled.status };
        this.guest = this.cancelled.guest;
        return answer(command);
      case 'qom-list':
        return answer(
          command,
          Object.keys(this.tlsCreds).map((name) => ({ name, type: 'child<tls-creds-psk>' })),
        );
      case 'qom-get':
        return answer(command, this.tlsCreds[(args.path as string).slice('/objects/'.length)]);
      case 'query-yank':
        if (this.putsAway === undefined) break;
        return answer(command, [
          { type: 'block-node', 'node-name': 'disk' },
          null,
          ...(this.putsAway-- > 0 ? [{ type: 'migration' }] : []),
        ]);
      case 'quit':
        this.guest = 'gone';
        return answer(command);
      case 'migrate-incoming':
      case 'stop':
        return answer(command);
      case 'query-uuid':
        return answer(command, { UUID: '00000000-0000-0000-0000-000000000000' });
      case 'cont':
        this.guest = 'running';
        return answer(command);
    }
    return refusal(command, `The command ${execute} has not been found`);
  };
}

const SCHEMA = [
  { name: 'migrate-set-capabilities', 'meta-type': 'command', 'arg-type': '1', 'ret-type': '0' },
  { name: '1', 'meta-type': 'object', members: [{ name: 'capabilities', type: '[2]' }, { odd: 1 }, null] },
  { name: '[2]', 'meta-type': 'array', 'element-type': '2' },
  { name: '2', 'meta-type': 'object', members: [{ name: 'capability', type: '3' }] },
  {
    name: '3',
    'meta-type': 'enum',
    members: ['multifd', 'postcopy-ram', 'return-path', 'x-of-the-future'].map((name) => ({ name })),
  },
  { name: 'migrate-set-parameters', 'meta-type': 'command', 'arg-type': '4' },
  {
    name: '4',
    'meta-type': 'object',
    members: [
      { name: 'multifd-channels', type: 'int' },
      { name: 'multifd-compression', type: '5' },
      { name: 'mode', type: '6' },
    ],
  },
  // Without members, as it was before 6.2.
  { name: '5', 'meta-type': 'enum', values: ['none', 'zlib', 'lz99'] },
  { name: '6', 'meta-type': 'something-new', values: 'no list' },
  { 'meta-type': 'nameless' },
  null,
  'text',
];
