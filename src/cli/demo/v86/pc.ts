/**
 * A PC of v86 that can be moved: what createMigrationSource() and createMigrationDestination() ask for, and nothing else. It is
 * the README's second example as well, without its types.
 *
 * Facts about v86 0.5.462 that it goes by:
 * - All of it runs on the thread that made it, between two turns of the event loop. Its RAM is a part of a WebAssembly.Memory
 *   that grows.
 * - It does not tell which pages were written to: option `dirty` is left out.
 * - save_state() packs RAM into its state by pack_memory(), and restore_state() unpacks it.
 * - restore_state() puts copies in the place of three registers, of which the CPU then knows nothing: flags are lost.
 * - The timer's start is a time of performance.now(), which begins with each process.
 * - restore_state() fails where the PC has no hard disk: one of 512 bytes will do.
 * - stop() waits for the next turn, which is up to 100 ms off while the CPU halts, unless it is woken.
 */
import { V86, type V86Options } from 'v86';

/** What v86.d.ts does not name. */
interface Cpu {
  mem8: Uint8Array;
  wasm_memory: { buffer: ArrayBuffer; grow: (pages: number) => number };
  devices: { pit: { counter_start_time: Float64Array } };
  pack_memory: () => { packed_memory: Uint8Array; bitmap: { get_buffer: () => ArrayBuffer } };
  unpack_memory: () => void;
  stop_idling: () => void;
  reg32: Int32Array;
  cr: Int32Array;
  last_result: Int32Array;
  fpu_status_word: Uint16Array;
  mxcsr: Int32Array;
}
type Emulator = V86 & {
  v86: { cpu: Cpu; yield: (ms: number, tick: number) => void };
};

export class Pc {
  emulator: Emulator;

  static async boot(options: V86Options): Promise<Pc> {
    const emulator = new V86(options) as Emulator;
    await new Promise((resolve) => emulator.add_listener('emulator-loaded', () => resolve(emulator)));
    return new Pc(emulator);
  }
  constructor(emulator: Emulator) {
    this.emulator = emulator;
    this.cpu.pack_memory = () => ({
      packed_memory: new Uint8Array(0),
      bitmap: { get_buffer: () => new ArrayBuffer(0) },
    }); // states are without RAM
    this.cpu.unpack_memory = () => {};
  }
  get cpu(): Cpu {
    return this.emulator.v86.cpu;
  }

  get blocks() {
    const { mem8, wasm_memory: wasm } = this.cpu;
    return [{ name: 'pc.ram', memory: { wasm, offset: mem8.byteOffset, size: mem8.length } }];
  }
  get source() {
    return {
      machine: 'v86-1.0',
      blocks: this.blocks,
      devices: [{ idstr: 'v86', save: () => this.save() }],
      pause: () => this.pause(),
      resume: () => this.start(),
    };
  }
  get destination() {
    return {
      machine: 'v86-1.0',
      blocks: this.blocks,
      devices: [{ idstr: 'v86', load: (data: Buffer) => this.load(data) }],
      start: () => this.start(),
    };
  }

  async pause() {
    this.throttle(0);
    const stopped = this.emulator.stop();
    this.cpu.stop_idling(); // now, and not when the guest would have woken up
    await stopped;
  }
  start() {
    void this.emulator.run();
  }
  throttle(percent: number) {
    const { v86 } = this.emulator;
    const { yield: next } = Object.getPrototypeOf(v86) as typeof v86;
    const restMs = percent / (100 - percent); // a turn takes about a millisecond
    v86.yield = (ms, tick) => next.call(v86, Math.max(ms, restMs), tick);
  }
  async save() {
    this.turnBack(performance.now());
    const state = await this.emulator.save_state();
    this.turnBack(-performance.now());
    return new Uint8Array(state);
  }
  async load(data: Buffer) {
    const { last_result, fpu_status_word, mxcsr } = this.cpu;
    await this.emulator.restore_state(Uint8Array.from(data).buffer);
    for (const [name, register] of Object.entries({ last_result, fpu_status_word, mxcsr })) {
      register.set(this.cpu[name as 'mxcsr']); // restore_state() gives it to the debugger alone
      Object.assign(this.cpu, { [name]: register });
    }
    this.turnBack(-performance.now());
  }
  turnBack(ms: number) {
    const { pit } = this.cpu.devices; // its times are this process's
    pit.counter_start_time = pit.counter_start_time.map((time) => time - ms);
  }
}
