/**
 * What a bench has to say beside its rows: what it left out, and why. It goes to the process that started it, which prints
 * it and keeps it for the files, so that a page without a plot says what is missing on this machine.
 */
export interface Remark {
  bench: string;
  remark: string;
}

let told = Promise.resolve();

export function remark(bench: string, text: string): void {
  const message: Remark = { bench, remark: text };
  told = new Promise((resolve) => {
    if (process.send === undefined) resolve();
    else process.send(message, undefined, undefined, () => resolve());
  });
}

/** Resolves when all are on their way: the last one is behind all others. */
export function remarksTold(): Promise<void> {
  return told;
}
