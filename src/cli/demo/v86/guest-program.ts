/**
 * The guest of `multifd demo --v86`: a multiboot image that counts and checksums its memory all the while, and says so on its
 * serial port (guest-steps.ts). No BIOS, no disk, no download.
 *
 * Between two bunches of steps it sleeps until the timer's next tick (`hlt`), or it does not: then it writes to all of its memory
 * faster than any network takes it. `spin` slows it down.
 */
import { LOAD, assembleGuest, type GuestStepsOptions } from './guest-steps.js';

const MAGIC = 0x1badb002;
/** The header says where to load it. */
const FLAGS = 0x10000;
const IDT = 0x1000;
const TIMER_VECTOR = 0x20;
/** The timer's input, in Hz: 105 / 88 MHz. */
const PIT_HZ = 1193182;

export interface GuestProgramOptions extends GuestStepsOptions {
  /** Sleep between bunches (default true). */
  sleeps?: boolean;
  /** Of its timer (default 200). */
  ticksPerSecond?: number;
}

const START = `
header: =MAGIC =FLAGS =CHECKSUM =LOAD =LOAD =ZERO =ZERO @start   ; as multiboot has it

gdt:    00 00 00 00 00 00 00 00
        ff ff 00 00 00 9a cf 00   ; 08: code, 4 GiB
        ff ff 00 00 00 92 cf 00   ; 10: data, 4 GiB
gdtr:   17 00 @gdt
idtr:   ff 01 =IDT

start:  fa                        ; cli
        bc =STACK                 ; mov esp, STACK
        0f 01 15 @gdtr            ; lgdt
        ea @flat 08 00            ; jmp 08:flat
flat:   66 b8 10 00               ; mov ax, 10
        8e d8 8e c0 8e d0         ; mov ds, es, ss
        b8 @timer                 ; mov eax, timer        an interrupt gate for the timer
        25 =LOW                   ; and eax, ffff
        0d =CODE                  ; or eax, 08 << 16
        a3 =GATE                  ; mov [GATE], eax
        b8 @timer
        25 =HIGH                  ; and eax, ffff0000
        0d =KIND                  ; or eax, 8e00
        a3 =GATE4                 ; mov [GATE + 4], eax
        0f 01 1d @idtr            ; lidt
        b0 11 e6 20 e6 a0         ; the interrupt controllers: vectors 20 and 28,
        b0 20 e6 21  b0 28 e6 a1
        b0 04 e6 21  b0 02 e6 a1
        b0 01 e6 21 e6 a1
        b0 fe e6 21  b0 ff e6 a1  ; the timer and nothing else
        b0 34 e6 43               ; the timer: periodic
        b8 =PERIOD
        e6 40 88 e0 e6 40         ; out 40, al; mov al, ah; out 40, al
        fb                        ; sti
        e9 ~run                   ; jmp
`;

const SUBROUTINES = `
put:    66 ba f8 03 ee            ; mov dx, 3f8; out dx, al
flush:  c3                        ; ret
rest:   =REST                     ; hlt, or nothing
        c3                        ; ret

timer:  50                        ; push eax
        ff 05 @ticks              ; inc dword [ticks]
        b0 20 e6 20               ; end of interrupt
        58                        ; pop eax
        cf                        ; iret
`;

/** As v86 takes it: an image for `multiboot`. */
export function guestProgram(options: GuestProgramOptions): ArrayBuffer {
  const { sleeps = true, ticksPerSecond = 200 } = options;
  const constants = {
    MAGIC,
    FLAGS,
    CHECKSUM: -(MAGIC + FLAGS),
    LOAD,
    ZERO: 0,
    IDT,
    GATE: IDT + 8 * TIMER_VECTOR,
    GATE4: IDT + 8 * TIMER_VECTOR + 4,
    LOW: 0xffff,
    HIGH: 0xffff0000,
    CODE: 0x00080000,
    KIND: 0x8e00,
    STACK: 0x90000,
    PERIOD: Math.round(PIT_HZ / ticksPerSecond),
  };
  const after = SUBROUTINES.replace('=REST', sleeps ? 'f4' : '90');
  return Uint8Array.from(assembleGuest(options, { origin: LOAD, before: START, after, constants })).buffer;
}
