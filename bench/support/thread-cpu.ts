/**
 * CPU time of the main thread alone, in nanoseconds. process.cpuUsage() is of all threads; process.threadCpuUsage() is
 * not in Node 20. Linux counts for each task, and a process's first task is its main thread; but it counts a running
 * one only at ticks, a few milliseconds apart, so this is for sums over a tenth of a second and more.
 */
import fs from 'node:fs';

const FILE = `/proc/self/task/${process.pid}/schedstat`;

/** undefined where the system does not tell. */
export function mainThreadCpuNs(): number | undefined {
  const { threadCpuUsage } = process as { threadCpuUsage?: () => NodeJS.CpuUsage };
  if (threadCpuUsage !== undefined) {
    const { user, system } = threadCpuUsage.call(process);
    return (user + system) * 1000;
  }
  try {
    return Number(fs.readFileSync(FILE, 'utf8').split(' ')[0]);
  } catch {
    return undefined;
  }
}
