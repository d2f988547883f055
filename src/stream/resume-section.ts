/**
 * How a source and a destination of ours agree to carry a broken migration on: a section of our own in the main stream, behind
 * configuration and commands and before ram's START, and a message of our own on the return path. QEMU's frame, so that a QEMU
 * refuses it by name ("Unknown savevm section or instance 'multifd-resume'") and a parser that knows it finds its end. All
 * integers big-endian.
 *
 *     04 u32 id, u8 n, n bytes "multifd-resume", u32 0, u32 1       FULL, of version 1
 *        16 bytes token                                             random, the same in all tries of one migration
 *        u32 try                                                    from 1 on, each above the one before
 *        u32 rounds                                                 begun in the tries before; the next one has this number + 1
 *     7e u32 id                                                     footer
 *
 *     u16 0x4d47, u16 n                                             none or more, before the answer:
 *        u8 n, n bytes block, u32 first, words of u32               pages of round completed + 1 that have come: bit `page & 31` of
 *                                                                   word `page >> 5`, from word `first` on
 *     u16 0x4d46, u16 20                                            the answer
 *        u32 completed                                              the last round that is whole at the destination; 0: none
 *        16 bytes key                                               random, of this try: each channel's hello must have it
 *
 *     source                                              destination
 *     main stream: header, configuration, section  ---->  knows the token? lets go of the try before
 *                                                  <----  [pages,] completed, key
 *     START, block list ...; channels with the key ---->  takes no channel without it
 *
 * The channels wait for the answer, so nobody who connects in the pause can come to be one: pages that are here are written to
 * by channels with a key that only the owner of the token was told.
 */
import { randomBytes } from 'node:crypto';
import type { ByteReader } from './byte-reader.js';
import { refusal } from './codes.js';
import { encodeName, encodeU32 } from './configuration.js';
import { encodeFooter, encodeOtherSection } from './main-writer.js';
import type { OtherSection } from './other-sections.js';
import type { OtherSectionType } from './records.js';
import { RP_RESUME, RP_RESUME_PAGES, encodeMessage } from './return-path.js';

export const RESUME_IDSTR = 'multifd-resume';
const VERSION = 1;
const TOKEN_BYTES = 16;
const BODY_BYTES = TOKEN_BYTES + 8;
/** Any but ram's, which is 0. */
const SECTION_ID = 1;

export interface ResumeRequest {
  token: Buffer;
  attempt: number;
  rounds: number;
}

/** Pages that have come, of one block. */
export interface ResumePages {
  block: string;
  firstWord: number;
  words: Uint32Array;
}

export interface ResumeAnswer {
  completed: number;
  key: Buffer;
}

/** A token, or a key. */
export function randomKey(): Buffer {
  return randomBytes(TOKEN_BYTES);
}

export function encodeResumeSection({ token, attempt, rounds }: ResumeRequest): Buffer {
  return Buffer.concat([
    encodeOtherSection({
      section: 'full',
      sectionId: SECTION_ID,
      idstr: RESUME_IDSTR,
      instanceId: 0,
      versionId: VERSION,
    }),
    token,
    encodeU32(attempt),
    encodeU32(rounds),
    encodeFooter(SECTION_ID),
  ]);
}

/** @param body of the section, whole */
export function decodeResumeBody(body: Buffer): ResumeRequest {
  return {
    token: Buffer.from(body.subarray(0, TOKEN_BYTES)),
    attempt: body.readUInt32BE(TOKEN_BYTES),
    rounds: body.readUInt32BE(TOKEN_BYTES + 4),
  };
}

export function encodeResumeAnswer({ completed, key }: ResumeAnswer): Buffer {
  return encodeMessage(RP_RESUME, Buffer.concat([encodeU32(completed), key]));
}

export function encodeResumePages(block: string, firstWord: number, words: Int32Array): Buffer {
  const bytes = Buffer.allocUnsafe(4 * words.length);
  for (const [i, word] of words.entries()) bytes.writeInt32BE(word, 4 * i);
  return encodeMessage(RP_RESUME_PAGES, Buffer.concat([encodeName(block), encodeU32(firstWord), bytes]));
}

/** @throws MultifdError STREAM_ERRORS.returnPath */
export function decodeResumePages(data: Buffer): ResumePages {
  const nameEnd = 1 + (data[0] ?? 0);
  const bytes = data.length - nameEnd - 4;
  if (bytes < 0 || bytes % 4 !== 0)
    throw refusal('returnPath', 'pages that have come: bytes of their words', bytes, 'a multiple of 4');
  const words = Uint32Array.from({ length: bytes / 4 }, (_, i) => data.readUInt32BE(nameEnd + 4 + 4 * i));
  return { block: data.toString('latin1', 1, nameEnd), firstWord: data.readUInt32BE(nameEnd), words };
}

/** For a main stream's reader that is told to take it; undefined for any other section. */
export function resumeSection(idstr: string, type: OtherSectionType): OtherSection | undefined {
  if (idstr !== RESUME_IDSTR || type !== 'full') return undefined;
  return { versionId: VERSION, iterates: false, readBody };
}

async function* readBody(reader: ByteReader): AsyncGenerator<void, void, undefined> {
  await reader.exactly(BODY_BYTES, 'section multifd-resume');
  yield;
}
