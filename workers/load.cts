/**
 * How a channel's thread loads its modules: so that it may be terminated at any moment, by an end of the session that
 * does not wait for it.
 *
 *     thread starts -> piscina requires the entry -> modules, then the method's -> BOOTED + 1   beside the task
 *     task          -> waits for the modules -> src/channel-thread.ts, runChannel()
 *
 * - The entries are CommonJS, which Node reads in one synchronous call, and import() the rest without a top-level
 *   await: Node 20 aborts the whole process when a worker is terminated just before a module with one is run.
 * - Node 20 reads ES modules through fs.promises.readFile. A worker that is terminated between that call's open and
 *   close leaves the file open for as long as the process lives, so that here, while modules are loaded, the call is a
 *   synchronous one. Where Node reads its modules otherwise this does nothing.
 */
import fs = require('node:fs');

/** @param load imports the channel's modules */
async function loadThread<T>(load: () => Promise<T>): Promise<T> {
  const { readFile } = fs.promises;
  const readWhole = (...args: Parameters<typeof fs.readFileSync>): Promise<unknown> =>
    new Promise((resolve) => resolve(fs.readFileSync(...args)));
  fs.promises.readFile = readWhole as typeof readFile;
  try {
    const modules = await load();
    const { bootThread } = await import('../src/channel-thread.js');
    await bootThread();
    return modules;
  } finally {
    fs.promises.readFile = readFile;
  }
}

export = loadThread;
