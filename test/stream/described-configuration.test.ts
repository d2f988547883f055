import t from 'tap';
import type { Configuration } from '../../src/stream/configuration.js';
import { describeConfiguration } from '../../src/stream/described-configuration.js';

const MACHINE = 'pc-i440fx-10.0';
const CAPABILITIES =
  '{"vmsd_name": "configuration/capabilities", "version": 1, "fields": [{"name": "caps_count", "type": "uint32", "size": 4}, {"name": "capabilities", "type": "capability", "size": 11}]}';
// As QEMU 10.0 writes it.
const UUID =
  '{"vmsd_name": "configuration/uuid", "version": 1, "fields": [{"name": "uuid.data", "array_len": 16, "type": "uint8", "size": 1}]}';
const PAGE_BITS =
  '{"vmsd_name": "configuration/target-page-bits", "version": 1, "fields": [{"name": "target_page_bits", "type": "uint32", "size": 4}]}';
const FIELDS =
  '"vmsd_name": "configuration", "version": 1, "fields": [{"name": "len", "type": "uint32", "size": 4}, {"name": "name", "type": "buffer", "size": 14}]';
const REST =
  '"page_size": 4096, "devices": [{"name": "a\\"configuration\\"{", "big": 18446744073709551615}]}';

function described(json: string, configuration: Partial<Configuration> = {}): string {
  const all = { machine: MACHINE, capabilities: ['mapped-ram'], ...configuration };
  return describeConfiguration(Buffer.from(json), all).toString();
}

t.test('the subsection is added as QEMU writes it, and all other bytes stay', (t) => {
  const whole = `{"configuration": {${FIELDS}, "subsections": [${CAPABILITIES}]}, ${REST}`;
  t.equal(described(`{"configuration": {${FIELDS}}, ${REST}`), whole, 'QEMU 10.0');
  t.equal(described(whole), whole, 'it is there already');
  t.equal(described(`{${REST}`), whole, 'QEMU 7.2, which describes no configuration');
  t.equal(
    described(`{ ${REST}`),
    whole.replace('}, "page_size"', '},  "page_size"'),
    'QEMU 6.2, with a blank',
  );
  const last = `{${REST.slice(0, -1)}, "configuration" : { ${FIELDS} } }`;
  t.equal(
    described(last),
    `{${REST.slice(0, -1)}, "configuration" : {${FIELDS}, "subsections": [${CAPABILITIES}]}}`,
    'at another place',
  );
  const nested = '{"page_size": 1, "a": {"configuration": {}}, "b": "configuration", "devices": []}';
  t.equal(
    described(nested),
    `{"configuration": {${FIELDS}, "subsections": [${CAPABILITIES}]}, ${nested.slice(1)}`,
  );
  t.end();
});

t.test('other subsections stay, in the order that the stream has', (t) => {
  const uuid = Buffer.alloc(16, 7);
  const all = { targetPageBits: 12, uuid };
  const whole = `{"configuration": {${FIELDS}, "subsections": [${PAGE_BITS}, ${CAPABILITIES}, ${UUID}]}, ${REST}`;
  t.equal(
    described(`{"configuration": {${FIELDS}, "subsections": [${PAGE_BITS}, ${UUID}]}, ${REST}`, all),
    whole,
  );
  t.equal(described(`{${REST}`, all), whole, 'none described');
  const theirs = UUID.replace('uuid.data', 'uuid.bytes');
  t.match(described(`{"configuration": {${FIELDS}, "subsections": [${theirs}]}, ${REST}`, { uuid }), theirs);
  const stale = `{"configuration": {${FIELDS}, "subsections": [${CAPABILITIES.replace('11', '99')}]}, ${REST}`;
  t.notMatch(described(stale), '"size": 99', 'what it says of capabilities is ours');
  const two = described(`{${REST}`, { capabilities: ['x-ab', 'mapped-ram'] });
  t.match(
    two,
    '{"name": "capabilities", "index": 0, "type": "capability", "size": 5}, {"name": "capabilities", "index": 1',
  );
  t.end();
});

t.test('what is no description of a configuration is left alone', (t) => {
  for (const value of ['7', '[]', 'null', '"a"']) {
    const json = `{"configuration": ${value}, ${REST}`;
    t.equal(described(json), json);
  }
  const wrong = described('{"configuration": {"subsections": 7}, "devices": []}');
  t.equal(wrong, `{"configuration": {${FIELDS}, "subsections": [${CAPABILITIES}]}, "devices": []}`);
  t.end();
});
