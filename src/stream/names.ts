/** What sections, commands and records are called in errors and descriptions: QEMU's own names, or the number. */
import { QEMU_VM_SUBSECTION, QEMU_VM_CONFIGURATION } from './configuration.js';
import {
  QEMU_VM_COMMAND,
  QEMU_VM_EOF,
  QEMU_VM_SECTION_END,
  QEMU_VM_SECTION_FOOTER,
  QEMU_VM_SECTION_FULL,
  QEMU_VM_SECTION_PART,
  QEMU_VM_SECTION_START,
  QEMU_VM_VMDESCRIPTION,
  RAM_SAVE_FLAG_COMPRESS_PAGE,
  RAM_SAVE_FLAG_CONTINUE,
  RAM_SAVE_FLAG_EOS,
  RAM_SAVE_FLAG_HOOK,
  RAM_SAVE_FLAG_MEM_SIZE,
  RAM_SAVE_FLAG_MULTIFD_FLUSH,
  RAM_SAVE_FLAG_PAGE,
  RAM_SAVE_FLAG_XBZRLE,
  RAM_SAVE_FLAG_ZERO,
} from './records.js';

const SECTION_NAMES: Record<number, string> = {
  [QEMU_VM_EOF]: 'EOF',
  [QEMU_VM_SECTION_START]: 'START',
  [QEMU_VM_SECTION_PART]: 'PART',
  [QEMU_VM_SECTION_END]: 'END',
  [QEMU_VM_SECTION_FULL]: 'FULL',
  [QEMU_VM_SUBSECTION]: 'SUBSECTION',
  [QEMU_VM_VMDESCRIPTION]: 'VMDESCRIPTION',
  [QEMU_VM_CONFIGURATION]: 'CONFIGURATION',
  [QEMU_VM_COMMAND]: 'COMMAND',
  [QEMU_VM_SECTION_FOOTER]: 'FOOTER',
};

export function sectionName(type: number): string {
  return SECTION_NAMES[type] ?? `0x${type.toString(16).padStart(2, '0')}`;
}

const COMMAND_NAMES: Record<number, string> = {
  1: 'OPEN_RETURN_PATH',
  2: 'PING',
  3: 'POSTCOPY_ADVISE',
  4: 'POSTCOPY_LISTEN',
  5: 'POSTCOPY_RUN',
  6: 'POSTCOPY_RAM_DISCARD',
  7: 'PACKAGED',
  8: 'ENABLE_COLO',
  9: 'POSTCOPY_RESUME',
  10: 'RECV_BITMAP',
  11: 'SWITCHOVER_START',
};

export function commandName(command: number): string {
  return COMMAND_NAMES[command] ?? `${command}`;
}

const FLAG_NAMES: [flag: number, name: string][] = [
  [RAM_SAVE_FLAG_ZERO, 'ZERO'],
  [RAM_SAVE_FLAG_MEM_SIZE, 'MEM_SIZE'],
  [RAM_SAVE_FLAG_PAGE, 'PAGE'],
  [RAM_SAVE_FLAG_EOS, 'EOS'],
  [RAM_SAVE_FLAG_CONTINUE, 'CONTINUE'],
  [RAM_SAVE_FLAG_XBZRLE, 'XBZRLE'],
  [RAM_SAVE_FLAG_HOOK, 'HOOK'],
  [RAM_SAVE_FLAG_COMPRESS_PAGE, 'COMPRESS_PAGE'],
  [RAM_SAVE_FLAG_MULTIFD_FLUSH, 'MULTIFD_FLUSH'],
];

/** `0x022 (ZERO | CONTINUE)` */
export function recordName(flags: number): string {
  const names = FLAG_NAMES.filter(([flag]) => (flags & flag) !== 0).map(([, name]) => name);
  const hex = `flags 0x${flags.toString(16).padStart(3, '0')}`;
  return names.length === 0 ? hex : `${hex} (${names.join(' | ')})`;
}
