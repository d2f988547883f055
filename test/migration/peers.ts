/**
 * A source and a destination by hand, for what goes wrong between them: the source plays a capture and asks for a return
 * path, the destination answers each PING and says SHUT when it is told to.
 */
import { once } from 'node:events';
import net from 'node:net';
import type { Test } from 'tap';
import type { Address } from '../../src/index.js';
import { Sender } from '../../src/send/sender.js';
import { eventually } from '../support/raw-channel.js';

/** OPEN_RETURN_PATH and PING 1. */
const ASK = Buffer.from('0800010000' + '080002000400000001', 'hex');
const PING = Buffer.from('0800020004', 'hex');
const PONG = Buffer.from('00020004', 'hex');
export const SHUT_0 = Buffer.from('0001000400000000', 'hex');
export const SHUT_1 = Buffer.from('0001000400000001', 'hex');

/** The main stream with a return path asked for behind the configuration: header 8, 07, length, name. */
export function askingMain(main: Buffer): Buffer {
  const configured = 8 + 1 + 4 + main.readUInt32BE(9);
  return Buffer.concat([main.subarray(0, configured), ASK, main.subarray(configured)]);
}

/** Acts when a sender is told to end, until the test is over. */
export function beforeEnd(t: Test, act: () => void): void {
  const end = Object.getOwnPropertyDescriptor(Sender.prototype, 'end') as PropertyDescriptor;
  const really = end.value as (this: Sender) => Promise<void>;
  t.teardown(() => Object.defineProperty(Sender.prototype, 'end', end));
  Object.defineProperty(Sender.prototype, 'end', {
    ...end,
    value(this: Sender) {
      act();
      return really.call(this);
    },
  });
}

/** Where the devices' state begins in a main stream: behind the last footer of ram, section 1. */
export function tailAt(main: Buffer): number {
  const footer = Buffer.from('7e00000001', 'hex');
  // Devices have footers as well, with section ids of their own.
  return main.lastIndexOf(footer) + footer.length;
}

/** Connects like a QEMU: main stream first; writes what it is told to and notes what comes back. */
export class HandSource {
  readonly back: Buffer[] = [];
  readonly main: net.Socket;
  readonly channels: net.Socket[];

  constructor(t: Test, address: Address, channels: number) {
    const connect = (): net.Socket => net.connect(address as net.NetConnectOpts).on('error', () => {});
    this.main = connect().on('data', (bytes) => this.back.push(bytes));
    this.channels = Array.from({ length: channels }, () => connect().resume());
    t.teardown(() => this.destroy());
  }

  /** Was it told that the destination has loaded all? */
  get told(): boolean {
    return Buffer.concat(this.back).includes(SHUT_0);
  }

  /** Are all its connections closed by the other side? */
  async broken(): Promise<void> {
    await eventually(
      () => [this.main, ...this.channels].every((socket) => socket.closed),
      'the source is told by its connections',
    );
  }

  destroy(): void {
    for (const socket of [this.main, ...this.channels]) socket.destroy();
  }
}

/** Waits where a QEMU would: the first connection is the main stream. */
export class HandDestination {
  readonly #server: net.Server;
  readonly sockets: net.Socket[] = [];
  /** Bytes of the main stream. */
  bytes = 0;
  open = 0;
  /** Called with each channel that connects. */
  onChannel: () => void = () => {};

  private constructor(t: Test) {
    this.#server = net.createServer((socket) => this.#accept(socket));
    t.teardown(() => {
      this.#server.close();
      for (const socket of this.sockets) socket.destroy();
    });
  }

  static async listen(t: Test): Promise<HandDestination> {
    const destination = new HandDestination(t);
    destination.#server.listen(0, '127.0.0.1');
    await once(destination.#server, 'listening');
    return destination;
  }

  get address(): Address {
    return { host: '127.0.0.1', port: (this.#server.address() as net.AddressInfo).port };
  }

  get main(): net.Socket {
    return this.sockets[0];
  }

  #accept(socket: net.Socket): void {
    this.open++;
    socket.on('error', () => {});
    socket.on('close', () => this.open--);
    this.sockets.push(socket);
    if (this.sockets.length > 1) {
      socket.resume();
      this.onChannel();
      return;
    }
    socket.on('data', (bytes) => {
      this.bytes += bytes.length;
      for (let at = bytes.indexOf(PING); at >= 0; at = bytes.indexOf(PING, at + PING.length)) {
        const value = bytes.subarray(at + PING.length, at + PING.length + 4);
        socket.write(Buffer.concat([PONG, value]));
      }
    });
  }

  async has(bytes: number): Promise<void> {
    await eventually(() => this.bytes >= bytes, `${bytes} bytes at the destination`);
  }
}
