/**
 * What TLS needs on the calling thread is loaded when the option is given: some ten files and OpenSSL's bindings, which whoever
 * migrates without TLS would wait for at each start.
 */
import type * as CheckOptions from './check-options.js';
import type * as Main from './main-handshakes.js';
import type * as Tickets from './session-tickets.js';

type Loaded = Pick<typeof CheckOptions, 'checkTlsOptions'> &
  Pick<typeof Main, 'MainHandshakes'> &
  Pick<typeof Tickets, 'ticketsCanBeStopped'>;

let loaded: Loaded | undefined;

/** To be awaited before the options are checked. @param given the option tls of each side */
export async function loadTls(...given: unknown[]): Promise<void> {
  if (loaded !== undefined || given.every((option) => option === undefined)) return;
  const [{ checkTlsOptions }, { MainHandshakes }, { ticketsCanBeStopped }] = await Promise.all([
    import('./check-options.js'),
    import('./main-handshakes.js'),
    import('./session-tickets.js'),
  ]);
  loaded = { checkTlsOptions, MainHandshakes, ticketsCanBeStopped };
}

export function loadedTls(): Loaded {
  if (loaded === undefined) throw new Error('loadTls() has not been awaited');
  return loaded;
}
