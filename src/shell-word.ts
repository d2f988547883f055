/**
 * Words of a command that is printed to be copied: what stands in them comes from a file, and so from whoever made it.
 *
 *     pc-q35-10.0            pc-q35-10.0
 *     /srv/a b               '/srv/a b'
 *     pc$(reboot);x          'pc$(reboot);x'
 *     it's                   'it'\''s'
 *
 * Controls, which a quote does not keep from the terminal, are the output's to escape (printable.ts); within the quotes they
 * are no more than wrong.
 */

/** As a POSIX shell takes it for one word with this very text. */
export function shellWord(text: string): string {
  return /^[\w.,:=@%+/-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}

/** Within an option of QEMU's, where a comma begins the next key. */
export function optionValue(text: string): string {
  return text.replaceAll(',', ',,');
}
