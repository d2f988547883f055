/** An option that is misspelt is refused before anything is opened, and the message says which was meant. */
import t from 'tap';
import {
  describeMigrationFile,
  readMappedRam,
  receiveMigration,
  relayMigration,
  sendMigration,
  verifyMappedRam,
  type MappedRamDescription,
} from '../../src/index.js';

/** As from JavaScript. */
const any = (options: object): never => options as never;

const receive = (options: object): Promise<unknown> =>
  receiveMigration(any({ address: { port: 0 }, out: '/nowhere/vm.mig', ...options }));
const send = (options: object): Promise<unknown> =>
  sendMigration(any({ file: '/nowhere/vm.mig', to: 'tcp:127.0.0.1:1', ...options }));
const relay = (options: object): Promise<unknown> =>
  relayMigration(any({ listen: { port: 0 }, to: 'tcp:127.0.0.1:1', ...options }));

t.test('every function that takes options says which was meant', async (t) => {
  const cases: [call: () => Promise<unknown>, option: string, meant: string][] = [
    [() => receive({ overwirte: true }), 'overwirte', 'overwrite'],
    [() => receive({ chanels: 2 }), 'chanels', 'channels'],
    [() => receive({ switchoverAck: 'allways' }), 'switchoverAck', 'always'],
    [() => send({ offest: 0 }), 'offest', 'offset'],
    [() => send({ compresion: 'zstd' }), 'compresion', 'compression'],
    [() => relay({ lisen: 'unix:/x' }), 'lisen', 'listen'],
    [() => relay({ switchover: 'always' }), 'switchover', 'switchoverAck'],
    [() => relay({ in: { chanels: 2 } }), 'in.chanels', 'channels'],
    [() => relay({ out: { level: 2 } }), 'out.level', 'zlibLevel or zstdLevel'],
    [() => relay({ out: { compression: 'zsdt' } }), 'compression', 'zstd'],
    [() => describeMigrationFile('/nowhere', any({ pagesize: 1 })), 'pagesize', 'pageSize'],
    [() => readMappedRam('/nowhere', any({ maxSection: 1 })), 'maxSection', 'maxSections'],
    [
      () => verifyMappedRam('/nowhere', {} as MappedRamDescription, any({ progress: () => undefined })),
      'progress',
      'onProgress',
    ],
  ];
  for (const [call, option, meant] of cases) {
    const error = await call().then(
      () => undefined,
      (thrown: unknown) => thrown as Error & { code: string },
    );
    t.equal(error?.code, 'ERR_MULTIFD_OPTION');
    const { message } = error as Error;
    t.ok(message.startsWith(`option ${option}: given `), message);
    t.equal(/; did you mean (.*)\?$/.exec(message)?.[1], meant, message);
  }
});

t.test(
  'what the types leave out of a migration is refused, and an address is called as it is there',
  async (t) => {
    const cases: [call: () => Promise<unknown>, option: string][] = [
      [() => receive({ blocks: [] }), 'blocks'],
      [() => receive({ devices: [] }), 'devices'],
      [() => send({ blocks: [] }), 'blocks'],
      [() => send({ onZeroPages: () => undefined }), 'onZeroPages'],
      [() => send({ address: { port: 1 } }), 'address'],
      [() => send({ to: 'localhost:1' }), 'to'],
      [() => send({ to: { port: 0 } }), 'to.port'],
      [() => relay({ to: undefined }), 'to'],
      [() => relay({ listen: 'localhost:1' }), 'listen'],
    ];
    for (const [call, option] of cases) {
      await t.rejects(call(), {
        code: 'ERR_MULTIFD_OPTION',
        message: new RegExp(`^option ${option.replace('.', '\\.')}: given `),
      });
    }
  },
);

t.test('what is not an object is refused where it stands', async (t) => {
  await t.rejects(relay({ in: 5 }), {
    code: 'ERR_MULTIFD_OPTION',
    message: 'option in: given 5, allowed an object',
  });
  await t.rejects(relay({ out: null }), { code: 'ERR_MULTIFD_OPTION' });
});
