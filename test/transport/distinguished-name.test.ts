/** The owner's name of a certificate, against what gnutls_x509_crt_get_dn() of GnuTLS 3.7.9 prints of the same one. */
import { X509Certificate } from 'node:crypto';
import t from 'tap';
import { distinguishedName } from '../../src/transport/tls/distinguished-name.js';
import { writeCertificate } from '../../src/transport/tls/write-certificate.js';

/** Made with openssl req: each attribute that it knows, two in one RDN, and every sign that is escaped. */
const CERTIFICATE = `-----BEGIN CERTIFICATE-----
MIIEMTCCA9mgAwIBAgIUERtRSY13R6JAk6Ugtdfnw4rS5BUwCgYIKoZIzj0EAwIw
ggFtMQswCQYDVQQGEwJERTEcMBoGA1UECgwTw5xuw690ZWQgPSAieCI7PHk+XDEX
MAkGA1UECwwCYiAwCgYDVQQDDAMjYSAxFDASBgkqhkiG9w0BCQEWBWFAYi5jMQsw
CQYDVQQFEwI3NzELMAkGA1UEDAwCRHIxCjAIBgNVBCoMAUcxDDAKBgNVBAQMA1N1
cjEKMAgGA1UEKwwBSTENMAsGA1UECQwEU3QgMTEOMAwGA1UEEQwFMTIzNDUxETAP
BgoJkiaJk/IsZAEBDAF1MQswCQYDVQRBDAJwczELMAkGA1UEDwwCYmMxCzAJBgNV
BC4TAmRxMQswCQYDVQQpDAJubTEPMA0GA1UEAwwGIGxlYWQgMQwwCgYDVQQsDANJ
SUkxCjAIBgNVBBEMATExCzAJBgNVBGEMAm9pMRMwEQYLKwYBBAGCNzwCAQMTAlVT
MQswCQYDVQQtDAJhYTERMA8GCSqGSIb3DQEJAgwCdW4wHhcNMjYxMTI3MTkwNTMz
WhcNMjYxMjAyMTkwNTMzWjCCAW0xCzAJBgNVBAYTAkRFMRwwGgYDVQQKDBPDnG7D
r3RlZCA9ICJ4Ijs8eT5cMRcwCQYDVQQLDAJiIDAKBgNVBAMMAyNhIDEUMBIGCSqG
SIb3DQEJARYFYUBiLmMxCzAJBgNVBAUTAjc3MQswCQYDVQQMDAJEcjEKMAgGA1UE
KgwBRzEMMAoGA1UEBAwDU3VyMQowCAYDVQQrDAFJMQ0wCwYDVQQJDARTdCAxMQ4w
DAYDVQQRDAUxMjM0NTERMA8GCgmSJomT8ixkAQEMAXUxCzAJBgNVBEEMAnBzMQsw
CQYDVQQPDAJiYzELMAkGA1UELhMCZHExCzAJBgNVBCkMAm5tMQ8wDQYDVQQDDAYg
bGVhZCAxDDAKBgNVBCwMA0lJSTEKMAgGA1UEEQwBMTELMAkGA1UEYQwCb2kxEzAR
BgsrBgEEAYI3PAIBAxMCVVMxCzAJBgNVBC0MAmFhMREwDwYJKoZIhvcNAQkCDAJ1
bjBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABAiDfFxcetyQDKJNBjM5XKWE8+Gm
9wNS4EdZLVB4qbOYQw3CF5EPSb2otVHgTsk8dcG+03X0tUOidFS9+DFAxAyjUzBR
MB0GA1UdDgQWBBRs4+9cSXFHZRWIVpVQKMMoBG1IozAfBgNVHSMEGDAWgBRs4+9c
SXFHZRWIVpVQKMMoBG1IozAPBgNVHRMBAf8EBTADAQH/MAoGCCqGSM49BAMCA0YA
MEMCIC3XpUNkp9VzdNaBx2rPKks6ctgBtxAhF9tf/hSUSvlkAh9Iig5PCeRdcHPy
l3oTSQivwWEiATy/pPadX2z64XDf
-----END CERTIFICATE-----
`;
const NAME =
  'C=DE,O=Ünïted = \\"x\\"\\;\\<y\\>\\\\,OU=b\\ +CN=\\#a\\ ,EMAIL=a@b.c,serialNumber=77,title=Dr,givenName=G,' +
  'surName=Sur,initials=I,street=St 1,postalCode=12345,UID=u,pseudonym=ps,businessCategory=bc,dnQualifier=dq,name=nm,' +
  'CN=\\ lead\\ ,generationQualifier=III,postalCode=1,2.5.4.97=#0c026f69,' +
  'jurisdictionOfIncorporationCountryName=US,2.5.4.45=#0c026161,1.2.840.113549.1.9.2=#0c02756e';

t.test("a name is printed as QEMU's GnuTLS does", async (t) => {
  t.equal(distinguishedName(new X509Certificate(CERTIFICATE).raw), NAME);
});

t.test('what is no certificate has no name', async (t) => {
  const { raw } = new X509Certificate(CERTIFICATE);
  t.equal(distinguishedName(Buffer.alloc(0)), '');
  for (const bytes of [3, 10, 40, 90])
    t.equal(distinguishedName(raw.subarray(0, bytes)), '', `${bytes} bytes`);
});

t.test("a certificate of one's own making has the name and the names that it was given", async (t) => {
  const { certificate } = writeCertificate({
    subject: [
      ['C', 'GB'],
      ['CN', 'a,b'],
    ],
    kind: 'ca',
    names: ['a.example', '10.0.0.1', '2001:db8::5:0', '::', '::ffff:1.2.3.4'],
    notBefore: new Date('2049-12-31T23:59:59Z'),
    notAfter: new Date('2050-01-01T00:00:00Z'),
  });
  const read = new X509Certificate(certificate);
  t.equal(distinguishedName(read.raw), 'C=GB,CN=a\\,b');
  t.ok(read.ca && read.verify(read.publicKey));
  t.equal(read.checkHost('a.example'), 'a.example');
  for (const address of ['10.0.0.1', '2001:db8::5:0', '::', '::ffff:1.2.3.4']) {
    t.equal(read.checkIP(address), address);
  }
  t.equal(Date.parse(read.validFrom), Date.UTC(2049, 11, 31, 23, 59, 59));
  t.equal(Date.parse(read.validTo), Date.UTC(2050, 0, 1));
});
