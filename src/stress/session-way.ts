/** Way `session`: a sender and a receiver by hand, with the stressing process in place of the main stream. */
import { createReceiver, createSender } from '../public-session.js';
import { Dice } from './dice.js';
import { GuestMemory } from './guest-memory.js';
import { DEVICE, common, levels, listenAt, sha256 } from './live-way.js';
import type { Digests, Outcome, PeerWord } from './messages.js';
import type { Side } from './side.js';
import { WritingGuest } from './writing-guest.js';

type ZeroRange = [block: string, offset: number, length: number];

export async function sessionSource(side: Side): Promise<Outcome> {
  const { plan, folder } = side.begin;
  const dice = new Dice(plan.seed ^ 0x5eed, plan.run);
  const memory = new GuestMemory(plan.memory.source, plan.blocks, folder, 'source');
  try {
    memory.fillImage(dice, plan.pageSize, plan.zeroShare);
    const guest = new WritingGuest(memory, plan.pageSize, 'none', 0, dice);
    let zeros: ZeroRange[] = [];
    const states: string[] = [];
    const isLegacy = plan.zeroPageDetection === 'legacy';
    const sender = await createSender({
      ...common(side),
      ...levels(plan),
      address: await side.connect,
      blocks: memory.options,
      zeroPageDetection: plan.zeroPageDetection,
      maxBandwidth: plan.maxBandwidth,
      deviceStateBytes: 4 * 2 ** 20,
      ...(isLegacy && {
        onZeroPages: (block: { name: string }, offset: number, length: number) =>
          void zeros.push([block.name, offset, length]),
      }),
    });
    side.cancel = () => sender.close();
    side.bytes = () => sender.stats().bytes;
    const sync = async (): Promise<void> => {
      if (isLegacy) {
        // Of this phase before the next one's pages.
        await sender.sync();
        side.say({ word: 'sync', zeros });
        zeros = [];
        await heard(side, 'synced', sender.done);
      } else {
        side.say({ word: 'sync', zeros });
        await Promise.all([sender.sync(), heard(side, 'synced', sender.done)]);
      }
    };
    try {
      for (const { name, size } of plan.blocks) await sender.queueRange(name, 0, size);
      await sync();
      for (let round = 0; round < plan.rounds; round++) {
        for (let i = 0; i < plan.dirtyRate; i++) {
          const { block, offset } = guest.writeOne();
          await sender.queuePage(block, offset);
        }
        if (plan.deviceBytes > 0) {
          const state = Buffer.alloc(plan.deviceBytes);
          dice.fill(state);
          states.push(sha256(state));
          await sender.queueDeviceState(DEVICE, 0, state);
        }
        await sync();
      }
      side.say({ word: 'end' });
      await sender.end();
    } catch (thrown) {
      await sender.close();
      throw thrown;
    }
    side.send({ type: 'reached', digests: { ...memory.digests(), [DEVICE]: sha256(states.join()) } });
    return { completed: true, hooks: [], bytes: side.bytes() };
  } finally {
    memory.close();
  }
}

export async function sessionDestination(
  side: Side,
  spoil?: (memory: GuestMemory) => void,
): Promise<Outcome> {
  const { plan, folder } = side.begin;
  const memory = new GuestMemory(plan.memory.destination, plan.blocks, folder, 'destination');
  try {
    // In the order of the rounds, which a sync lies between.
    const states: string[] = [];
    memory.fillPattern();
    const receiver = await createReceiver({
      ...common(side),
      address: listenAt(side),
      acceptTimeoutMs: plan.connectTimeoutMs,
      blocks: memory.options,
      deviceStateBytes: 4 * 2 ** 20,
      devices: [{ idstr: DEVICE, instanceId: 0, load: (data) => void states.push(sha256(data)) }],
    });
    side.cancel = () => receiver.close();
    side.bytes = () => receiver.stats().bytes;
    side.send({ type: 'listening', address: receiver.address });
    try {
      await Promise.race([receiver.ready, side.peerGone]);
      for (;;) {
        const said = await heard(side, undefined, receiver.done);
        if (said.word !== 'sync') break;
        for (const [block, offset, length] of said.zeros) await receiver.zeroRange(block, offset, length);
        await Promise.race([receiver.sync(), side.peerGone]);
        side.say({ word: 'synced' });
      }
      await receiver.end();
    } catch (thrown) {
      await receiver.close();
      throw thrown;
    }
    spoil?.(memory);
    const digests: Digests = { ...memory.digests(), [DEVICE]: sha256(states.join()) };
    return { completed: true, digests, hooks: [], bytes: side.bytes() };
  } finally {
    memory.close();
  }
}

/** The other side's next word, or the session's error, whichever is first. */
async function heard(side: Side, word: PeerWord['word'] | undefined, done: Promise<void>): Promise<PeerWord> {
  const ended = done.then(() => {
    throw Object.assign(new Error('the session was closed'), { code: 'ERR_MULTIFD_CLOSED' });
  });
  ended.catch(() => {});
  const said = await Promise.race([side.hear(), ended]);
  if (word !== undefined && said.word !== word) throw new Error(`received ${said.word}, expected ${word}`);
  return said;
}
