/** A destination by hand: takes the stream of postcopy apart, and asks for what a test tells it to. */
import { once } from 'node:events';
import net from 'node:net';
import type { Test } from 'tap';
import type { Address } from '../../src/index.js';
import { eventually } from '../support/raw-channel.js';

const PAGE = 4096;

export interface Record {
  block: string;
  page: number;
  /** Undefined for ZERO. */
  data: Buffer | undefined;
}

/** What each test may have otherwise than a QEMU. */
export interface Ways {
  /** PONGs that are not answered. */
  silent?: number[];
  /** Reads nothing more once the guest runs. */
  stops?: boolean;
}

export class PostcopyDestination {
  readonly #server: net.Server;
  readonly #ways: Ways;
  socket!: net.Socket;
  #bytes = Buffer.alloc(0);
  #inPages = false;
  #block = '';
  readonly records: Record[] = [];
  readonly commands: { command: number; data: Buffer }[] = [];
  /** The stream's end has been read. */
  isWhole = false;
  onCommand: (command: number, data: Buffer) => void = () => {};

  private constructor(t: Test, ways: Ways) {
    this.#ways = ways;
    this.#server = net.createServer((socket) => {
      this.socket = socket;
      socket.on('error', () => {});
      socket.on('data', (bytes) => this.#take(bytes));
    });
    t.teardown(() => {
      this.#server.close();
      this.socket?.destroy();
    });
  }

  static async listen(t: Test, ways: Ways = {}): Promise<PostcopyDestination> {
    const destination = new PostcopyDestination(t, ways);
    destination.#server.listen(0, '127.0.0.1');
    await once(destination.#server, 'listening');
    return destination;
  }

  get address(): Address {
    return { host: '127.0.0.1', port: (this.#server.address() as net.AddressInfo).port };
  }

  /** Is the guest told to run? */
  async runs(): Promise<void> {
    await eventually(() => this.commands.some(({ command }) => command === 5), 'POSTCOPY_RUN');
  }

  say(type: number, data: Buffer): void {
    const head = Buffer.alloc(4);
    head.writeUInt16BE(type, 0);
    head.writeUInt16BE(data.length, 2);
    this.socket.write(Buffer.concat([head, data]));
  }

  request(block: string | undefined, offset: number, length = PAGE): void {
    const data = Buffer.alloc(12);
    data.writeBigUInt64BE(BigInt(offset), 0);
    data.writeUInt32BE(length, 8);
    if (block === undefined) this.say(4, data);
    else this.say(3, Buffer.concat([data, Buffer.of(block.length), Buffer.from(block)]));
  }

  shut(status: number): void {
    this.say(1, Buffer.from([0, 0, 0, status]));
  }

  #take(bytes: Buffer): void {
    this.#bytes = Buffer.concat([this.#bytes, bytes]);
    while (this.#step());
  }

  /** One item; false while it is not whole. */
  #step(): boolean {
    const bytes = this.#bytes;
    if (this.#inPages) return this.#record(bytes);
    const first = bytes[0];
    // The header and the configuration end where the first command begins; so does START ram, and each device.
    if (first === 0x08 && bytes.length >= 5) {
      const length = bytes.readUInt16BE(3);
      if (bytes.length < 5 + length) return false;
      this.#command(bytes.readUInt16BE(1), bytes.subarray(5, 5 + length));
      return this.#skip(5 + length);
    }
    if (first === 0x02 && bytes.length >= 5) {
      this.#inPages = true;
      return this.#skip(5);
    }
    if (first === 0x03 && bytes.length >= 5 + 8 + 5 + 1) {
      this.isWhole = true;
      return this.#skip(bytes.length);
    }
    if (first === 0x7e && bytes.length >= 5) return this.#skip(5);
    // PING 3 and RUN end the package, whatever its devices hold.
    const marks = ['0800010000', '0800020004000000', '080006'].map((hex) => Buffer.from(hex, 'hex'));
    const at = Math.min(...marks.map((mark) => bytes.indexOf(mark)).filter((found) => found > 0));
    return Number.isFinite(at) && this.#skip(at);
  }

  #command(command: number, data: Buffer): void {
    this.commands.push({ command, data: Buffer.from(data) });
    if (command === 2 && this.#ways.silent?.includes(data.readUInt32BE(0)) !== true) this.say(2, data);
    if (command === 5 && this.#ways.stops === true) this.socket.pause();
    this.onCommand(command, data);
  }

  #record(bytes: Buffer): boolean {
    if (bytes.length < 8) return false;
    const word = Number(bytes.readBigUInt64BE(0));
    const flags = word % PAGE;
    let at = 8;
    if (flags === 0x10) {
      this.#inPages = false;
      return this.#skip(8);
    }
    if ((flags & 0x20) === 0) {
      if (bytes.length < 9 || bytes.length < 9 + bytes[8]) return false;
      this.#block = bytes.toString('latin1', 9, 9 + bytes[8]);
      at = 9 + bytes[8];
    }
    const isPage = (flags & 0x08) !== 0;
    const end = at + (isPage ? PAGE : 1);
    if (bytes.length < end) return false;
    const data = isPage ? Buffer.from(bytes.subarray(at, end)) : undefined;
    this.records.push({ block: this.#block, page: (word - flags) / PAGE, data });
    return this.#skip(end);
  }

  #skip(count: number): boolean {
    this.#bytes = this.#bytes.subarray(count);
    return this.#bytes.length > 0;
  }
}
