/** Programs in which a session cannot live: each call is refused with what to do, and nothing is left or ends. */
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import zlib from 'node:zlib';
import { build } from 'esbuild';
import t from 'tap';
import { findLibzstd } from '../src/native/libzstd.js';
import { WITHOUT_TAP } from './cli/cli.js';

const INDEX = fileURLToPath(new URL('../src/index.js', import.meta.url));
const FLAG = ['--permission', '--experimental-permission'].find((flag) =>
  process.allowedNodeEnvironmentFlags.has(flag),
) as string;
const HAS_NET = process.allowedNodeEnvironmentFlags.has('--allow-net');

/** Opens a receiver and a sender; prints `ok` or the code and message of each call that fails. */
const USE = `
const blocks = () => [{ name: 'pc.ram', memory: new SharedArrayBuffer(65536) }];
const calls = {
  receiver: () => createReceiver({ address: { host: '127.0.0.1', port: 0 }, blocks: blocks() }),
  sender: () => createSender({ address: { host: '127.0.0.1', port: 1 }, blocks: blocks() }),
};
const made = await calls.receiver().catch((error) => error);
if (made instanceof MultifdError) {
  console.log(made.code, made.message);
  for (const call of [calls.sender]) await call().catch(({ code, message }) => console.log(code, message));
} else {
  const sender = await createSender({ address: made.address, blocks: blocks() });
  await Promise.all([sender.sync(), made.sync()]);
  await Promise.all([sender.end(), made.end()]);
  console.log('ok');
}
`;
const IMPORT = `import { createReceiver, createSender, MultifdError } from ${JSON.stringify(INDEX)};\n`;

const folder = t.testdir();

/** @returns what it printed, line by line, and how it ended */
function node(flags: string[], source: string): { lines: string[]; status: number | null } {
  const program = path.join(folder, 'program.mjs');
  fs.writeFileSync(program, source);
  const { stdout, status } = spawnSync('env', [...WITHOUT_TAP, process.execPath, ...flags, program], {
    cwd: folder,
    encoding: 'utf8',
    timeout: 60_000,
  });
  return { lines: stdout.trim().split('\n'), status };
}

t.test('without --allow-worker each call says so', (t) => {
  const flags = [FLAG, '--allow-fs-read=*', ...(HAS_NET ? ['--allow-net'] : [])];
  const expected =
    'ERR_MULTIFD_RUNTIME received --permission without --allow-worker, expected both: each channel has a thread';
  t.strictSame(node(flags, IMPORT + USE), { lines: [expected, expected], status: 0 });
  t.strictSame(node([...flags, '--allow-worker'], IMPORT + USE), { lines: ['ok'], status: 0 });
  t.end();
});

t.test(
  'without --allow-addons zstd says so, where it is an addon',
  { skip: 'createZstdCompress' in zlib ? 'this Node has a zstd of its own' : false },
  (t) => {
    const flags = [FLAG, '--allow-fs-read=*', '--allow-worker'];
    const use = IMPORT + USE.replaceAll('blocks: blocks() }', "blocks: blocks(), compression: 'zstd' }");
    const expected =
      'ERR_MULTIFD_RUNTIME received --permission without --allow-addons, expected both: on this Node zstd is a native addon';
    t.strictSame(node(flags, use), { lines: [expected, expected], status: 0 });
    t.strictSame(node([...flags, '--allow-addons'], use), { lines: ['ok'], status: 0 });
    t.end();
  },
);

/** Packages that are not installed, as far as the calling thread sees. */
const hide = (pattern: RegExp): string => `
import Module from 'node:module';
const resolve = Module._resolveFilename;
Module._resolveFilename = function (name, ...rest) {
  if (!${pattern}.test(name)) return resolve.call(this, name, ...rest);
  throw Object.assign(new Error('Cannot find module ' + name), { code: 'MODULE_NOT_FOUND' });
};
`;

t.test(
  'zstd that nothing here can do is refused before anything connects, with what to install',
  { skip: 'createZstdCompress' in zlib ? 'this Node has a zstd of its own' : false },
  (t) => {
    const use = IMPORT + USE.replaceAll('blocks: blocks() }', "blocks: blocks(), compression: 'zstd' }");
    const PART = /^@mongodb-js.zstd-/;
    const KOFFI = /^koffi$/;
    const { lines, status } = node([], hide(new RegExp(`${PART.source}|${KOFFI.source}`)) + use);
    t.equal(status, 0);
    t.equal(lines.length, 2);
    for (const line of lines) {
      t.match(
        line,
        /^ERR_MULTIFD_RUNTIME compression zstd: this Node has none of its own \(22\.15 and later/,
      );
      if (process.platform === 'linux') t.match(line, 'not installed: npm install koffi');
      const part = `its part for ${process.platform} on ${process.arch} is not installed: npm install --include=optional`;
      t.ok(line.endsWith(`@mongodb-js/zstd cannot be loaded (${part})`), line);
    }
    t.strictSame(node([], hide(KOFFI) + use), { lines: ['ok'], status: 0 }, 'the binding alone is enough');
    const libzstd = findLibzstd() !== undefined;
    const alone = node([], hide(PART) + use);
    t.match(alone.lines[0], libzstd ? /^ok$/ : /^ERR_MULTIFD_RUNTIME/, "the system's libzstd alone is");
    t.end();
  },
);

t.test(
  'without --allow-net each call says so',
  { skip: HAS_NET ? false : 'this Node does not restrict connections' },
  (t) => {
    const expected =
      'ERR_MULTIFD_RUNTIME received --permission without --allow-net, expected both: each channel has a connection';
    t.strictSame(node([FLAG, '--allow-fs-read=*', '--allow-worker'], IMPORT + USE), {
      lines: [expected, expected],
      status: 0,
    });
    t.end();
  },
);

t.test('Deno and Bun are told that they are not Node', (t) => {
  for (const name of ['bun', 'deno']) {
    const pretend = `Object.defineProperty(process.versions, '${name}', { value: '9.8.7' });\n`;
    const expected = `ERR_MULTIFD_RUNTIME received ${name} 9.8.7, expected Node.js: others cannot give a connection to another thread`;
    t.strictSame(node([], IMPORT + pretend + USE), { lines: [expected, expected], status: 0 });
  }
  t.end();
});

const RECEIVE = `import { receiveMigration } from ${JSON.stringify(INDEX)};
import fs from 'node:fs';
const folder = fs.mkdtempSync('receive-');
const ac = new AbortController();
const onListening = () => ac.abort();
await receiveMigration({ address: { host: '127.0.0.1', port: 0 }, out: folder + '/vm.mig', signal: ac.signal, onListening })
  .catch(({ code, message }) => console.log(code, message));
console.log(fs.readdirSync(folder).join());
`;

t.test('a receive that is refused so leaves no file and no lock', (t) => {
  const pretend = `Object.defineProperty(process.versions, 'bun', { value: '9.8.7' });\n`;
  const { lines, status } = node([], RECEIVE.replace('const ac', `${pretend}const ac`));
  t.match(lines[0], /^ERR_MULTIFD_RUNTIME received bun/);
  t.strictSame([lines[1], status], [undefined, 0]);
  t.end();
});

t.test('with --permission a file is received, where Node has fsync then, or refused beforehand', (t) => {
  const flags = [FLAG, '--allow-fs-read=*', '--allow-fs-write=*', '--allow-worker'];
  const { lines, status } = node([...flags, ...(HAS_NET ? ['--allow-net'] : [])], RECEIVE);
  t.match(lines[0], /^ERR_MULTIFD_(ABORTED |RUNTIME .*: with it this Node has no fsync)/);
  t.strictSame([lines[1], status], [undefined, 0], 'nothing is left');
  t.end();
});

t.test('bundled into one file it says what is to stay outside', async (t) => {
  fs.writeFileSync(path.join(folder, 'use.js'), `${IMPORT}(async () => {${USE}})();`);
  for (const format of ['esm', 'cjs'] as const) {
    const outfile = path.join(folder, format === 'esm' ? 'bundle.mjs' : 'bundle.cjs');
    await build({
      entryPoints: [path.join(folder, 'use.js')],
      bundle: true,
      platform: 'node',
      format,
      outfile,
      external: ['@mongodb-js/zstd', 'piscina'],
      logLevel: 'error',
    });
    const { lines, status } = node([], `await import(${JSON.stringify(outfile)})`);
    t.equal(status, 0, format);
    t.equal(lines.length, 2, format);
    for (const line of lines) {
      t.match(line, /^ERR_MULTIFD_RUNTIME the file of the channels' threads is not beside this one/, format);
      t.match(line, /in a bundle leave multifd outside \(esbuild: --external:multifd/, format);
    }
  }
});
