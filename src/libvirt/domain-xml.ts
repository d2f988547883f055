/**
 * Who the domain in libvirt's XML is: the text of <name> and <uuid> right below the root. No parser of XML: of what else
 * stands there only so much is looked at that it is not taken for these two.
 *
 *     <!-- -->  <![CDATA[ ]]>  <? ?>  <! >     passed over
 *     <tag a="<>">  </tag>  <tag/>             one deeper, one higher, neither
 *
 * What is not well-formed has no name; nothing here throws. A text is passed over once, whatever it holds, with a turn of the
 * event loop each TURN_STEPS steps: it may be some millions of tags.
 */
import { setImmediate as yieldToLoop } from 'node:timers/promises';

/** libvirt's own names are names of files as well, so no longer than that; by choice. */
const MAX_NAME_LENGTH = 4096;

/** No uuid is longer, with blanks around it; by choice. */
const MAX_UUID_LENGTH = 4096;
/** `name`, `uuid`, and the character behind it. */
const KEYWORD_LENGTH = 5;
/** A step is a tag, or a value within one; of them a few milliseconds. */
const TURN_STEPS = 4096;

const UUID = /^[\da-f]{8}-?[\da-f]{4}-?[\da-f]{4}-?[\da-f]{4}-?[\da-f]{12}$/i;
/** A map: `&constructor;` is none of them. */
const ENTITIES = new Map([
  ['lt', '<'],
  ['gt', '>'],
  ['amp', '&'],
  ['quot', '"'],
  ['apos', "'"],
]);
/** A piece of markup: what it begins with, and with what it ends. */
const PASSED_OVER = [
  ['<!--', '-->'],
  ['<![CDATA[', ']]>'],
  ['<?', '?>'],
  ['<!', '>'],
] as const;

export interface DomainIdentity {
  name: string | null;
  /** Lower case, with its hyphens. */
  uuid: string | null;
}

export async function describeDomain(xml: string): Promise<DomainIdentity> {
  const steps = stepsThrough(xml);
  for (let count = 1; ; count++) {
    const step = steps.next();
    if (step.done === true) return step.value;
    if (count % TURN_STEPS === 0) await yieldToLoop();
  }
}

function* stepsThrough(xml: string): Generator<void, DomainIdentity, undefined> {
  const found: DomainIdentity = { name: null, uuid: null };
  let depth = 0;
  for (let at = xml.indexOf('<'); at >= 0; at = xml.indexOf('<', at)) {
    yield;
    const passed = PASSED_OVER.find(([begin]) => xml.startsWith(begin, at));
    if (passed !== undefined) {
      const end = xml.indexOf(passed[1], at + passed[0].length);
      if (end < 0) return found;
      at = end + passed[1].length;
      continue;
    }
    const end = yield* endOfTag(xml, at);
    if (end < 0) return found;
    const begin = at + 1;
    at = end + 1;
    if (xml[begin] === '/') depth--;
    else if (xml[end - 1] !== '/') {
      if (depth === 1) take(found, xml.slice(begin, begin + KEYWORD_LENGTH), xml, at);
      depth++;
    }
    if (depth <= 0 || (found.name !== null && found.uuid !== null)) return found;
  }
  return found;
}

/** A `>` within quotes is none. */
function* endOfTag(xml: string, at: number): Generator<void, number, undefined> {
  const mark = /["'>]/g;
  for (;;) {
    mark.lastIndex = at;
    if (!mark.test(xml)) return -1;
    const found = mark.lastIndex - 1;
    if (xml[found] === '>') return found;
    const end = xml.indexOf(xml[found], found + 1);
    if (end < 0) return -1;
    at = end + 1;
    yield;
  }
}

/** @param tag its beginning. @param at where the text begins that follows it */
function take(found: DomainIdentity, tag: string, xml: string, at: number): void {
  const keyword = /^(name|uuid)(?=[\s>])/.exec(tag)?.[1];
  if (keyword === undefined) return;
  const end = xml.indexOf('<', at);
  if (end < 0) return;
  if (keyword === 'name') {
    if (found.name === null && end - at <= MAX_NAME_LENGTH) found.name = unescape(xml.slice(at, end));
    return;
  }
  if (found.uuid !== null || end - at > MAX_UUID_LENGTH) return;
  const uuid = xml.slice(at, end).trim();
  if (UUID.test(uuid)) found.uuid = hyphenated(uuid);
}

function unescape(text: string): string {
  return text.replaceAll(/&(?:#x([\da-f]{1,6})|#(\d{1,7})|([a-z]+));/gi, (all, hex, decimal, name) => {
    if (name !== undefined) return ENTITIES.get(name as string) ?? all;
    const code = hex === undefined ? Number(decimal) : parseInt(hex as string, 16);
    return code <= 0x10ffff ? String.fromCodePoint(code) : all;
  });
}

function hyphenated(uuid: string): string {
  const digits = uuid.replaceAll('-', '').toLowerCase();
  return digits.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');
}
