/** The twin in Node of `limit sockets` (limit.ts): plain sockets between two processes, a worker for each end;
 * or TLS sockets, with nothing else in their way either. */
import { Child } from './child.js';
import type { SocketsCase } from './limit.js';

/** GB a second from the first write to the last byte in place; random bytes, compared by digest. */
export async function nodeSockets(how: Omit<SocketsCase, 'file'> & { tlsFolder?: string }): Promise<number> {
  const receiver = new Child('./plain-endpoint.js', { role: 'receive', ...how });
  const sender = new Child('./plain-endpoint.js', { role: 'send', ...how });
  sender.tell(await receiver.next<{ ports: number[] }>());
  const [sent, received] = await Promise.all([
    sender.next<{ begunMs: number; digest: number }>(),
    receiver.next<{ endedMs: number; digest: number }>(),
  ]);
  if (sent.digest !== received.digest) throw new Error('plain sockets: destination differs from source');
  sender.tell({});
  await Promise.all([sender.end(), receiver.end()]);
  return how.bytes / 1e6 / (received.endedMs - sent.begunMs);
}
