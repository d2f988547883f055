/**
 * What an embedder holds of a session: its public members, and nothing of what the rest of this package calls on it. The
 * lists below are both the types and the objects, so that what is internal is there neither for the compiler nor at run
 * time.
 */
import type { ReceiverOptions, SenderOptions } from './options.js';
import { createReceiver as openReceiver, type Receiver as ReceiverSession } from './recv/receiver.js';
import { createSender as openSender, type Sender as SenderSession } from './send/sender.js';

const SENDER_MEMBERS = [
  'blocks',
  'done',
  'error',
  'queuePage',
  'queueRange',
  'queueZeroRange',
  'queueDeviceState',
  'flush',
  'sync',
  'maxBandwidth',
  'stats',
  'progress',
  'end',
  'close',
] as const satisfies (keyof SenderSession)[];

const RECEIVER_MEMBERS = [
  'blocks',
  'done',
  'error',
  'address',
  'ready',
  'sync',
  'zeroRange',
  'received',
  'stats',
  'progress',
  'end',
  'close',
] as const satisfies (keyof ReceiverSession)[];

/** The sending side of a session; see createSender(). */
export interface Sender extends Pick<SenderSession, (typeof SENDER_MEMBERS)[number]>, AsyncDisposable {}

/** The receiving side of a session; see createReceiver(). */
export interface Receiver extends Pick<ReceiverSession, (typeof RECEIVER_MEMBERS)[number]>, AsyncDisposable {}

/**
 * Connects all channels and says hello on each.
 *
 * @throws MultifdError ERR_MULTIFD_OPTION, ERR_MULTIFD_BLOCK, ERR_MULTIFD_HOOK, ERR_MULTIFD_IO, ERR_MULTIFD_CONNECT,
 *   ERR_MULTIFD_TIMEOUT, ERR_MULTIFD_ABORTED
 */
export async function createSender(options: SenderOptions): Promise<Sender> {
  return publicSender(await openSender(options));
}

/**
 * Listens. Resolves as soon as sources can connect; `ready` says when all channels are in.
 *
 * @throws MultifdError ERR_MULTIFD_OPTION, ERR_MULTIFD_BLOCK, ERR_MULTIFD_HOOK, ERR_MULTIFD_IO, ERR_MULTIFD_LISTEN,
 *   ERR_MULTIFD_ABORTED
 */
export async function createReceiver(options: ReceiverOptions): Promise<Receiver> {
  return publicReceiver(await openReceiver(options));
}

export function publicSender(session: SenderSession): Sender {
  return membersOf(session, 'Sender', SENDER_MEMBERS);
}

export function publicReceiver(session: ReceiverSession): Receiver {
  return membersOf(session, 'Receiver', RECEIVER_MEMBERS);
}

type Session = SenderSession | ReceiverSession;

function membersOf<S extends Session, K extends keyof S & string>(
  session: S,
  tag: string,
  members: readonly K[],
): Pick<S, K> & AsyncDisposable {
  const face = {
    [Symbol.asyncDispose]: () => session.close(),
    get [Symbol.toStringTag]() {
      return tag;
    },
  };
  for (const name of members) {
    const value: unknown = session[name];
    // Methods as such, and whatever else as it is when it is looked at.
    const property: PropertyDescriptor =
      typeof value === 'function'
        ? { value: value.bind(session) as unknown, writable: true }
        : { get: () => session[name], set: setterOf(session, name) };
    Object.defineProperty(face, name, { ...property, enumerable: true, configurable: true });
  }
  return face as typeof face & Pick<S, K>;
}

/** Of a property that may be set. */
function setterOf<S extends object, K extends keyof S>(session: S, name: K): PropertyDescriptor['set'] {
  const mayBeSet = Object.getOwnPropertyDescriptor(Object.getPrototypeOf(session), name)?.set !== undefined;
  return mayBeSet ? (value: S[K]) => (session[name] = value) : undefined;
}
