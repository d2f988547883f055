/**
 * What a program in C reaches on this machine, beside ours: limit.ts measures it, where there is a compiler. Without one
 * its rows are left out.
 */
interface Limit {
  /** GB/s over so many plain sockets, between two processes. */
  sockets(options: { connections: number; bytes: number; prefault: boolean; file?: string }): number;
  /** GB/s of looking at zero pages on so many threads. */
  zero(how: 'memcmp', threads: number, bytes: number): number;
}

export async function openLimit(): Promise<Limit | undefined> {
  // By a name that the compiler does not follow: this bench stands without that file.
  const name = './limit.js';
  try {
    const { buildLimit } = (await import(name)) as {
      buildLimit: () => Limit | undefined | Promise<Limit | undefined>;
    };
    return await buildLimit();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ERR_MODULE_NOT_FOUND') return undefined;
    throw error;
  }
}
