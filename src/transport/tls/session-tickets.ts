/**
 * No session tickets. A server of OpenSSL sends some behind each TLS 1.3 handshake, and nobody here resumes a session.
 *
 * A QEMU that is a source never reads on a channel, nor on main without return path. When it closes a connection with bytes
 * unread, its kernel resets it, and what was still to be sent is lost: measured with QEMU 7.2 and 10.0, return path off and a
 * destination that reads slowly, 5 MB of RAM were missing and the source said `completed`. Its guest is nowhere then.
 *
 * Node has no option for it (SSL_OP_NO_TICKET leaves stateful tickets). What OpenSSL calls for a ticket's key may say that
 * there is none, and Node reaches it by names that it does not document; it is the same in Node 20, 24 and 26. Where they
 * are missing, TLS 1.2 is taken instead (client-hello.ts): it sends nothing behind the handshake.
 */
import tls from 'node:tls';

interface NativeContext {
  enableTicketKeyCallback?: () => void;
  onticketkeycallback?: () => unknown[];
}
interface Internals {
  _sharedCreds?: { context?: NativeContext };
}

const NO_TICKET = 0;
const NONE = Buffer.alloc(16);

function contextOf(server: tls.Server): NativeContext | undefined {
  return (server as unknown as Internals)._sharedCreds?.context;
}

/** Before the server's first connection. */
export function stopTickets(server: tls.Server): void {
  const context = contextOf(server);
  if (typeof context?.enableTicketKeyCallback !== 'function') return;
  // As Node asks for it: the answer, an HMAC key, an AES key, a name, an IV.
  context.onticketkeycallback = () => [NO_TICKET, Buffer.alloc(32), NONE, NONE, NONE];
  context.enableTicketKeyCallback();
}

let stoppable: boolean | undefined;

/** Can this Node's tickets be stopped? */
export function ticketsCanBeStopped(): boolean {
  stoppable ??= typeof contextOf(tls.createServer())?.enableTicketKeyCallback === 'function';
  return stoppable;
}
