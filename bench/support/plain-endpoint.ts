/** One end of the plain sockets between two processes; a child of node-sockets.ts. */
import { serve } from './child.js';
import { digest as digestOf, fillImage, prefault as prefaultAll } from './image.js';
import { monotonicMs } from './measure.js';
import { PlainReceivers, PlainSenders } from './plain.js';

export interface PlainStart {
  role: 'send' | 'receive';
  connections: number;
  bytes: number;
  prefault: boolean;
  /** The folder with credentials of both roles, for TLS. */
  tlsFolder?: string;
}

serve<PlainStart>(async ({ role, connections, bytes, prefault, tlsFolder }, parent) => {
  const memory = new SharedArrayBuffer(bytes);
  if (role === 'receive') {
    if (prefault) prefaultAll(memory);
    const receivers = await PlainReceivers.open(memory, connections, tlsFolder);
    const received = receivers.received();
    parent.tell({ ports: receivers.ports });
    parent.tell({ endedMs: await received, digest: digestOf(memory) });
    await receivers.close();
  } else {
    fillImage(memory, 'random');
    // Before the clock: it would take a core from those that send.
    const digest = digestOf(memory);
    const { ports } = await parent.next<{ ports: number[] }>();
    const senders = await PlainSenders.open(memory, ports, tlsFolder);
    const begunMs = monotonicMs();
    senders.send();
    parent.tell({ begunMs, digest });
    // The parent has the receiver's word that all is there.
    await parent.next();
    await senders.close();
  }
});
