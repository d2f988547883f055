/** Is a host's name this host for sure? By its number, and not by how it is written: a name may mean anybody. */
import net from 'node:net';

const LOOPBACK = new net.BlockList();
LOOPBACK.addSubnet('127.0.0.0', 8, 'ipv4');
LOOPBACK.addAddress('::1', 'ipv6');

export function isThisHost(host: string): boolean {
  const family = net.isIP(host);
  // Whatever the resolver knows by other names is not known here.
  if (family === 0) return host.toLowerCase() === 'localhost';
  return LOOPBACK.check(host, family === 4 ? 'ipv4' : 'ipv6');
}
