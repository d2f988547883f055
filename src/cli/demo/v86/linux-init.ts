/**
 * The program that `multifd demo --v86 --kernel` runs as Linux's init: guest-steps.ts again, in a static ELF file of 32 bits, made
 * here byte by byte.
 *
 *     LOAD    ELF header, program header, code      the whole file: one segment
 *     REGION  what it writes to                     memory behind what is in the file, as .bss is
 *
 * It writes to the console, which Linux opens for it, a line in each call, and sleeps between bunches: that is its tick. The
 * kernel's own messages would come in between, and are silenced first.
 */
import { LOAD, REGION, assembleGuest, type GuestStepsOptions } from './guest-steps.js';

const ELF_HEADER_BYTES = 52;
const PROGRAM_HEADER_BYTES = 32;
const HEADERS_BYTES = ELF_HEADER_BYTES + PROGRAM_HEADER_BYTES;
const ET_EXEC = 2;
const EM_386 = 3;
const PT_LOAD = 1;
const READ_WRITE_EXECUTE = 7;
const PAGE_BYTES = 4096;
const TICK_NS = 4e6;
/** Of a line. */
const BUFFER_BYTES = 128;

const START = `
        b8 =SYSLOG                ; mov eax, SYSLOG
        bb 08 00 00 00            ; mov ebx, 8            what the kernel says on its console:
        31 c9                     ; xor ecx, ecx
        ba 01 00 00 00            ; mov edx, 1            its last words alone
        cd 80                     ; int 80
        e9 ~run                   ; jmp
`;

const SUBROUTINES = `
put:    8b 15 @cursor             ; mov edx, [cursor]
        88 02                     ; mov [edx], al
        ff 05 @cursor             ; inc dword [cursor]
        c3                        ; ret

flush:  53                        ; push ebx
        b8 =WRITE                 ; mov eax, WRITE
        bb 01 00 00 00            ; mov ebx, 1
        b9 =BUFFER                ; mov ecx, BUFFER
        8b 15 @cursor             ; mov edx, [cursor]
        29 ca                     ; sub edx, ecx
        89 0d @cursor             ; mov [cursor], ecx
        cd 80                     ; int 80
        5b                        ; pop ebx
        c3                        ; ret

rest:   53                        ; push ebx
        b8 =NANOSLEEP             ; mov eax, NANOSLEEP
        bb @tick                  ; mov ebx, tick
        31 c9                     ; xor ecx, ecx
        cd 80                     ; int 80
        5b                        ; pop ebx
        ff 05 @ticks              ; inc dword [ticks]
        c3                        ; ret

tick:   00 00 00 00 =TICK_NS      ; seconds, nanoseconds
cursor: =BUFFER
`;

export function linuxInit(options: GuestStepsOptions): Buffer {
  const code = assembleGuest(options, {
    origin: LOAD + HEADERS_BYTES,
    before: START,
    after: SUBROUTINES,
    constants: { SYSLOG: 103, WRITE: 4, NANOSLEEP: 162, TICK_NS, BUFFER: REGION - BUFFER_BYTES },
  });
  const memoryBytes = REGION - LOAD + options.regionBytes;
  return Buffer.concat([elfHeader(), programHeader(HEADERS_BYTES + code.length, memoryBytes), code]);
}

function elfHeader(): Buffer {
  const header = Buffer.alloc(ELF_HEADER_BYTES);
  // 32 bits, little-endian, version 1.
  header.write('\x7fELF\x01\x01\x01', 'latin1');
  header.writeUInt16LE(ET_EXEC, 16);
  header.writeUInt16LE(EM_386, 18);
  header.writeUInt32LE(1, 20);
  header.writeUInt32LE(LOAD + HEADERS_BYTES, 24);
  header.writeUInt32LE(ELF_HEADER_BYTES, 28);
  header.writeUInt16LE(ELF_HEADER_BYTES, 40);
  header.writeUInt16LE(PROGRAM_HEADER_BYTES, 42);
  header.writeUInt16LE(1, 44);
  return header;
}

function programHeader(fileBytes: number, memoryBytes: number): Buffer {
  const fields = [PT_LOAD, 0, LOAD, LOAD, fileBytes, memoryBytes, READ_WRITE_EXECUTE, PAGE_BYTES];
  const header = Buffer.alloc(PROGRAM_HEADER_BYTES);
  fields.forEach((field, i) => header.writeUInt32LE(field, 4 * i));
  return header;
}
