/**
 * What each guest of `multifd demo --v86` does all the while, on a bare PC (guest-program.ts) or as Linux's init (linux-init.ts):
 *
 *     x = x * 1664525 + 1013904223                 a step: a word of the region, chosen by x, becomes x,
 *     sum += (x - word[x >> shift]) * (address|1)   and the sum over all words is kept up to date in a register
 *     steps++
 *
 *     line 0000002a steps 00123456 sum 89abcdef ok     every so many ticks, when it has read the whole region and found that
 *                                                      sum in it: BAD where it has not
 *
 * All that is in the region follows from the number of steps, so that whoever knows that number (GuestModel) knows every byte.
 * Sum, steps and x are in registers: lost devices' state is seen as lost pages are. Steps are in memory as well, behind the word
 * that they count: who looks from outside finds them there whatever the CPU does at that moment.
 */
import { assemble } from './assemble.js';

const MIB = 2 ** 20;
/** Where a guest's program is loaded. */
export const LOAD = MIB;
/** The region that it writes to. */
export const REGION = 2 * MIB;
/** Where it says how many steps it has done. */
export const STEPS_AT = REGION - 4;
const LCG_FACTOR = 1664525;
const LCG_SUMMAND = 1013904223;

export interface GuestStepsOptions {
  /** Bytes that it writes to, a power of two; its RAM is 2 MiB more. */
  regionBytes: number;
  /** Steps in a bunch (default 64). */
  steps?: number;
  /** Turns of an empty loop behind each bunch (default 1: none). */
  spin?: number;
  /** Ticks between two lines (default 20). */
  ticksPerLine?: number;
}

/**
 * Entered at `run`. What is around it has, as subroutines that keep ebx, esi, edi and ebp: `put` writes the character in al and keeps
 * eax and ecx, `flush` is behind each line, `rest` behind each bunch; and `ticks` grows with time.
 */
const LISTING = `
run:    31 db 31 f6 31 ff         ; ebx x, esi steps, edi sum

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
        89 35 =STEPS_AT           ; mov [STEPS_AT], esi
        49                        ; dec ecx
        0f 85 ~step               ; jnz
        b9 =SPIN                  ; mov ecx, SPIN
spin:   49                        ; dec ecx
        75 .spin                  ; jnz
        a1 @ticks                 ; mov eax, [ticks]
        2b 05 @last               ; sub eax, [last]
        3d =PER_LINE              ; cmp eax, PER_LINE
        72 .rests                 ; jb
        e8 ~say                   ; call
rests:  e8 ~rest                  ; call
        eb .bunch                 ; jmp

say:    a1 @ticks
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
        74 .end                   ; jz
        b8 @tbad
end:    e8 ~text
        e9 ~flush                 ; jmp

hex:    b9 08 00 00 00            ; mov ecx, 8            eax in eight digits
digit:  c1 c0 04                  ; rol eax, 4
        50                        ; push eax
        24 0f                     ; and al, f
        04 30                     ; add al, '0'
        3c 3a                     ; cmp al, '9' + 1
        72 .out                   ; jb
        04 27                     ; add al, 'a' - '0' - 10
out:    e8 ~put                   ; call
        58                        ; pop eax
        49                        ; dec ecx
        75 .digit                 ; jnz
        c3                        ; ret

text:   89 c1                     ; mov ecx, eax          what eax points to, up to its zero
next:   8a 01                     ; mov al, [ecx]
        84 c0                     ; test al, al
        74 .done                  ; jz
        e8 ~put                   ; call
        41                        ; inc ecx
        eb .next                  ; jmp
done:   c3                        ; ret

tline:  "line " 00
tsteps: " steps " 00
tsum:   " sum " 00
tok:    " ok" 0a 00
tbad:   " BAD" 0a 00
ticks:  00 00 00 00
last:   00 00 00 00
lines:  00 00 00 00
`;

/** What is around the steps. */
export interface GuestFrame {
  /** Where its code is. */
  origin: number;
  /** The begin of its code: jumps to `run`. */
  before: string;
  /** Subroutines. */
  after: string;
  constants: Record<string, number>;
}

export function assembleGuest(options: GuestStepsOptions, frame: GuestFrame): Buffer {
  const { regionBytes, steps = 64, spin = 1, ticksPerLine = 20 } = options;
  const shift = shiftOf(regionBytes).toString(16).padStart(2, '0');
  return assemble(frame.before + LISTING.replace('=SHIFT8', shift) + frame.after, frame.origin, {
    FACTOR: LCG_FACTOR,
    SUMMAND: LCG_SUMMAND,
    REGION,
    STEPS_AT,
    SIZE: regionBytes,
    STEPS: steps,
    SPIN: spin,
    PER_LINE: ticksPerLine,
    ...frame.constants,
  });
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
