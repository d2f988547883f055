/**
 * What can be seen through node:diagnostics_channel: one channel for each of QEMU's trace points that has a meaning
 * here, under QEMU's own name, so that both logs can be read side by side.
 *
 * Events of channel threads (send_fill, recv_unfill, thread_start, thread_end) are posted to the calling thread only
 * while somebody is subscribed; nothing is made otherwise.
 */
import diagnostics from 'node:diagnostics_channel';

export const TRACE_POINTS = [
  'multifd_new_send_channel_async',
  'multifd_send_thread_start',
  'multifd_send_thread_end',
  'multifd_send_fill',
  'multifd_send_sync_main',
  'multifd_send_sync_main_signal',
  'multifd_send_sync_main_wait',
  'multifd_send_error',
  'multifd_send_terminate_threads',
  'multifd_recv_new_channel',
  'multifd_recv_thread_start',
  'multifd_recv_thread_end',
  'multifd_recv_unfill',
  'multifd_recv_sync_main',
  'multifd_recv_sync_main_signal',
  'multifd_recv_sync_main_wait',
  'multifd_recv_terminate_threads',
] as const;

export type TracePoint = (typeof TRACE_POINTS)[number];

/** An event as it crosses from a channel's thread. */
export interface TraceMessage {
  multifd: TracePoint;
  data: Record<string, unknown>;
}

const channels = new Map<TracePoint, diagnostics.Channel>(
  TRACE_POINTS.map((name) => [name, diagnostics.channel(name)]),
);

/** Calling thread: publishes, if anybody listens. `data` is made only then. */
export function trace(point: TracePoint, data: () => Record<string, unknown>): void {
  const channel = channels.get(point);
  if (channel?.hasSubscribers) channel.publish(data());
}

export function isTraceMessage(message: unknown): message is TraceMessage {
  return typeof message === 'object' && message !== null && 'multifd' in message;
}

/** Does anybody listen to what channel threads report? */
export function wantsThreadTrace(): boolean {
  return THREAD_POINTS.some((point) => channels.get(point)?.hasSubscribers);
}

const THREAD_POINTS: readonly TracePoint[] = [
  'multifd_send_thread_start',
  'multifd_send_thread_end',
  'multifd_send_fill',
  'multifd_recv_thread_start',
  'multifd_recv_thread_end',
  'multifd_recv_unfill',
];
