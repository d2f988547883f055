/**
 * Who the domain in libvirt's XML is: the text of <name> and <uuid> right below the root. No parser of XML: of what else
 * stands there only so much is looked at that it is not taken for these two.
 *
 *     <!-- -->  <![CDATA[ ]]>  <? ?>  <! >     passed over
 *     <tag a="<>">  </tag>  <tag/>             one deeper, one higher, neither
 *
 * What is not well-formed has no name; nothing here throws. A text is passed over once, whatever it holds.
 */
/** libvirt's own names are names of files as well, so no longer than that; by choice. */
const MAX_NAME_LENGTH = 4096;

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

export function describeDomain(xml: string): DomainIdentity {
  const found: DomainIdentity = { name: null, uuid: null };
  let depth = 0;
  for (let at = xml.indexOf('<'); at >= 0; at = xml.indexOf('<', at)) {
    const passed = PASSED_OVER.find(([begin]) => xml.startsWith(begin, at));
    if (passed !== undefined) {
      const end = xml.indexOf(passed[1], at + passed[0].length);
      if (end < 0) return found;
      at = end + passed[1].length;
      continue;
    }
    const end = endOfTag(xml, at);
    if (end < 0) return found;
    const tag = xml.slice(at + 1, end);
    at = end + 1;
    if (tag.startsWith('/')) depth--;
    else if (!tag.endsWith('/')) {
      if (depth === 1) take(found, tag, textAt(xml, at));
      depth++;
    }
    if (depth <= 0 || (found.name !== null && found.uuid !== null)) return found;
  }
  return found;
}

/** A `>` within quotes is none. */
function endOfTag(xml: string, at: number): number {
  for (let quote = ''; at < xml.length; at++) {
    const char = xml[at];
    if (quote !== '') {
      if (char === quote) quote = '';
    } else if (char === '"' || char === "'") quote = char;
    else if (char === '>') return at;
  }
  return -1;
}

function textAt(xml: string, at: number): string {
  const end = xml.indexOf('<', at);
  return end < 0 ? '' : xml.slice(at, end);
}

function take(found: DomainIdentity, tag: string, text: string): void {
  if (/^name(\s|$)/.test(tag) && found.name === null && text.length <= MAX_NAME_LENGTH) {
    found.name = unescape(text);
  }
  const uuid = text.trim();
  if (/^uuid(\s|$)/.test(tag) && found.uuid === null && UUID.test(uuid)) found.uuid = hyphenated(uuid);
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
