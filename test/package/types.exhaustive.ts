/**
 * What the types of the package say to an embedder, held against the declarations that the build has made: what the code
 * refuses they refuse, and nothing of what is internal can be reached.
 */
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import ts from 'typescript';
import { createReceiver, createSender } from '../../src/index.js';

const root = fileURLToPath(new URL('../../../', import.meta.url));
const declarations = path.join(root, 'dist', 'src');
const index = path.join(declarations, 'index.d.ts');

const START = `
import * as multifd from ${JSON.stringify(index.replace(/\.d\.ts$/, '.js'))};
declare const sender: multifd.Sender, receiver: multifd.Receiver, error: multifd.MultifdError;
declare const shared: SharedArrayBuffer, owned: ArrayBuffer, bytes: Uint8Array, text: string, host: string;
declare const port: number, fd: { fd: number }, signal: AbortSignal;
declare const wasm: { readonly buffer: ArrayBuffer; grow(delta: number): number };
const address = 'unix:/x';
const block: multifd.RAMBlockOptions = { name: 'ram', memory: shared };
const blocks = [block];
declare const source: multifd.MigrationSource, destination: multifd.MigrationDestination;
declare const words: Uint32Array;
const hooks = { dirty: { ram: words }, pause() {}, resume() {} };
const { createMigrationSource, createMigrationDestination } = multifd;
void [source, destination, hooks, createMigrationSource, createMigrationDestination];
const { createReceiver, createSender, receiveMigration, relayMigration, sendMigration, parseAddress } = multifd;
void [createReceiver, createSender, receiveMigration, relayMigration, sendMigration, parseAddress, address, blocks];
`;

const TAKEN = {
  blocks: [
    `createReceiver({ address, blocks: [{ name: 'ram', memory: shared }] })`,
    `createReceiver({ address, blocks: [{ name: 'ram', memory: owned, size: 4096, fresh: true }] })`,
    `createReceiver({ address, blocks: [{ name: 'ram', memory: bytes, file: undefined }] })`,
    `createReceiver({ address, blocks: [{ name: 'ram', memory: Buffer.alloc(4096) }] })`,
    `createReceiver({ address, blocks: [{ name: 'ram', memory: () => owned }] })`,
    `createReceiver({ address, blocks: [{ name: 'ram', memory: () => bytes, size: 4096 }] })`,
    `createReceiver({ address, blocks: [{ name: 'ram', memory: { wasm } }] })`,
    `createReceiver({ address, blocks: [{ name: 'ram', memory: { wasm, offset: 1, size: 4096 } }] })`,
    `createReceiver({ address, blocks: [{ name: 'ram', file: '/x', size: 4096 }] })`,
    `createReceiver({ address, blocks: [{ name: 'ram', file: fd, offset: 1, size: 4096 }] })`,
    `createReceiver({ address, blocks: [shared, owned].map((memory) => ({ name: 'ram', memory })) })`,
    `createReceiver({ address, blocks: [block] as const })`,
  ],
  addresses: [
    `createSender({ address: 'tcp:localhost:1', blocks })`,
    `createSender({ address: 'tcp:[::1]:1', blocks })`,
    `createSender({ address: 'tcp://localhost:1/', blocks })`,
    `createSender({ address: 'tcp://[::1]:1', blocks })`,
    `createSender({ address: 'tcp::1', blocks })`,
    `createSender({ address: 'unix:/x', blocks })`,
    'createSender({ address: `tcp:${host}:${port}`, blocks })',
    'createSender({ address: `unix:${text}`, blocks })',
    `createSender({ address: { port: 1 }, blocks })`,
    `createSender({ address: { host, port }, blocks })`,
    `createSender({ address: { path: text }, blocks })`,
    `createSender({ address: receiver.address, blocks })`,
    `createSender({ address: parseAddress(text), blocks })`,
    `relayMigration({ listen: parseAddress(text), to: 'unix:/y' })`,
  ],
  live: [
    `createMigrationSource({ to: address, machine: 'x-1.0', blocks, ...hooks })`,
    `createMigrationSource({ to: address, machine: 'x-1.0', blocks, pause() {}, resume() {}, verify: true })`,
    `createMigrationDestination({ listen: address, machine: 'x-1.0', blocks, start() {}, verify: true })`,
    `createMigrationSource({ to: address, machine: 'x-1.0', blocks, ...hooks, dirty: () => [{ block: 'ram', offset: 0, length: 1 }] })`,
    `createMigrationSource({ to: address, machine: 'x-1.0', blocks, ...hooks, async *dirty() { yield { block: 'ram', offset: 0, length: 1 }; } })`,
    `createMigrationSource({ to: address, machine: 'x-1.0', blocks, ...hooks, notConverging: async (percent) => void percent.toFixed() })`,
    `createMigrationSource({ to: address, machine: 'x-1.0', blocks, ...hooks, devices: [{ idstr: 'x', save: () => bytes }] })`,
    `createMigrationDestination({ listen: address, machine: 'x-1.0', blocks, start() {} })`,
    `createMigrationDestination({ listen: address, machine: 'x-1.0', acceptBlocks: (list) => list.map(({ name, size }) => ({ name, memory: new SharedArrayBuffer(size) })), start() {} })`,
    `createMigrationDestination({ listen: address, machine: 'x-1.0', blocks, devices: [{ idstr: 'x', load: (data, version) => void data.readInt8(version) }], async start() {} })`,
    `(async () => { for await (const item of source.progress({ intervalMs: 1 })) item.ram.remaining.toFixed(); })()`,
    `(source.maxBandwidth = source.downtimeLimitMs = 1)`,
    `source.done.then((last) => last.downtimeMs.toFixed())`,
    `destination.done.then(({ stats }) => stats.strays.toFixed())`,
    `(async () => { await using using2 = destination; await using2.cancel(); })()`,
  ],
  calls: [
    `sender.queuePage(sender.blocks[0], 0)`,
    `sender.queueRange('ram', 0, 4096)`,
    `(sender.maxBandwidth = 1)`,
    `sender.done.then(() => receiver.ready)`,
    `receiver.received(receiver.blocks[0]).has(0)`,
    `(async () => { for await (const stats of sender.progress()) stats.bytes.toFixed(); })()`,
    `(async () => { await using using1 = sender; await using1.sync(); })()`,
    `receiver.stats().strays.toFixed()`,
    `receiveMigration({ address, out: '/x', signal, onSession: (it) => void it.ready })`,
    `receiveMigration({ address, discard: true })`,
    `receiveMigration({ address, discard: 'accept' })`,
    `sendMigration({ file: '/x', to: address, onSession: (it) => void it.stats() })`,
    `new multifd.MultifdError(error.code, error.message, { cause: error.cause })`,
  ],
};

/** An error each, of the code that says so. */
const REFUSED = {
  blocks: [
    `createReceiver({ address, blocks: [{ name: 'ram' }] })`,
    `createReceiver({ address, blocks: [{ memory: shared }] })`,
    `createReceiver({ address, blocks: [{ name: 'ram', memory: undefined }] })`,
    `createReceiver({ address, blocks: [{ name: 'ram', memory: shared, file: '/x', size: 4096 }] })`,
    `createReceiver({ address, blocks: [{ name: 'ram', memory: shared, offset: 1 }] })`,
    `createReceiver({ address, blocks: [{ name: 'ram', file: '/x' }] })`,
    `createReceiver({ address, blocks: [{ name: 'ram', file: fd, size: undefined }] })`,
    `createReceiver({ address, blocks: [{ name: 'ram', size: 4096 }] })`,
    `createReceiver({ address, blocks: [{ name: 'ram', memory: 4096 }] })`,
    `createReceiver({ address, blocks: [{ name: 'ram', memory: new DataView(owned) }] })`,
    `createReceiver({ address, blocks: [{ name: 'ram', memory: new Uint16Array(owned) }] })`,
    `createReceiver({ address, blocks: [{ name: 'ram', memory: async () => owned }] })`,
    `createReceiver({ address, blocks: [{ name: 'ram', memory: wasm }] })`,
    `createReceiver({ address, blocks: [{ name: 'ram', memory: { wasm: bytes } }] })`,
    `createReceiver({ address, blocks: [{ name: 'ram', size: 4096, stream: true }] })`,
    `createReceiver({ address, blocks: [{ name: 'ram', memmory: shared }] })`,
    `createReceiver({ address })`,
  ],
  addresses: [
    `createSender({ address: 'localhost:1', blocks })`,
    `createSender({ address: 'tcp:localhost', blocks })`,
    `createSender({ address: 'tcp:localhost:http', blocks })`,
    `createSender({ address: '/run/x.sock', blocks })`,
    `createSender({ address: '', blocks })`,
    `createSender({ address: text, blocks })`,
    `createSender({ address: { host }, blocks })`,
    `createSender({ address: { path: text, port }, blocks })`,
    `createSender({ address: { path: text, host }, blocks })`,
    `createReceiver({ address: 'localhost:1', blocks })`,
    `receiveMigration({ address: 'localhost:1', out: '/x' })`,
    `sendMigration({ file: '/x', to: 'localhost:1' })`,
    `relayMigration({ listen: 'localhost:1', to: address })`,
    `relayMigration({ listen: address, to: 'localhost:1' })`,
  ],
  options: [
    `createSender({ address, blocks, chanels: 2 })`,
    `createSender({ address, blocks, channels: 'two' })`,
    `createSender({ address, blocks, compression: 'gzip' })`,
    `createSender({ address, blocks, acceptTimeoutMs: 1 })`,
    `createReceiver({ address, blocks, zlibLevel: 1 })`,
    `sendMigration({ file: '/x', to: address, blocks })`,
    `receiveMigration({ address, out: 1 })`,
  ],
  live: [
    `createMigrationSource({ to: address, machine: 'x-1.0', blocks, pause() {} })`,
    `createMigrationSource({ to: address, machine: 'x-1.0', blocks, ...hooks, verify: 'yes' })`,
    `createMigrationSource({ to: address, machine: 'x-1.0', blocks, ...hooks, zeroPageDetection: 'legacy' })`,
    `createMigrationSource({ to: address, machine: 'x-1.0', blocks, ...hooks, notConverging: 'throttle' })`,
    `createMigrationSource({ to: address, machine: 'x-1.0', blocks, ...hooks, dirty: { ram: bytes } })`,
    `createMigrationSource({ to: address, machine: 'x-1.0', blocks, ...hooks, devices: [{ idstr: 'x', save: () => 'text' }] })`,
    `createMigrationDestination({ listen: address, machine: 'x-1.0', start() {} })`,
    `createMigrationDestination({ listen: address, machine: 'x-1.0', blocks, acceptBlocks: () => blocks, start() {} })`,
    `createMigrationDestination({ listen: address, machine: 'x-1.0', blocks })`,
    `(source.state = 'active')`,
    `source.life`,
    `destination.receiver`,
  ],
  internals: [
    ...['open', 'abandon', 'orStopped', 'queuePages', 'syncPagesAlloc', 'files', 'pageBytes', 'control'].map(
      (name) => `sender.${name}`,
    ),
    ...['open', 'abandon', 'setBlocks', 'presentWords', 'freeze', 'firstChannel', 'hasChannels', 'files'].map(
      (name) => `receiver.${name}`,
    ),
    ...['describe', 'fd', 'memory', 'base', 'path'].map((name) => `sender.blocks[0].${name}`),
    ...['onChannel', 'toPlain'].map((name) => `error.${name}`),
    ...['wrap', 'fromPlain'].map((name) => `multifd.MultifdError.${name}`),
    `new multifd.Sender()`,
    `new multifd.Receiver()`,
    `receiveMigration({ address, out: '/x', onSession: (it) => it.freeze() })`,
    `sendMigration({ file: '/x', to: address, onSession: (it) => it.open() })`,
    `relayMigration({ listen: address, to: address, onSession: (it) => it.setBlocks([]) })`,
    `(sender.blocks[0].size = 1)`,
    `sender.blocks.push(sender.blocks[0])`,
    `(receiver.address = { port: 1 })`,
  ],
};

const options: ts.CompilerOptions = {
  target: ts.ScriptTarget.ES2022,
  module: ts.ModuleKind.NodeNext,
  moduleResolution: ts.ModuleResolutionKind.NodeNext,
  lib: ['lib.es2024.d.ts', 'lib.esnext.disposable.d.ts'],
  types: ['node'],
  typeRoots: [path.join(root, 'node_modules', '@types')],
  strict: true,
  noEmit: true,
};

const snippets = new Map<string, string>();
for (const [list, kind] of [
  [TAKEN, 'taken'],
  [REFUSED, 'refused'],
] as const) {
  for (const [topic, codes] of Object.entries(list)) {
    for (const [i, code] of codes.entries()) {
      const file = path.join(root, 'test', `${kind}-${topic}-${i}.mts`);
      snippets.set(file, `${START}void ${code};\n`);
    }
  }
}

const disk = ts.createCompilerHost(options);
const host: ts.CompilerHost = {
  ...disk,
  fileExists: (file) => snippets.has(file) || disk.fileExists(file),
  readFile: (file) => snippets.get(file) ?? disk.readFile(file),
  getSourceFile: (file, ...rest) => {
    const text = snippets.get(file);
    return text === undefined ? disk.getSourceFile(file, ...rest) : ts.createSourceFile(file, text, rest[0]);
  },
};
const program = ts.createProgram([...snippets.keys(), index], options, host);
const checker = program.getTypeChecker();

/** Errors of the snippet's own line, and those of what goes before it. */
function errorsIn(file: string): string[] {
  const source = program.getSourceFile(file);
  const found = [...program.getSyntacticDiagnostics(source), ...program.getSemanticDiagnostics(source)];
  const lines = START.split('\n').length - 1;
  return found.map(({ start = 0, messageText }) => {
    const line = source?.getLineAndCharacterOfPosition(start).line ?? -1;
    return `${line < lines ? 'before it: ' : ''}${ts.flattenDiagnosticMessageText(messageText, ' ')}`;
  });
}

const reached = program
  .getSourceFiles()
  .filter(({ fileName }) => path.resolve(fileName).startsWith(declarations + path.sep));

t.test('what the code takes the types take', async (t) => {
  for (const [file, text] of snippets) {
    if (path.basename(file).startsWith('taken')) t.strictSame(errorsIn(file), [], text.slice(START.length));
  }
});

for (const topic of Object.keys(REFUSED)) {
  t.test(`what the code refuses the types refuse: ${topic}`, async (t) => {
    for (const [file, text] of snippets) {
      if (!path.basename(file).startsWith(`refused-${topic}`)) continue;
      const errors = errorsIn(file);
      t.ok(errors.length > 0, text.slice(START.length));
      t.notOk(
        errors.some((message) => message.startsWith('before it')),
        'for no other reason',
      );
    }
  });
}

t.test('the declarations are whole, and have nothing that is marked as internal', async (t) => {
  t.ok(reached.length > 10);
  for (const source of reached) {
    const found = program.getSemanticDiagnostics(source);
    t.strictSame(
      found.map(({ messageText }) => ts.flattenDiagnosticMessageText(messageText, ' ')),
      [],
      path.relative(declarations, source.fileName),
    );
    t.notMatch(source.text, /@internal/);
  }
});

/** The names that a type of the package has, but those of Error. */
function namesOf(type: string): string[] {
  const module = checker.getSymbolAtLocation(program.getSourceFile(index) as ts.SourceFile) as ts.Symbol;
  const exported = checker.getExportsOfModule(module).find(({ name }) => name === type) as ts.Symbol;
  const symbol =
    (exported.flags & ts.SymbolFlags.Alias) === 0 ? exported : checker.getAliasedSymbol(exported);
  return checker
    .getPropertiesOfType(checker.getDeclaredTypeOfSymbol(symbol))
    .map(({ name }) => (name.startsWith('__@asyncDispose') ? '[Symbol.asyncDispose]' : name))
    .filter((name) => !name.includes('#'))
    .sort();
}

const SESSION = [
  '[Symbol.asyncDispose]',
  'blocks',
  'close',
  'done',
  'end',
  'error',
  'progress',
  'stats',
  'sync',
];
const SENDER = ['flush', 'maxBandwidth', 'queueDeviceState', 'queuePage', 'queueRange', 'queueZeroRange'];
const RECEIVER = ['address', 'ready', 'received', 'zeroRange'];

t.test('a session, a block and an error have the members that they are said to have', async (t) => {
  t.strictSame(namesOf('Sender'), [...SESSION, ...SENDER].sort());
  t.strictSame(namesOf('Receiver'), [...SESSION, ...RECEIVER].sort());
  t.strictSame(namesOf('RAMBlock'), ['fresh', 'index', 'kind', 'name', 'pageCount', 'size']);
  t.strictSame(namesOf('ReceivedBitmap'), ['count', 'has', 'ranges']);
  const own = ['channel', 'code', 'kept', 'packetNum', 'suppressed'];
  t.strictSame(namesOf('MultifdError'), [...own, 'cause', 'message', 'name', 'stack'].sort());
});

t.test('a session has no others at run time either', async (t) => {
  const blocks = [{ name: 'ram', memory: new SharedArrayBuffer(4096) }];
  const receiver = await createReceiver({ address: { port: 0 }, channels: 1, blocks });
  t.teardown(() => receiver.close());
  const sender = await createSender({ address: receiver.address, channels: 1, blocks });
  t.teardown(() => sender.close());
  const namesAt = (session: object): string[] => {
    const names: string[] = [];
    for (let at: object = session; at !== Object.prototype; at = Object.getPrototypeOf(at) as object) {
      for (const key of Reflect.ownKeys(at)) {
        if (key === Symbol.toStringTag) continue;
        names.push(key === Symbol.asyncDispose ? '[Symbol.asyncDispose]' : String(key));
      }
    }
    return names.sort();
  };
  t.strictSame(namesAt(sender), [...SESSION, ...SENDER].sort());
  t.strictSame(namesAt(receiver), [...SESSION, ...RECEIVER].sort());
  t.equal(Object.prototype.toString.call(sender), '[object Sender]');
  // Live, and to be set where it may be.
  sender.maxBandwidth = 5e8;
  t.equal(sender.maxBandwidth, 5e8);
  t.throws(() => ((receiver as { address: unknown }).address = undefined), TypeError);
  // A method may be taken off its session.
  const queue = sender.queueRange;
  await queue('ram', 0, 4096);
  await Promise.all([sender.sync(), receiver.sync()]);
  t.equal(sender.stats().zeroPages, 1);
  await Promise.all([sender.end(), receiver.end()]);
});
