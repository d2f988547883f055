/** The fault of a run: waits for its moment, strikes, and undoes what is to pass again. */
import { spawnSync } from 'node:child_process';
import type { Direction, PassOn, PassedConnection } from '../transport/pass-on.js';
import { Dice } from './dice.js';
import type { FaultPlan, SideName } from './engine-plan.js';
import type { Strike } from './messages.js';
import type { SideProcess } from './side-process.js';

/** What it found nothing to strike at is tried again. */
const AGAIN_MS = 10;
/** Of reorder: connections that come in this time are passed on in another order. */
const GATHER_MS = 120;

export interface StruckSides {
  source: SideProcess;
  destination: SideProcess;
  /** Asks a side to strike itself: was there something? */
  ask(side: SideName, what: Strike): Promise<boolean>;
}

export class EngineFault {
  /** When it struck, by performance.now(). */
  struckAt: number | undefined;
  /** Why it could not. */
  leftOut: string | undefined;
  readonly #plan: FaultPlan | undefined;
  readonly #sides: StruckSides;
  readonly #dice: Dice;
  readonly #log: (text: string) => void;
  #passOn: PassOn | undefined;
  #begun = 0;
  #over = false;
  #waits = false;
  /** A side whether there is something to strike. */
  #asks = false;
  #timers = new Set<NodeJS.Timeout>();
  #gathered: PassedConnection[] = [];
  #stopped: SideProcess | undefined;
  #mayStop = true;
  #filled: SideProcess | undefined;

  constructor(plan: FaultPlan | undefined, dice: Dice, sides: StruckSides, log: (text: string) => void) {
    this.#plan = plan;
    this.#dice = dice;
    this.#sides = sides;
    this.#log = log;
  }

  /** The source begins to connect. */
  begin(passOn: PassOn): void {
    this.#passOn = passOn;
    this.#begun = performance.now();
    this.look();
  }

  /** A connection has come in: passed on at once, or in another order. */
  connection(connection: PassedConnection): void {
    if (this.#plan?.kind !== 'reorder') connection.connect();
    else {
      if (this.#gathered.length === 0) this.#later(GATHER_MS, () => this.#reorder());
      this.#gathered.push(connection);
    }
    this.look();
  }

  /** Is it the moment? Called when something has moved. */
  look(): void {
    const plan = this.#plan;
    if (plan === undefined || plan.kind === 'reorder' || this.#passOn === undefined) return;
    if (this.struckAt !== undefined || this.leftOut !== undefined || this.#over) return;
    const { connections, bytes, ms } = plan.at;
    if (this.#passOn.connections.length < connections || this.#passOn.bytes < bytes) return;
    const wait = this.#begun + ms - performance.now();
    if (wait > 0) {
      if (!this.#waits)
        this.#later(wait + 1, () => {
          this.#waits = false;
          this.look();
        });
      this.#waits = true;
    } else if (!this.#asks) void this.#strike(plan);
  }

  /** A side has said its last: one that was stopped goes on, and none is stopped any more, for nothing would let it go on. */
  sideEnded(): void {
    this.#mayStop = false;
    this.#resumeStopped();
  }

  #resumeStopped(): void {
    if (this.#stopped === undefined) return;
    this.#log(`${this.#stopped.name} goes on`);
    this.#stopped.signal('SIGCONT');
    this.#stopped = undefined;
  }

  /** Nothing is to be struck any more. */
  end(): void {
    this.#over = true;
    for (const timer of this.#timers) clearTimeout(timer);
    this.#resumeStopped();
    if (this.#filled !== undefined) setFileLimit(this.#filled, undefined);
  }

  #later(ms: number, what: () => void): void {
    const timer = setTimeout(() => {
      this.#timers.delete(timer);
      if (!this.#over) what();
    }, ms);
    this.#timers.add(timer);
  }

  async #strike(plan: FaultPlan): Promise<void> {
    const hit = (): void => {
      this.struckAt = performance.now();
      this.#log(`struck: ${plan.kind} ${plan.side} ${plan.connection ?? 'all'}`);
    };
    const process = this.#sides[plan.side];
    switch (plan.kind) {
      case 'kill':
        hit();
        process.signal('SIGKILL');
        return;
      case 'stop':
      case 'pause':
        if (plan.kind === 'stop' && !this.#mayStop) return;
        hit();
        process.signal('SIGSTOP');
        this.#stopped = process;
        if (plan.kind === 'pause') this.#later(plan.ms, () => this.#resumeStopped());
        return;
      case 'disk-full':
        if (setFileLimit(this.#sides.destination, plan.amount)) {
          this.#filled = this.#sides.destination;
          hit();
        } else this.leftOut = 'no program prlimit';
        return;
      case 'thread':
      case 'abort':
      case 'cancel': {
        // Before it is answered: what comes of it may be here sooner.
        hit();
        this.#asks = true;
        const there = await this.#sides.ask(plan.side, plan.kind);
        this.#asks = false;
        if (there) return;
        this.struckAt = undefined;
        this.#later(AGAIN_MS, () => this.look());
        return;
      }
      default:
        this.#spoilConnections(plan, hit);
    }
  }

  #spoilConnections(plan: FaultPlan, hit: () => void): void {
    const open = this.#passOn?.connections.filter((connection) => connection.isOpen) ?? [];
    if (open.length === 0) {
      this.#later(AGAIN_MS, () => this.look());
      return;
    }
    const chosen = plan.connection === undefined ? open : [open[plan.connection % open.length]];
    hit();
    for (const connection of chosen) this.#spoil(plan, connection);
  }

  #spoil(plan: FaultPlan, connection: PassedConnection): void {
    const { towards, back } = connection;
    const both = [towards, back];
    const shaped = (shape: Direction['shape']): void => {
      for (const direction of both) direction.shape = shape;
      // Slow for some time, and not for as long as a large guest takes.
      this.#later(plan.ms, () => both.forEach((direction) => (direction.shape = {})));
    };
    switch (plan.kind) {
      case 'reset':
        return connection.reset();
      case 'cut':
        return connection.cut();
      case 'half-close':
        return (plan.side === 'source' ? towards : back).end();
      case 'stall':
        return connection.hold();
      case 'delay':
        connection.hold();
        return this.#later(plan.ms, () => connection.release());
      case 'throttle':
        return shaped({ bytesPerSecond: plan.amount });
      case 'trickle':
        return shaped({ pieceBytes: plan.amount });
    }
  }

  #reorder(): void {
    const came = this.#gathered;
    this.#gathered = [];
    const order = this.#dice.shuffle(came);
    if (order.some((connection, i) => connection !== came[i])) {
      this.struckAt ??= performance.now();
      this.#log(`struck: reorder ${order.map(({ index }) => index).join(' ')}`);
    }
    for (const [i, connection] of order.entries()) this.#later(i * 5, () => connection.connect());
  }
}

/** What a full disk is to a process: no file may have more bytes. By util-linux's prlimit; false where there is none. */
function setFileLimit(side: SideProcess, bytes: number | undefined): boolean {
  if (side.pid === undefined || !side.isAlive) return false;
  const args = [`--pid=${side.pid}`, `--fsize=${bytes ?? 'unlimited'}:`];
  return spawnSync('prlimit', args, { stdio: 'ignore', timeout: 5000 }).status === 0;
}
