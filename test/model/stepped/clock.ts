/** In place of node:perf_hooks and node:timers/promises: time goes by with the steps, and a pause is a turn of other events. */
export const performance = {
  timeOrigin: 0,
  now: (): number => stepped.now(),
};

export function setImmediate(): Promise<void> {
  return stepped.turn();
}

export function setTimeout(): Promise<void> {
  return stepped.turn();
}
