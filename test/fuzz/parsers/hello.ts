/** What a connection begins with: a hello, or the ClientHello of TLS. */
import { Duplex } from 'node:stream';
import tls from 'node:tls';
import { Admission } from '../../../src/transport/admission.js';
import { offersTls12 } from '../../../src/transport/tls/client-hello.js';
import { HELLO_BYTES, encodeHello, formatUuid } from '../../../src/wire/hello.js';
import { readCapture } from '../../support/reference-decoder.js';
import { Fault, cut, type Fuzzer, type Seed } from '../contract.js';
import { HELLO_FIELDS } from '../seeds.js';

const KEY = Buffer.alloc(16, 0x4b);
const CHANNELS = 2;

async function clientHello(): Promise<Buffer> {
  let record!: Buffer;
  const wire = new Duplex({
    read: () => {},
    write: (bytes: Buffer, _encoding, done) => {
      record ??= bytes;
      done();
    },
  });
  const socket = tls.connect({ socket: wire, rejectUnauthorized: false });
  socket.on('error', () => {});
  while (record === undefined) await new Promise((resolve) => setImmediate(resolve));
  socket.destroy();
  return record;
}

const fuzzer: Fuzzer = {
  name: 'hello',
  what: 'the first bytes of a connection: hello, key, ClientHello',
  runs: 4000,
  most: { bytes: 65536, perByte: 4 },
  words: [Buffer.from('11223344', 'hex'), Buffer.from('QEVM'), KEY],
  async seeds() {
    const hellos = ['q100-none.ch0', 'q100-none.ch1', 'q72-zstd.ch1'].map((name) =>
      readCapture(name).subarray(0, 64),
    );
    hellos.push(encodeHello({ id: 1, uuid: Buffer.alloc(16) }, KEY));
    const begun = await clientHello();
    // Record, handshake, version, random, session id, cipher suites; the rest are extensions of a type and a length.
    const fields = [
      '+1',
      '+2',
      '+2',
      '+1',
      '+3',
      '+2',
      '=32',
      '+1',
      `=${begun[43]}`,
      '+2',
      ...Array<string>(80).fill('+2'),
    ];
    return [...hellos.map((hello): Seed => cut(hello, HELLO_FIELDS)), cut(begun, fields)];
  },
  open: () => ({
    run(input) {
      offersTls12(input);
      // The listener reads as many before it looks.
      const hello = Buffer.alloc(HELLO_BYTES);
      input.copy(hello);
      if (input[0] === 0x16) return;
      for (const key of [undefined, KEY]) new Admission(CHANNELS, undefined, key).isStranger(hello);
      const { id, uuid } = new Admission(CHANNELS, undefined).check(hello);
      if (id >= CHANNELS || uuid.length !== 16) throw new Fault(`channel ${id} of ${CHANNELS} was let in`);
      formatUuid(uuid);
    },
  }),
};
export default fuzzer;
