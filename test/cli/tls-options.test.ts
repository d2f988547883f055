/** `--tls-creds` and its fellows: what is refused and in which words, what passes through TLS, and that no key is told. */
import path from 'node:path';
import t from 'tap';
import { run } from './cli.js';
import { host, other, psk, root, tellsNoKey } from './tls-folders.js';

const TIMEOUT = { timeout: 60_000 };

const socket = `unix:${path.join(root, 's')}`;
const receive = ['receive', '--listen', socket, '--out', path.join(root, 'out')];
const send = ['send', path.join(root, 'no.mig'), '--to', socket];
const relay = ['relay', '--listen', socket, '--to', `unix:${path.join(root, 't')}`];

const WRONG: [string[], RegExp][] = [
  [[...receive, '--tls-authz', 'CN=a'], /'--tls-authz' needs option '--tls-creds <folder>'/],
  [[...receive, '--tls-no-verify-peer'], /'--tls-no-verify-peer' needs option '--tls-creds <folder>'/],
  [[...receive, '--tls-ciphers', 'x'], /'--tls-ciphers' needs option '--tls-creds <folder>'/],
  [[...receive, '--tls-creds', host, '--tls-hostname', 'a'], /unknown option '--tls-hostname'/],
  [
    [...receive, '--tls-creds', psk, '--tls-no-verify-peer'],
    /option --tls-no-verify-peer: allowed with certificates only/,
  ],
  [
    [...receive, '--tls-creds', host, '--tls-no-verify-peer', '--tls-authz', 'a'],
    /option --tls-authz: .*since --tls-no-verify-peer is given/,
  ],
  [[...receive, '--tls-creds', host, '--tls-min-version', '1.1'], /--tls-min-version.*'1.1'.*1.2, 1.3/],
  [
    [...receive, '--tls-creds', host, '--tls-ciphers', 'none-such'],
    /option --tls-ciphers: given "none-such"/,
  ],
  [
    [...receive, '--tls-creds', psk, '--tls-ciphers', 'HIGH:!SHA1:PSK-NULL-SHA256'],
    /given "PSK-NULL-SHA256", allowed ciphers that encrypt/,
  ],
  [
    [...receive, '--tls-creds', host, '--tls-ciphers', 'aNULL'],
    /given "aNULL", allowed ciphers that encrypt/,
  ],
  [[...receive, '--tls-creds', ''], /option --tls-creds: given an empty string, allowed a folder's path/],
  [[...send, '--tls-hostname', 'a'], /'--tls-hostname' needs option '--tls-creds <folder>'/],
  [[...send, '--tls-identity', 'a'], /'--tls-identity' needs option '--tls-creds <folder>'/],
  [[...send, '--tls-creds', host], /option --tls-hostname: given none.*unix socket/],
  [
    [...send, '--tls-creds', psk, '--tls-hostname', 'a'],
    /option --tls-hostname: given "a", allowed none with a PSK/,
  ],
  [
    [...send, '--tls-creds', host, '--tls-hostname', 'a', '--tls-identity', 'b'],
    /option --tls-identity: given one, allowed none/,
  ],
  [[...send, '--tls-creds', psk, '--tls-authz', 'a'], /unknown option '--tls-authz'/],
  [[...relay, '--tls-hostname-out', 'a'], /'--tls-hostname-out' needs option '--tls-creds-out <folder>'/],
  [
    [...relay, '--tls-creds-out', psk, '--tls-authz-in', 'a'],
    /'--tls-authz-in' needs option '--tls-creds-in <folder>'/,
  ],
  [
    [...relay, '--tls-creds-in', psk, '--tls-no-verify-peer-in'],
    /option --tls-no-verify-peer-in: allowed with/,
  ],
  [[...relay, '--tls-creds-out', host], /option --tls-hostname-out: given none/],
  [
    [...relay, '--tls-creds-out', psk, '--tls-hostname-out', 'a'],
    /option --tls-hostname-out: given "a", allowed none/,
  ],
  [[...relay, '--tls-creds', psk], /unknown option '--tls-creds'/],
];

t.test(
  'what does nothing or fits nothing is wrong usage, in the words of the flags',
  { ...TIMEOUT, jobs: 3 },
  async (t) => {
    for (const [args, message] of WRONG) {
      t.test(args.join(' ').replaceAll(root, ''), { buffered: true }, async (t) => {
        const { code, stdout, stderr } = await run(t, args);
        t.equal(code, 2);
        t.equal(stdout, '');
        t.match(stderr, message);
        t.notMatch(stderr, /option (?:in\.|out\.)?tls/);
        tellsNoKey(t, stderr);
      });
    }
  },
);

const UNFIT: [string[], RegExp][] = [
  [
    [...receive, '--tls-creds', '/no/such/folder'],
    /\/no\/such\/folder: no such folder \(option --tls-creds\)/,
  ],
  [[...receive, '--tls-creds', root], /neither ca-cert\.pem .* nor keys\.psk \(option --tls-creds\)/],
  [[...relay, '--tls-creds-in', root], /\(option --tls-creds-in\)/],
  [[...relay, '--tls-creds-out', root], /\(option --tls-creds-out\)/],
  [
    [...relay, '--tls-creds-out', other],
    /no key of the identity "qemu", but of "other"; option --tls-identity-out says which/,
  ],
];

t.test('a folder that is unfit is a failure that names the flag', { ...TIMEOUT, jobs: 3 }, async (t) => {
  for (const [args, message] of UNFIT) {
    t.test(args.join(' ').replaceAll(root, ''), { buffered: true }, async (t) => {
      const { code, stderr, result } = await run(t, [...args, '--json', '--verbose']);
      t.equal(code, 1);
      t.match(stderr, /^multifd: ERR_MULTIFD_TLS: /);
      t.match(result, { ok: false, error: { code: 'ERR_MULTIFD_TLS', message } });
      t.notMatch(result?.error?.message, /option (?:in\.|out\.)?tls/);
    });
  }
});
