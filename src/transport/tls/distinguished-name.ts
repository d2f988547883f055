/**
 * The name of a certificate's owner in the form that GnuTLS prints, and that tls-authz of QEMU is compared with:
 *
 *     C=GB,O=Acme\, Inc,CN=host1        the order of the certificate, RFC 4514's escapes
 *     CN=a+OU=b                         one RDN of two attributes
 *     2.5.4.97=#0c026f69                an attribute without a name here: its whole value in hex
 *
 * Node and OpenSSL print other names (emailAddress, SN, GN), another order, and several lines.
 */
import { dottedOid, elementsIn, Tag, type Element } from './der.js';

/** The names of GnuTLS 3.7, measured. */
const ATTRIBUTE_NAMES: Record<string, string> = {
  '2.5.4.3': 'CN',
  '2.5.4.4': 'surName',
  '2.5.4.5': 'serialNumber',
  '2.5.4.6': 'C',
  '2.5.4.7': 'L',
  '2.5.4.8': 'ST',
  '2.5.4.9': 'street',
  '2.5.4.10': 'O',
  '2.5.4.11': 'OU',
  '2.5.4.12': 'title',
  '2.5.4.15': 'businessCategory',
  '2.5.4.17': 'postalCode',
  '2.5.4.41': 'name',
  '2.5.4.42': 'givenName',
  '2.5.4.43': 'initials',
  '2.5.4.44': 'generationQualifier',
  '2.5.4.46': 'dnQualifier',
  '2.5.4.65': 'pseudonym',
  '0.9.2342.19200300.100.1.1': 'UID',
  '0.9.2342.19200300.100.1.25': 'DC',
  '1.2.840.113549.1.9.1': 'EMAIL',
  '1.3.6.1.4.1.311.60.2.1.1': 'jurisdictionOfIncorporationLocalityName',
  '1.3.6.1.4.1.311.60.2.1.2': 'jurisdictionOfIncorporationStateOrProvinceName',
  '1.3.6.1.4.1.311.60.2.1.3': 'jurisdictionOfIncorporationCountryName',
};
const VERSION_TAG = 0xa0;
const ENCODINGS: Record<number, (contents: Buffer) => string> = {
  [Tag.UTF8_STRING]: (contents) => contents.toString('utf8'),
  [Tag.PRINTABLE_STRING]: (contents) => contents.toString('latin1'),
  // T61String, IA5String
  0x14: (contents) => contents.toString('latin1'),
  0x16: (contents) => contents.toString('latin1'),
  // BMPString: the lower byte last.
  0x1e: (contents) =>
    Buffer.from(contents.subarray(0, contents.length & ~1))
      .swap16()
      .toString('utf16le'),
};

/**
 * @param certificate in DER
 * @returns empty for a certificate whose owner has no name, or that cannot be read
 */
export function distinguishedName(certificate: Buffer): string {
  try {
    const fields = elementsIn(elementsIn(elementsIn(certificate)[0].contents)[0].contents);
    // version (if any), serialNumber, signature, issuer, validity, subject
    const subject = fields[fields[0].tag === VERSION_TAG ? 5 : 4];
    const rdns = elementsIn(subject.contents);
    return rdns.map((rdn) => elementsIn(rdn.contents).map(attribute).join('+')).join(',');
  } catch {
    return '';
  }
}

function attribute(pair: Element): string {
  const [type, value] = elementsIn(pair.contents);
  const dotted = dottedOid(type.contents);
  const decode = ENCODINGS[value.tag] as ((contents: Buffer) => string) | undefined;
  const name = ATTRIBUTE_NAMES[dotted] as string | undefined;
  if (name === undefined || decode === undefined) return `${name ?? dotted}=#${value.whole.toString('hex')}`;
  return `${name}=${escape(decode(value.contents))}`;
}

function escape(text: string): string {
  return text
    .replaceAll(/[,+"\\<>;]/g, '\\$&')
    .replace(/^[# ]/, '\\$&')
    .replace(/ $/, '\\ ')
    .replaceAll('\0', '\\00');
}
