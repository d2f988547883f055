/**
 * The guest of `multifd demo --v86`: a multiboot image that counts and checksums its memory all the while, and says so on its
 * serial port. No BIOS, no disk, no download.
 *
 *     x = x * 1664525 + 1013904223                 a step: a word of the region, chosen by x, becomes x,
 *     sum += (x - word[x >> shift]) * (address|1)   and the sum over all words is kept up to date in a register
 *     steps++
 *
 *     line 0000002a steps 00123456 sum 89abcdef ok     every so many ticks of its timer, when it has read the whole region and
 *                                                      found that sum in it: BAD where it has not
 *
 * All that is in the region follows from the number of steps, so that whoever knows that number (GuestModel) knows every byte.
 * Sum, steps and x are in registers: lost devices' state is seen as lost pages are.
 *
 * Between two bunches of steps it sleeps until the timer's next tick (`hlt`), or it does not: then it writes to all of its memory
 * faster than any network takes it. `spin` slows it down.
 */
import { assemble } from './assemble.js';

const MIB = 2 ** 20;
const LOAD = MIB;
/** The region that it writes to. */
export const REGION = 2 * MIB;
const MAGIC = 0x1badb002;
/** The header says where to load it. */
const FLAGS = 0x10000;
const IDT = 0x1000;
const TIMER_VECTOR = 0x20;
/** The timer's input, in Hz: 105 / 88 MHz. */
const PIT_HZ = 1193182;
const LCG_FACTOR = 1664525;
const LCG_SUMMAND = 1013904223;

export interface GuestProgramOptions {
  /** Bytes that it writes to, a power of two; its RAM is 2 MiB more. */
  regionBytes: number;
  /** Sleep between bunches (default true). */
  sleeps?: boolean;
  /** Steps in a bunch (default 64). */
  steps?: number;
  /** Turns of an empty loop behind each bunch (default 1: none). */
  spin?: number;
  /** Of its timer (default 200). */
  ticksPerSecond?: number;
  /** Ticks between two lines (default 20). */
  ticksPerLine?: number;
}

const LISTING = `
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
        31 db 31 f6 31 ff         ; ebx x, esi steps, edi sum
        fb                        ; sti

bunch:  b9 =STEPS                 ; mov ecx, STEPS
step:   69 db =FACTOR             ; imul ebx, FACTOR
        81 c3 =SUMMAND            ; add ebx, SUMMAND
        89 d8                     ; mov eax, ebx
        c1 e8 =SHIFT8             ; shr eax, SHIFT
        83 e0 fc                  ; and eax, -4
        89 dd                     ; mov ebp, ebx
        2b a8 =REGION             ; sub ebp, [eax + REGION]
        89 c2                     ; mov edx, eax
        83 ca 01                  ; or edx, 1
        0f af ea                  ; imul ebp, edx
        01 ef                     ; add edi, ebp
        89 98 =REGION             ; mov [eax + REGION], ebx
        46                        ; inc esi
        49                        ; dec ecx
        0f 85 ~step               ; jnz
        b9 =SPIN                  ; mov ecx, SPIN
spin:   49                        ; dec ecx
        75 .spin                  ; jnz
        a1 @ticks                 ; mov eax, [ticks]
        2b 05 @last               ; sub eax, [last]
        3d =PER_LINE              ; cmp eax, PER_LINE
        0f 82 ~rest               ; jb
        a1 @ticks
        a3 @last                  ; mov [last], eax
        ff 05 @lines              ; inc dword [lines]
        31 c0 31 c9               ; eax sum of all, ecx address
check:  89 ca                     ; mov edx, ecx
        83 ca 01                  ; or edx, 1
        0f af 91 =REGION          ; imul edx, [ecx + REGION]
        01 d0                     ; add eax, edx
        83 c1 04                  ; add ecx, 4
        81 f9 =SIZE               ; cmp ecx, SIZE
        72 .check                 ; jb
        50                        ; push eax
        b8 @tline e8 ~text        ; mov eax, text; call
        a1 @lines e8 ~hex
        b8 @tsteps e8 ~text
        89 f0 e8 ~hex
        b8 @tsum e8 ~text
        8b 04 24 e8 ~hex          ; mov eax, [esp]; call
        58                        ; pop eax
        39 f8                     ; cmp eax, edi
        b8 @tok                   ; mov eax, ok
        74 .say                   ; jz
        b8 @tbad
say:    e8 ~text
rest:   =REST                     ; hlt, or nothing
        e9 ~bunch                 ; jmp

hex:    b9 08 00 00 00            ; mov ecx, 8            eax in eight digits
digit:  c1 c0 04                  ; rol eax, 4
        50                        ; push eax
        24 0f                     ; and al, f
        04 30                     ; add al, '0'
        3c 3a                     ; cmp al, '9' + 1
        72 .out                   ; jb
        04 27                     ; add al, 'a' - '0' - 10
out:    66 ba f8 03 ee            ; mov dx, 3f8; out dx, al
        58                        ; pop eax
        49                        ; dec ecx
        75 .digit                 ; jnz
        c3                        ; ret

text:   89 c1                     ; mov ecx, eax          what eax points to, up to its zero
        66 ba f8 03               ; mov dx, 3f8
next:   8a 01                     ; mov al, [ecx]
        84 c0                     ; test al, al
        74 .end                   ; jz
        ee                        ; out dx, al
        41                        ; inc ecx
        eb .next                  ; jmp
end:    c3                        ; ret

timer:  50                        ; push eax
        ff 05 @ticks              ; inc dword [ticks]
        b0 20 e6 20               ; end of interrupt
        58                        ; pop eax
        cf                        ; iret

tline:  "line " 00
tsteps: " steps " 00
tsum:   " sum " 00
tok:    " ok" 0a 00
tbad:   " BAD" 0a 00
ticks:  =ZERO
last:   =ZERO
lines:  =ZERO
`;

/** As v86 takes it: an image for `multiboot`. */
export function guestProgram(options: GuestProgramOptions): ArrayBuffer {
  const { regionBytes, sleeps = true, steps = 64, spin = 1 } = options;
  const { ticksPerSecond = 200, ticksPerLine = 20 } = options;
  const shift = shiftOf(regionBytes).toString(16).padStart(2, '0');
  const rest = sleeps ? 'f4' : '90';
  const code = assemble(LISTING.replace('=SHIFT8', shift).replace('=REST', rest), LOAD, {
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
    FACTOR: LCG_FACTOR,
    SUMMAND: LCG_SUMMAND,
    REGION,
    SIZE: regionBytes,
    STEPS: steps,
    SPIN: spin,
    PER_LINE: ticksPerLine,
  });
  return Uint8Array.from(code).buffer;
}

/** What the guest's memory has to be, step by step: its twin, in plain JavaScript. */
export class GuestModel {
  readonly words: Int32Array;
  readonly #shift: number;
  steps = 0;
  sum = 0;
  #x = 0;

  constructor(regionBytes: number) {
    this.words = new Int32Array(regionBytes / 4);
    this.#shift = shiftOf(regionBytes);
  }

  /** As far as so many steps: forward only. */
  runTo(steps: number): void {
    const { words } = this;
    let [x, sum] = [this.#x, this.sum];
    for (; this.steps < steps; this.steps++) {
      x = (Math.imul(x, LCG_FACTOR) + LCG_SUMMAND) | 0;
      const address = (x >>> this.#shift) & ~3;
      sum = (sum + Math.imul(x - words[address >> 2], address | 1)) | 0;
      words[address >> 2] = x;
    }
    [this.#x, this.sum] = [x, sum];
  }
}

function shiftOf(regionBytes: number): number {
  return 32 - Math.log2(regionBytes);
}
