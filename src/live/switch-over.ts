/**
 * The switch-over of a source: the guest is stopped, and what is left of it goes over.
 *
 *     pause()
 *     SWITCHOVER_START                      from here on without a limit of bandwidth, as with QEMU
 *     save() of each device                 all of the embedder's hooks come before anything is final
 *       a large one: DEVICE_STATE packets   over the channels at once (device-sender.ts), while the next one is saved
 *     collect()                             the last dirty pages; what a save() has written to memory among them
 *     END, pages, SYNC                      the pieces of devices are before this SYNC
 *     devices' state                        a FULL section each (device-sections.ts)
 *     digests of all memory                 with option verify (proof-section.ts)
 *     EOF, VM description                   from here on the destination may answer
 *     <- SHUT
 */
import { types } from 'node:util';
import { setTimeout as sleep } from 'node:timers/promises';
import { MultifdError } from '../errors.js';
import { refusedBy } from '../migration/answer.js';
import type { Proof } from '../proof.js';
import { encodeFooter } from '../stream/main-writer.js';
import { PIECE_BYTES } from './device-pieces.js';
import {
  type DeviceState,
  PROOF_DEVICE,
  type StateSize,
  encodeDeviceSection,
  encodeEnd,
  encodeSectionHead,
  encodeStateSize,
  nameOf,
} from './device-sections.js';
import { DeviceSender, requireState } from './device-sender.js';
import { encodeProofHead, proofBytes } from './proof-section.js';
import { watchStall } from '../transport/stall.js';
import type { Precopy } from './precopy.js';
import type { CheckedSourceDevice } from './source-options.js';
import type { SourceSession } from './source-session.js';

/** Of one write: a watch that sees nothing move takes the destination for gone. */
const WRITE_BYTES = 2 ** 20;
/** ram has 1. */
const FIRST_DEVICE_SECTION = 2;
/** By choice: how long an answer that may be on its way is waited for when this side has broken off. */
const LAST_WORD_MS = 2000;

export class SwitchOver {
  readonly #source: SourceSession;
  readonly #precopy: Precopy;
  /** The last bytes of all. */
  #end: Buffer = Buffer.alloc(0);

  constructor(source: SourceSession, precopy: Precopy) {
    this.#source = source;
    this.#precopy = precopy;
  }

  /** All of it goes out but the last bytes. */
  async run(): Promise<void> {
    const source = this.#source;
    const { life, figures, options, builder, sender } = source;
    life.enter('device');
    figures.guestStopped();
    source.paused = true;
    await source.hook('pause', () => options.given.pause());
    sender.maxBandwidth = 0;
    await source.write(builder.switchover());
    const states: DeviceState[] = [];
    for (const device of options.devices) states.push({ device, data: await this.#save(device) });
    await this.#precopy.collect();
    await this.#precopy.send(() => builder.end(), false);
    const proof = options.verify ? sender.prove() : undefined;
    for (const [index, state] of states.entries()) {
      for (const piece of encodeDeviceSection(FIRST_DEVICE_SECTION + index, state)) {
        for (let at = 0; at < piece.length; at += WRITE_BYTES)
          await source.write(piece.subarray(at, at + WRITE_BYTES));
      }
    }
    if (proof !== undefined) {
      const data = { bytes: proofBytes(options.blocks), pieces: 0 };
      await this.#prove(proof, FIRST_DEVICE_SECTION + states.length, data);
      states.push({ device: PROOF_DEVICE, data });
    }
    this.#end = encodeEnd(states, source.configuration, options.pageSize);
  }

  /** As the digests are made, so that the destination sees that the source is there. */
  async #prove(proof: Proof, sectionId: number, size: StateSize): Promise<void> {
    const source = this.#source;
    const head = [encodeSectionHead(sectionId, PROOF_DEVICE), encodeStateSize(size)];
    await source.write(Buffer.concat([...head, encodeProofHead(source.options.blocks)]));
    for await (const digests of proof.inOrder()) await source.write(digests);
    await source.write(encodeFooter(sectionId));
  }

  async #save(device: CheckedSourceDevice): Promise<DeviceState['data']> {
    const source = this.#source;
    const name = `device ${nameOf(device)}: save`;
    const saved = requireState(device, await source.hook(name, () => device.given.save()));
    if (!types.isUint8Array(saved) || saved.length > PIECE_BYTES)
      return new DeviceSender(source, device).send(saved);
    // A socket takes no shared memory.
    return types.isSharedArrayBuffer(saved.buffer) ? Buffer.from(saved) : saved;
  }

  /**
   * The last bytes, and the destination's answer.
   *
   * @throws MultifdError whatever keeps it from being a SHUT 0
   */
  async verdict(): Promise<void> {
    const source = this.#source;
    const { stallTimeoutMs } = source.options;
    // Before the first of these bytes: what comes of them is not known from here on.
    source.asked = true;
    source.answer.expectShut();
    // While it loads it says so: what counts is how long it has said nothing.
    const unwatch = watchStall(
      stallTimeoutMs,
      () => source.main.moved,
      () => {
        const late = `the destination has all, but has not said for ${stallTimeoutMs} ms that it is loaded, or loading`;
        source.life.fail(new MultifdError('ERR_MULTIFD_STALL', late));
      },
    );
    try {
      await this.#ask();
    } catch (thrown) {
      const error = MultifdError.wrap(thrown, 'ERR_MULTIFD_CONNECTION', 'main stream');
      // What comes of listening on is not the first error.
      source.life.fail(error);
      await this.#lastWord(error);
    } finally {
      unwatch();
    }
    source.life.decide();
  }

  async #ask(): Promise<void> {
    const { life, answer } = this.#source;
    await this.#source.write(this.#end);
    const status = await life.orFailed(answer.shut);
    if (status !== 0) throw refusedBy(status);
  }

  /**
   * It has failed on this side, but the destination may have answered all the same.
   *
   * @throws `error` if it has not
   */
  async #lastWord(error: MultifdError): Promise<void> {
    const { main, answer } = this.#source;
    void main.end();
    const over = new AbortController();
    const late = sleep(LAST_WORD_MS, undefined, { signal: over.signal }).catch(() => {});
    await Promise.race([answer.shut.catch(() => {}), late]);
    over.abort();
    if (!answer.isLoaded) throw error;
  }
}
