/** HTML by template strings: what is put into one is escaped, wherever it comes from. */
export interface Html {
  text: string;
}

export type Part = string | number | false | undefined | Html | readonly Part[];

/** Everything that is put in is escaped, but what is HTML already; `false` and undefined are nothing. */
export function html(strings: TemplateStringsArray, ...parts: Part[]): Html {
  const text = (part: Part): string => {
    if (part === undefined || part === false) return '';
    if (typeof part !== 'object') return escape(String(part));
    return 'text' in part ? part.text : part.map(text).join('');
  };
  return raw(strings.map((string, i) => (i === 0 ? '' : text(parts[i - 1])) + string).join(''));
}

/** HTML, or a style sheet, as it stands. */
export function raw(text: string): Html {
  return { text };
}

const ENTITIES: Record<string, string> = {
  '&': '&amp;',
  '<': '&lt;',
  '>': '&gt;',
  '"': '&quot;',
  "'": '&#39;',
};

export function escape(text: string): string {
  return text.replace(/[&<>"']/g, (character) => ENTITIES[character]);
}
