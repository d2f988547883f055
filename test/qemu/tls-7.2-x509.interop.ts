/** TLS with QEMU 7.2 as source, certificates: TLS 1.2 and 1.3 x none and zstd. */
import { ALL } from '../support/some.js';
import { runTlsMatrix, tlsCases } from './tls-matrix.js';

runTlsMatrix(tlsCases('qemu72', 'x509', ALL));
