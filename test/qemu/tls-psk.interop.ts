/** TLS with the new QEMU as source, a PSK: TLS 1.2 and 1.3 x none and zstd. */
import { ALL } from '../support/some.js';
import { runTlsMatrix, tlsCases } from './tls-matrix.js';

runTlsMatrix(tlsCases('qemu', 'psk', ALL));
