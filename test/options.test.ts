import t, { type Test } from 'tap';
import { MultifdError } from '../src/errors.js';
import {
  COMPRESSIONS,
  MAX_CHANNELS,
  type ReceiverOptions,
  type SenderOptions,
  ZERO_PAGE_DETECTIONS,
  checkMaxBandwidth,
  checkReceiverOptions,
  checkSenderOptions,
  isIdstr,
} from '../src/options.js';
import { type Address, checkAddress, formatAddress, parseAddress } from '../src/transport/address.js';

const memory = new SharedArrayBuffer(65536);
const REQUIRED = { address: 'tcp:127.0.0.1:4444', blocks: [{ name: 'pc.ram', memory }] } as const;

const sender = (options: object = {}) => checkSenderOptions({ ...REQUIRED, ...options });
const receiver = (options: object = {}) => checkReceiverOptions({ ...REQUIRED, ...options });
const BOTH = { sender, receiver };
type Checker = (options?: object) => object;
/** A value, and how a message shows it. */
type Given = [value: unknown, given: string];

/** Asserts ERR_MULTIFD_OPTION that names the option, what was given and what is allowed; what may be meant is let alone. */
function wrong(t: Test, check: () => unknown, option: string, given: string, allowed: string): void {
  const error = t.throws(check, MultifdError, `${option}: ${given}`) as MultifdError;
  t.equal(error.code, 'ERR_MULTIFD_OPTION');
  const message = error.message.replace(/; did you mean .*\?$/, '');
  t.equal(message, `option ${option}: given ${given}, allowed ${allowed}`);
}

t.test('parseAddress() takes text from elsewhere', async (t) => {
  const cases: [text: string, address: Address][] = [
    ['tcp:far.example:4444', { host: 'far.example', port: 4444 }],
    ['tcp:[::1]:0', { host: '::1', port: 0 }],
    ['unix:/run/vm.sock', { path: '/run/vm.sock' }],
  ];
  for (const [text, address] of cases) t.strictSame(parseAddress(text), address);
  const allowed = "{ host, port }, { path }, 'tcp:HOST:PORT' or 'unix:PATH'";
  for (const text of ['localhost:1', '']) wrong(t, () => parseAddress(text), 'address', `"${text}"`, allowed);
});

t.test('the defaults of a sender', async (t) => {
  const { blocks, uuid, ...rest } = sender();
  t.strictSame(rest, {
    address: { host: '127.0.0.1', port: 4444 },
    channels: 2,
    compression: 'none',
    pageSize: 4096,
    stallTimeoutMs: 30000,
    connectTimeoutMs: 30000,
    deviceStateBytes: 1048576 + 4096,
    tls: undefined,
    signal: undefined,
    zlibLevel: 1,
    zstdLevel: 1,
    zeroPageDetection: 'multifd',
    maxBandwidth: 0,
    zeroCopySend: false,
    onZeroPages: undefined,
  });
  t.same(uuid, Buffer.alloc(16));
  t.match(blocks, [{ name: 'pc.ram', index: 0, size: 65536, pageCount: 16, kind: 'shared' }]);
});

t.test('the defaults of a receiver', async (t) => {
  const { blocks, uuid, ...rest } = receiver();
  t.strictSame(rest, {
    address: { host: '127.0.0.1', port: 4444 },
    channels: 2,
    compression: 'none',
    pageSize: 4096,
    stallTimeoutMs: 30000,
    connectTimeoutMs: 30000,
    deviceStateBytes: 1048576 + 4096,
    tls: undefined,
    signal: undefined,
    acceptTimeoutMs: 0,
    devices: [],
    listenMode: 0o600,
    maxStrays: 256,
  });
  t.same(uuid, Buffer.alloc(16));
  t.equal(blocks.length, 1);
});

t.test('an option that is undefined has its default', async (t) => {
  const names = [
    'channels',
    'compression',
    'pageSize',
    'uuid',
    'stallTimeoutMs',
    'connectTimeoutMs',
    'signal',
  ];
  const common = Object.fromEntries([...names, 'deviceStateBytes'].map((name) => [name, undefined]));
  const levels = { zlibLevel: undefined, zstdLevel: undefined, zeroPageDetection: undefined };
  t.same(sender({ ...common, ...levels, maxBandwidth: undefined, onZeroPages: undefined }), sender());
  t.same(receiver({ ...common, acceptTimeoutMs: undefined, devices: undefined }), receiver());
});

const MAX_TIMEOUT = 2147483647;
const INTEGERS: [name: string, min: number, max: number, of: (keyof typeof BOTH)[]][] = [
  ['channels', 1, 255, ['sender', 'receiver']],
  ['stallTimeoutMs', 1, MAX_TIMEOUT, ['sender', 'receiver']],
  ['connectTimeoutMs', 1, MAX_TIMEOUT, ['sender', 'receiver']],
  ['deviceStateBytes', 0, 67108864, ['sender', 'receiver']],
  ['zlibLevel', 0, 9, ['sender']],
  ['zstdLevel', 1, 20, ['sender']],
  ['maxBandwidth', 0, 9007199254740991, ['sender']],
  ['acceptTimeoutMs', 0, MAX_TIMEOUT, ['receiver']],
];

for (const [name, min, max, ends] of INTEGERS) {
  t.test(`${name} is an integer from ${min} to ${max}`, async (t) => {
    for (const end of ends) {
      const check: Checker = BOTH[end];
      t.match(check({ [name]: min }), { [name]: min });
      t.match(check({ [name]: max }), { [name]: max });
      const allowed = `an integer from ${min} to ${max}`;
      const cases: [value: unknown, given: string][] = [
        [min - 1, String(min - 1)],
        [max + 1, String(max + 1)],
        [min + 0.5, String(min + 0.5)],
        [NaN, 'NaN'],
        [Infinity, 'Infinity'],
        [String(min), `"${min}"`],
        [true, 'true'],
        [BigInt(min), String(min)],
        [[min], `[${min}]`],
        [{}, '{}'],
      ];
      for (const [value, given] of cases) wrong(t, () => check({ [name]: value }), name, given, allowed);
    }
  });
}

t.test('255 channels are the most', async (t) => {
  t.equal(MAX_CHANNELS, 255);
});

t.test('pageSize is a power of two from 4096 to 65536', async (t) => {
  for (const [end, check] of Object.entries(BOTH) as [string, Checker][]) {
    for (const pageSize of [4096, 8192, 16384, 32768, 65536]) t.match(check({ pageSize }), { pageSize }, end);
    for (const pageSize of [4097, 8191, 12288, 65535, 49152]) {
      wrong(t, () => check({ pageSize }), 'pageSize', String(pageSize), 'a power of two from 4096 to 65536');
    }
    for (const [pageSize, given] of [
      [4095, '4095'],
      [2048, '2048'],
      [65537, '65537'],
      [131072, '131072'],
      [0, '0'],
      [-4096, '-4096'],
      [4096.5, '4096.5'],
      ['4096', '"4096"'],
      [null, 'null'],
    ] as Given[]) {
      wrong(t, () => check({ pageSize }), 'pageSize', given, 'an integer from 4096 to 65536');
    }
  }
});

t.test('blocks are checked with the page size of the session', async (t) => {
  const blocks = [{ name: 'pc.ram', memory: new SharedArrayBuffer(4096) }];
  for (const check of Object.values(BOTH) as Checker[]) {
    t.match(check({ blocks }), { blocks: [{ pageCount: 1 }] });
    t.throws(() => check({ blocks, pageSize: 8192 }), {
      code: 'ERR_MULTIFD_BLOCK',
      message: /page size 8192/,
    });
    t.throws(() => check({ blocks: [] }), { code: 'ERR_MULTIFD_BLOCK' });
    t.throws(() => check({ blocks: undefined }), { code: 'ERR_MULTIFD_BLOCK' });
  }
});

t.test('compression is none, zlib or zstd', async (t) => {
  t.strictSame(COMPRESSIONS, ['none', 'zlib', 'zstd']);
  for (const check of Object.values(BOTH) as Checker[]) {
    for (const compression of ['none', 'zlib', 'zstd']) t.match(check({ compression }), { compression });
    for (const [compression, given] of [
      ['qpl', '"qpl"'],
      ['', '""'],
      ['Zlib', '"Zlib"'],
      ['toString', '"toString"'],
      [null, 'null'],
      [0, '0'],
      [['zlib'], '["zlib"]'],
    ] as Given[]) {
      wrong(t, () => check({ compression }), 'compression', given, 'one of none, zlib, zstd');
    }
  }
});

t.test('zeroPageDetection is none, legacy or multifd, of a sender', async (t) => {
  t.strictSame(ZERO_PAGE_DETECTIONS, ['none', 'legacy', 'multifd']);
  t.match(sender({ zeroPageDetection: 'none' }), { zeroPageDetection: 'none' });
  t.match(sender({ zeroPageDetection: 'multifd' }), { zeroPageDetection: 'multifd' });
  for (const [zeroPageDetection, given] of [
    ['Multifd', '"Multifd"'],
    [null, 'null'],
    [false, 'false'],
  ] as Given[]) {
    const check = (): unknown => sender({ zeroPageDetection });
    wrong(t, check, 'zeroPageDetection', given, 'one of none, legacy, multifd');
  }
});

t.test('onZeroPages is a function, which legacy zero pages cannot do without', async (t) => {
  const onZeroPages = (): void => undefined;
  t.equal(sender({ zeroPageDetection: 'legacy', onZeroPages }).onZeroPages, onZeroPages);
  t.equal(sender({ onZeroPages }).onZeroPages, onZeroPages, 'elsewhere it is borne');
  const needed = "a function, since zeroPageDetection is 'legacy'";
  wrong(t, () => sender({ zeroPageDetection: 'legacy' }), 'onZeroPages', 'undefined', needed);
  for (const [value, given] of [
    ['f', '"f"'],
    [null, 'null'],
    [{}, '{}'],
  ] as Given[]) {
    wrong(t, () => sender({ onZeroPages: value }), 'onZeroPages', given, 'a function');
  }
});

t.test('maxBandwidth is checked the same when it is set later', async (t) => {
  t.equal(checkMaxBandwidth(0), 0);
  t.equal(checkMaxBandwidth(1), 1);
  t.equal(checkMaxBandwidth(9007199254740991), 9007199254740991);
  const allowed = 'an integer from 0 to 9007199254740991';
  for (const [value, given] of [
    [-1, '-1'],
    [9007199254740992, '9007199254740992'],
    [0.5, '0.5'],
    [NaN, 'NaN'],
    ['100', '"100"'],
    [null, 'null'],
    [{}, '{}'],
  ] as Given[]) {
    wrong(t, () => checkMaxBandwidth(value), 'maxBandwidth', given, allowed);
  }
});

t.test('uuid is text, in either case', async (t) => {
  const bytes = Buffer.from('00112233445566778899aabbccddeeff', 'hex');
  for (const check of [sender, receiver]) {
    t.same(check({ uuid: '00112233-4455-6677-8899-aabbccddeeff' }).uuid, bytes);
    t.same(check({ uuid: '00112233-4455-6677-8899-AABBCCDDEEFF' }).uuid, bytes);
    for (const [uuid, given] of [
      ['', '""'],
      ['00112233445566778899aabbccddeeff', '"00112233445566778899aabbccddeeff"'],
      ['00112233-4455-6677-8899-aabbccddeef', '"00112233-4455-6677-8899-aabbccddeef"'],
      ['00112233-4455-6677-8899-aabbccddeefg', '"00112233-4455-6677-8899-aabbccddeefg"'],
      [null, 'null'],
      [7, '7'],
    ] as Given[]) {
      wrong(t, () => check({ uuid }), 'uuid', given, 'text of the form xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx');
    }
    const error = t.throws(() => check({ uuid: bytes }), { code: 'ERR_MULTIFD_OPTION' }) as MultifdError;
    t.match(error.message, /option uuid: given \{"type":"Buffer".*, allowed text of the form/);
  }
});

t.test('signal is an AbortSignal, which may have fired already', async (t) => {
  const { signal } = new AbortController();
  for (const check of [sender, receiver]) {
    t.equal(check({ signal }).signal, signal);
    t.equal(check({ signal: AbortSignal.abort() }).signal?.aborted, true);
    for (const [value, given] of [
      [null, 'null'],
      [{ aborted: false }, '{"aborted":false}'],
      [new AbortController(), '{}'],
      ['SIGTERM', '"SIGTERM"'],
    ] as Given[]) {
      wrong(t, () => check({ signal: value }), 'signal', given, 'an AbortSignal');
    }
  }
});

const ADDRESS_FORMS = "{ host, port }, { path }, 'tcp:HOST:PORT' or 'unix:PATH'";

t.test('an address has many forms', async (t) => {
  const forms: [address: unknown, checked: object][] = [
    ['tcp://h:4444', { host: 'h', port: 4444 }],
    ['tcp://[::1]:4444/', { host: '::1', port: 4444 }],
    ['unix:///run/vm.sock', { path: '/run/vm.sock' }],
    [{ port: 4444 }, { host: '127.0.0.1', port: 4444 }],
    [
      { host: 'example.org', port: 1 },
      { host: 'example.org', port: 1 },
    ],
    [
      { host: '::1', port: 65535 },
      { host: '::1', port: 65535 },
    ],
    [
      { host: undefined, port: 80, path: undefined },
      { host: '127.0.0.1', port: 80 },
    ],
    [{ path: '/run/x.sock' }, { path: '/run/x.sock' }],
    ['tcp:127.0.0.1:4444', { host: '127.0.0.1', port: 4444 }],
    ['tcp:localhost:1', { host: 'localhost', port: 1 }],
    ['tcp::4444', { host: '127.0.0.1', port: 4444 }],
    ['tcp:[::1]:4444', { host: '::1', port: 4444 }],
    ['tcp:[fe80::1%eth0]:65535', { host: 'fe80::1%eth0', port: 65535 }],
    ['unix:/run/x.sock', { path: '/run/x.sock' }],
    ['unix:relative:with:colons', { path: 'relative:with:colons' }],
  ];
  for (const [address, checked] of forms) {
    t.strictSame(checkAddress(address, 1), checked);
    t.strictSame(sender({ address }).address, checked);
    t.strictSame(receiver({ address }).address, checked);
  }
});

t.test('what is no address is refused', async (t) => {
  const wrongOnes: [address: unknown, given: string][] = [
    [undefined, 'undefined'],
    [null, 'null'],
    [4444, '4444'],
    ['', '""'],
    ['127.0.0.1:4444', '"127.0.0.1:4444"'],
    ['tcp:4444', '"tcp:4444"'],
    ['tcp:host:', '"tcp:host:"'],
    ['tcp:host:x', '"tcp:host:x"'],
    ['tcp:host:-1', '"tcp:host:-1"'],
    ['tcp:host:1.5', '"tcp:host:1.5"'],
    ['tcp:::1:4444', '"tcp:::1:4444"'],
    ['tcp:host:4444 ', '"tcp:host:4444 "'],
    ['TCP:host:4444', '"TCP:host:4444"'],
    ['unix:', '"unix:"'],
    ['fd:3', '"fd:3"'],
    [{ path: '' }, '{"path":""}'],
    [{ path: 3 }, '{"path":3}'],
    [{ path: '/x', port: 1 }, '{"path":"/x","port":1}'],
    [{ path: '/x', host: 'h' }, '{"path":"/x","host":"h"}'],
    [{ host: '', port: 1 }, '{"host":"","port":1}'],
    [{ host: 7, port: 1 }, '{"host":7,"port":1}'],
  ];
  for (const [address, given] of wrongOnes) {
    for (const check of [sender, receiver])
      wrong(t, () => check({ address }), 'address', given, ADDRESS_FORMS);
  }
});

t.test('a sender takes ports from 1, a receiver from 0, both up to 65535', async (t) => {
  for (const [check, lowest] of [
    [sender, 1],
    [receiver, 0],
  ] as const) {
    const allowed = `an integer from ${lowest} to 65535`;
    for (const port of [lowest, 65535]) {
      t.strictSame(check({ address: { port } }).address, { host: '127.0.0.1', port });
      t.strictSame(check({ address: `tcp:h:${port}` }).address, { host: 'h', port });
    }
    for (const port of [lowest - 1, 65536]) {
      wrong(t, () => check({ address: { port } }), 'address.port', String(port), allowed);
    }
    wrong(t, () => check({ address: 'tcp:h:65536' }), 'address.port', '65536', allowed);
    for (const [port, given] of [
      ['80', '"80"'],
      [80.5, '80.5'],
      [undefined, 'undefined'],
      [null, 'null'],
    ] as Given[]) {
      wrong(t, () => check({ address: { host: 'h', port } }), 'address.port', given, allowed);
    }
    wrong(t, () => check({ address: {} }), 'address.port', 'undefined', allowed);
  }
  wrong(t, () => sender({ address: 'tcp:h:0' }), 'address.port', '0', 'an integer from 1 to 65535');
});

t.test('an address is formatted so that it can be read again', async (t) => {
  for (const text of ['tcp:127.0.0.1:4444', 'tcp:[::1]:1', 'tcp:example.org:65535', 'unix:/run/x.sock']) {
    t.equal(formatAddress(checkAddress(text, 0)), text);
  }
  t.equal(formatAddress({ port: 9 }), 'tcp:127.0.0.1:9');
});

t.test('devices are named by idstr and instanceId, each once', async (t) => {
  const load = (): void => undefined;
  const devices = [
    { idstr: '0000:00:02.0/vfio', instanceId: 0, load },
    { idstr: '0000:00:02.0/vfio', instanceId: 4294967295, load },
    { idstr: 'x'.repeat(255), instanceId: 0, load },
    { idstr: ' ~', instanceId: 0, load },
  ];
  t.strictSame(receiver({ devices }).devices, devices);
  t.strictSame(receiver({ devices: [] }).devices, []);

  const device = { idstr: 'vfio', instanceId: 0, load };
  const id = 'an integer from 0 to 4294967295';
  const characters = '1 to 255 printable ASCII characters';
  const cases: [devices: unknown, option: string, given: string, allowed: string][] = [
    [{}, 'devices', '{}', 'an array of { idstr, instanceId, load }'],
    ['vfio', 'devices', '"vfio"', 'an array of { idstr, instanceId, load }'],
    [[undefined], 'devices[0].idstr', 'undefined', characters],
    [[null], 'devices[0].idstr', 'undefined', characters],
    [[device, 'vfio'], 'devices[1].idstr', 'undefined', characters],
    [[{ ...device, idstr: '' }], 'devices[0].idstr', '""', characters],
    [[{ ...device, idstr: 'x'.repeat(256) }], 'devices[0].idstr', `"${'x'.repeat(256)}"`, characters],
    [[{ ...device, idstr: 'é' }], 'devices[0].idstr', '"é"', characters],
    [[{ ...device, idstr: 'a\n' }], 'devices[0].idstr', '"a\\n"', characters],
    [[{ ...device, idstr: 'a\0' }], 'devices[0].idstr', '"a\\u0000"', characters],
    [[{ ...device, idstr: 7 }], 'devices[0].idstr', '7', characters],
    [[{ ...device, instanceId: -1 }], 'devices[0].instanceId', '-1', id],
    [[{ ...device, instanceId: 4294967296 }], 'devices[0].instanceId', '4294967296', id],
    [[{ ...device, instanceId: 0.5 }], 'devices[0].instanceId', '0.5', id],
    [[{ ...device, instanceId: '0' }], 'devices[0].instanceId', '"0"', id],
    [[{ ...device, instanceId: undefined }], 'devices[0].instanceId', 'undefined', id],
    [[device, { ...device, instanceId: 1, load: undefined }], 'devices[1].load', 'undefined', 'a function'],
    [[{ ...device, load: 'load' }], 'devices[0].load', '"load"', 'a function'],
    [[device, { ...device }], 'devices', '"vfio/0"', 'each idstr and instanceId once'],
  ];
  for (const [value, option, given, allowed] of cases) {
    wrong(t, () => receiver({ devices: value }), option, given, allowed);
  }
});

t.test('idstr is 1 to 255 printable ASCII characters', async (t) => {
  for (const text of ['a', ' ', '~', 'x'.repeat(255)]) t.equal(isIdstr(text), true);
  for (const text of ['', 'x'.repeat(256), 'a\n', 'a\0', '\x1f', '\x7f', 'é']) t.equal(isIdstr(text), false);
});

t.test('an unknown option is refused, also one of the other end', async (t) => {
  const common =
    'address, blocks, channels, compression, pageSize, uuid, stallTimeoutMs, connectTimeoutMs, ' +
    'deviceStateBytes, tls, signal';
  const ofSender = `one of ${common}, zlibLevel, zstdLevel, zeroPageDetection, maxBandwidth, zeroCopySend, onZeroPages`;
  const ofReceiver = `one of ${common}, acceptTimeoutMs, devices, listenMode, maxStrays`;
  for (const name of ['maxBandwith', 'Channels', '', 'acceptTimeoutMs', 'devices', 'toString']) {
    wrong(t, () => sender({ [name]: 1 }), name, '"an unknown option"', ofSender);
  }
  for (const name of [
    'zlibLevel',
    'zstdLevel',
    'zeroPageDetection',
    'maxBandwidth',
    'onZeroPages',
    'device',
  ]) {
    wrong(t, () => receiver({ [name]: 1 }), name, '"an unknown option"', ofReceiver);
  }
  wrong(t, () => sender({ maxBandwith: undefined }), 'maxBandwith', '"an unknown option"', ofSender);
});

t.test('what may have been meant ends the message', async (t) => {
  const device = { idstr: 'dev', instanceId: 0, load: () => undefined };
  const block = { name: 'pc.ram', memory };
  const cases: [check: () => unknown, meant: string][] = [
    [() => sender({ chanels: 2 }), 'channels'],
    [() => receiver({ 'multifd-channels': 2 }), 'channels'],
    [() => sender({ level: 3 }), 'zlibLevel or zstdLevel'],
    [() => sender({ compression: 'zst' }), 'zstd'],
    [() => sender({ zeroPageDetection: 'leagcy' }), 'legacy'],
    [() => sender({ address: 'localhost:4444' }), 'tcp:localhost:4444'],
    [() => receiver({ address: ':4444' }), 'tcp::4444'],
    [() => receiver({ address: '/run/vm.sock' }), 'unix:/run/vm.sock'],
    [() => receiver({ address: './vm.sock' }), 'unix:./vm.sock'],
    [() => receiver({ address: { hots: 'far', port: 1 } }), 'host'],
    [() => receiver({ blocks: [{ ...block, frehs: true }] }), 'fresh'],
    [() => receiver({ blocks: [{ name: 'pc.ram', memroy: memory }] }), 'memory'],
    [() => receiver({ blocks: [{ name: 'pc.ram', memory: { wasm: {}, ofset: 1 } }] }), 'offset'],
    [
      () => receiver({ devices: [{ ...device, instanceId: undefined, instanceID: 0 }] }),
      'instanceId by instanceID',
    ],
  ];
  for (const [check, meant] of cases) {
    const { message } = t.throws(check, MultifdError) as MultifdError;
    t.equal(/; did you mean (.*)\?$/.exec(message)?.[1], meant, message);
  }
  for (const check of [
    () => sender({ colour: 2 }),
    () => sender({ devices: [] }),
    () => sender({ compression: 'lz4' }),
    () => sender({ address: 'tcp:4444' }),
    () => sender({ address: 'fd:3' }),
    () => receiver({ devices: [{ ...device, load: undefined }] }),
  ]) {
    const { message } = t.throws(check, MultifdError) as MultifdError;
    t.notMatch(message, /did you mean/);
  }
});

t.test('what is no object of options is refused', async (t) => {
  for (const [options, given] of [
    [undefined, 'undefined'],
    [null, 'null'],
    ['tcp:h:1', '"tcp:h:1"'],
    [4444, '4444'],
  ] as Given[]) {
    const nothing = options as SenderOptions & ReceiverOptions;
    wrong(t, () => checkSenderOptions(nothing), 'options', given, 'an object');
    wrong(t, () => checkReceiverOptions(nothing), 'options', given, 'an object');
  }
});

t.test('what was given is told in short, whatever it is', async (t) => {
  const circular: Record<string, unknown> = {};
  circular.self = circular;
  for (const [value, given] of [
    [circular, /given an object, allowed/],
    [{ toJSON: () => undefined }, /given an object, allowed/],
    [{ n: 1n }, /given an object, allowed/],
    [{ text: 'x'.repeat(10000) }, /given \{"text":"x{191}, allowed/],
    [Symbol('s'), /given Symbol\(s\), allowed/],
  ] as const) {
    const error = t.throws(() => sender({ channels: value }), { code: 'ERR_MULTIFD_OPTION' }) as MultifdError;
    t.match(error.message, given);
  }
});

t.test("the caller's options are not changed", async (t) => {
  const options = Object.freeze({
    address: Object.freeze({ port: 4444 }),
    blocks: Object.freeze([Object.freeze({ name: 'pc.ram', memory })]),
    channels: 4,
  });
  t.equal(sender(options).channels, 4);
  t.equal(receiver(options).channels, 4);
});
