/** Values that no type lets through, from JavaScript: refused as options by every function that takes them, in one way. */
import path from 'node:path';
import t from 'tap';
import {
  describeMigrationFile,
  packMigration,
  readMappedRam,
  relayMigration,
  sendMigration,
  unpackMigration,
  verifyMappedRam,
  type MappedRamDescription,
} from '../../src/index.js';

/** As from JavaScript. */
const any = (options: unknown): never => options as never;
const NOWHERE = '/nowhere/vm.mig';
const DESCRIPTION = {} as MappedRamDescription;

type Call = (options: object) => Promise<unknown>;
const CALLS: Record<string, Call> = {
  pack: (options) => packMigration(any({ file: NOWHERE, ...options })),
  unpack: (options) => unpackMigration(any({ file: `${NOWHERE}.zst`, ...options })),
  describe: ({ file = NOWHERE, ...options }: { file?: unknown }) =>
    describeMigrationFile(any(file), any(options)),
  verify: ({ file = NOWHERE, ...options }: { file?: unknown }) =>
    verifyMappedRam(any(file), DESCRIPTION, any(options)),
  send: (options) => sendMigration(any({ file: NOWHERE, to: 'tcp:127.0.0.1:1', ...options })),
  postcopy: (options) =>
    sendMigration(any({ mode: 'postcopy', file: NOWHERE, to: 'tcp:127.0.0.1:1', ...options })),
  read: ({ file = NOWHERE }: { file?: unknown }) => readMappedRam(any(file)),
  relay: (options) => relayMigration(any({ listen: { port: 0 }, to: 'tcp:127.0.0.1:1', ...options })),
};

const SIGNALS: object[] = [{ signal: {} }, { signal: null }, { signal: 5 }];
const FILES: object[] = [
  { file: 5 },
  { file: '' },
  { file: 'a\0b' },
  { file: Buffer.from('vm.mig') },
  { file: new URL(`file://${path.resolve('vm.mig')}`) },
];
const HOOKS: object[] = [{ onStart: 5 }, { onSession: 'x' }];
const OUTS: object[] = [{ out: '' }, { out: 'a\0b' }, { out: 5 }, { overwrite: 1 }, { onProgress: 3 }];

const CASES: Record<string, object[]> = {
  pack: [...SIGNALS, ...FILES, ...OUTS],
  unpack: [...SIGNALS, ...FILES, ...OUTS],
  describe: [...SIGNALS, ...FILES],
  verify: [...SIGNALS, ...FILES, { onProgress: 3 }],
  send: [...SIGNALS, ...FILES, ...HOOKS, { onRecords: 5 }],
  postcopy: [...SIGNALS, ...FILES, ...HOOKS, { onRunning: 5 }],
  read: FILES,
  relay: [...SIGNALS, ...HOOKS, { onListening: {} }],
};

for (const [name, cases] of Object.entries(CASES)) {
  t.test(
    `${name}: a value of another kind is an option that is refused, before a file is opened`,
    async (t) => {
      for (const options of cases) {
        const [option] = Object.keys(options);
        await t.rejects(
          CALLS[name](options),
          { code: 'ERR_MULTIFD_OPTION', message: new RegExp(`^option ${option}: given `) },
          `${option}: ${String(Object.values(options)[0])}`,
        );
      }
    },
  );
}
