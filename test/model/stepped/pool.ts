/** In place of src/channel-pool.ts: the channels' tasks go to the threads that there are, one for each channel. */
import type { ChannelPoolEvents } from '../../../src/channel-pool.js';
import type { ChannelOutcome, ChannelTask } from '../../../src/channel-thread.js';
import { MultifdError } from '../../../src/errors.js';
import type { Control } from '../../../src/shared/control.js';

/** To a channel's thread. */
export type TaskMail = ChannelTask;
/** And back. */
export interface OutcomeMail {
  id: number;
  outcome: ChannelOutcome;
}

export class ChannelThreads {
  readonly booted = new SharedArrayBuffer(4);

  async destroy(): Promise<void> {}
}

export class ChannelPool {
  readonly #tasks: Promise<void>[] = [];
  readonly #done: (() => void)[] = [];

  constructor(control: Control, _threads: ChannelThreads, events: ChannelPoolEvents) {
    const { shared } = control;
    stepped.watch(shared.control, shared.shape);
    stepped.onMail = (mail) => {
      const { id, outcome } = mail as OutcomeMail;
      if (outcome.error !== undefined)
        events.failed(MultifdError.fromPlain(outcome.error), outcome.first === true);
      this.#done[id]();
    };
  }

  start(id: number, task: TaskMail): void {
    this.#tasks.push(new Promise((resolve) => (this.#done[id] = resolve)));
    stepped.mail(id + 1, task);
  }

  async ended(): Promise<void> {
    await Promise.all(this.#tasks);
  }

  async destroy(): Promise<void> {}
}
