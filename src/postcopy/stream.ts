/**
 * The main stream of postcopy, item by item; bytes only. In its order:
 *
 *     begin()      header, configuration, OPEN_RETURN_PATH, PING, POSTCOPY_ADVISE, PING
 *                  [sections before ram]
 *     blocks()     START ram, MEM_SIZE, EOS, footer; PING
 *                  [sections beside ram]
 *     discard()    [SWITCHOVER_START] RAM_DISCARD
 *     pages()      with a hint: PART ram; PAGE and ZERO records of what the guest will touch first
 *     endPages()   EOS, footer
 *     listen()     PACKAGED of so many bytes, in which: POSTCOPY_LISTEN
 *                  the devices' sections, as they stand in the file's tail
 *     run()        still packaged: PING, POSTCOPY_RUN
 *     pages()      PART ram; PAGE and ZERO records
 *     end()        EOS, footer; END ram, EOS, footer; EOF
 *
 * and of its recovery, on a new connection:
 *
 *     askBitmap()  RECV_BITMAP, for each block
 *     resume()     POSTCOPY_RESUME
 *     pages()      and on as above
 *
 * The PINGs tell how far a destination that refuses has come: it says why in its own log alone.
 *
 * At least one RAM_DISCARD is due, or a QEMU refuses to run: a page of the first block, none of which was ever sent. It stands
 * before the first page, not behind: with it QEMU does without transparent huge pages, and one page that is written into such
 * a huge page fills it with 511 others, which nobody sends any more because they seem to be there.
 */
import { MultifdError, receivedExpected } from '../errors.js';
import type { MappedRamDescription } from '../mapped-ram/description.js';
import { type StreamBlock, encodeU64 } from '../stream/block-list.js';
import { STREAM_ERRORS } from '../stream/codes.js';
import { encodeName, encodeU32 } from '../stream/configuration.js';
import type { MachineRules } from '../stream/machine.js';
import { MainStreamBuilder, encodeCommand } from '../stream/main-writer.js';
import { type ReadableFile, readAt } from '../stream/positioned-file.js';
import {
  COMMAND_OPEN_RETURN_PATH,
  COMMAND_PACKAGED,
  COMMAND_PING,
  COMMAND_POSTCOPY_ADVISE,
  COMMAND_POSTCOPY_LISTEN,
  COMMAND_POSTCOPY_RAM_DISCARD,
  COMMAND_POSTCOPY_RESUME,
  COMMAND_POSTCOPY_RUN,
  COMMAND_RECV_BITMAP,
  COMMAND_SWITCHOVER_START,
  QEMU_VM_EOF,
  QEMU_VM_VMDESCRIPTION,
} from '../stream/records.js';

/** What each PONG says of the destination. */
export const PONG_CONNECTED = 1;
export const PONG_ADVISED = 2;
/** As QEMU numbers it. */
export const PONG_LOADED = 3;
export const PONG_BLOCKS = 4;

const NOTHING = Buffer.alloc(0);
/** Of a PACKAGED, u32. */
const MOST_PACKAGED = 2 ** 32 - 1;
const DISCARD_VERSION = 0;
const SCAN_BYTES = 2 ** 16;
/** EOF, VMDESCRIPTION, u32 */
const DESCRIPTION_HEAD_BYTES = 6;

export interface PostcopyBlock extends StreamBlock {
  /** Where the destination's host page is not the normal one. */
  hostPageSize?: number;
}

export interface PostcopyParts {
  description: MappedRamDescription;
  blocks: readonly PostcopyBlock[];
  rules: MachineRules;
  /** Host page sizes of all blocks, or'ed, and the normal one. */
  pageSizes: number;
  normalPageSize: number;
}

export class PostcopyStream {
  readonly #parts: PostcopyParts;
  readonly #builder: MainStreamBuilder;

  constructor(parts: PostcopyParts) {
    const { description, blocks, rules } = parts;
    this.#parts = parts;
    // Without channels there is nothing to be flushed: each section ends with EOS alone.
    this.#builder = new MainStreamBuilder({ ...description, blocks }, { ...rules, marker: 'eos' });
  }

  begin(): Buffer {
    const { pageSizes, description } = this.#parts;
    const advise = Buffer.concat([encodeU64(pageSizes), encodeU64(description.pageSize)]);
    return this.#builder.begin([
      encodeCommand(COMMAND_OPEN_RETURN_PATH),
      encodePing(PONG_CONNECTED),
      encodeCommand(COMMAND_POSTCOPY_ADVISE, advise),
      encodePing(PONG_ADVISED),
    ]);
  }

  blocks(): Buffer {
    return Buffer.concat([this.#builder.start(), this.#builder.endSection(), encodePing(PONG_BLOCKS)]);
  }

  discard(): Buffer {
    const { rules, blocks, normalPageSize } = this.#parts;
    const [{ name, hostPageSize = normalPageSize }] = blocks;
    const discard = Buffer.concat([
      Buffer.of(DISCARD_VERSION),
      encodeName(name),
      Buffer.of(0),
      encodeU64(0),
      encodeU64(hostPageSize),
    ]);
    return Buffer.concat([
      rules.switchoverStart ? encodeCommand(COMMAND_SWITCHOVER_START) : NOTHING,
      encodeCommand(COMMAND_POSTCOPY_RAM_DISCARD, discard),
    ]);
  }

  /** @param deviceBytes of the devices' sections */
  listen(deviceBytes: number): Buffer {
    const first = encodeCommand(COMMAND_POSTCOPY_LISTEN);
    return Buffer.concat([
      encodeCommand(COMMAND_PACKAGED, encodeU32(first.length + deviceBytes + this.run().length)),
      first,
    ]);
  }

  run(): Buffer {
    return Buffer.concat([encodePing(PONG_LOADED), encodeCommand(COMMAND_POSTCOPY_RUN)]);
  }

  askBitmap(name: string): Buffer {
    return encodeCommand(COMMAND_RECV_BITMAP, encodeName(name));
  }

  resume(): Buffer {
    return encodeCommand(COMMAND_POSTCOPY_RESUME);
  }

  pages(): Buffer {
    return this.#builder.part();
  }

  endPages(): Buffer {
    return this.#builder.endSection();
  }

  end(): Buffer {
    const part = this.#builder.endSection();
    // As end() of the builder, without SWITCHOVER_START, which is long over.
    const { description } = this.#parts;
    const builder = new MainStreamBuilder(description, { marker: 'eos', switchoverStart: false });
    return Buffer.concat([part, builder.end(), builder.endSection(), Buffer.of(QEMU_VM_EOF)]);
  }
}

function encodePing(value: number): Buffer {
  return encodeCommand(COMMAND_PING, encodeU32(value));
}

/**
 * Bytes of the devices' sections in a file's tail: without EOF and the VM description behind them.
 *
 *     04 FULL ... 7e id            device sections
 *     00                           EOF                  <- what comes before it is counted
 *     06 u32 n, n bytes            VM description, if there is one: JSON, which has no 00
 *
 * @throws MultifdError STREAM_ERRORS.file, .io
 */
export async function deviceBytes(file: ReadableFile, description: MappedRamDescription): Promise<number> {
  const { tailOffset, tailBytes } = description;
  const what = 'mapped-ram file: end of the devices';
  if (tailOffset === undefined || tailBytes === undefined || tailBytes === 0) {
    throw new MultifdError(STREAM_ERRORS.file, `${what}: there is no tail`);
  }
  const bytes = (await lastZero(file, tailOffset, tailBytes)) ?? 0;
  const from = Math.max(0, bytes - DESCRIPTION_HEAD_BYTES);
  const head = await readAt(file, tailOffset + from, Math.min(tailBytes - from, 2 * DESCRIPTION_HEAD_BYTES));
  let end: number | undefined;
  // Any byte of the length may be the last that is 0.
  for (let at = 0; at + DESCRIPTION_HEAD_BYTES <= head.length && from + at <= bytes; at++) {
    const length = head.readUInt32BE(at + 2);
    const isHead = head[at] === QEMU_VM_EOF && head[at + 1] === QEMU_VM_VMDESCRIPTION;
    if (isHead && length > 0 && from + at + DESCRIPTION_HEAD_BYTES + length === tailBytes) end = from + at;
  }
  if (end === undefined && bytes === tailBytes - 1) end = bytes;
  if (end === undefined) {
    const found = receivedExpected(what, 'neither EOF nor a VM description', 'one of them');
    throw new MultifdError(STREAM_ERRORS.file, found);
  }
  if (end > MOST_PACKAGED - 64) {
    const found = receivedExpected('bytes of the devices', end, `at most ${MOST_PACKAGED - 64}`);
    throw new MultifdError(STREAM_ERRORS.limit, `mapped-ram file: ${found}`);
  }
  return end;
}

/** Where the last 00 of the tail lies. */
async function lastZero(file: ReadableFile, offset: number, length: number): Promise<number | undefined> {
  for (let end = length; end > 0;) {
    const from = Math.max(0, end - SCAN_BYTES);
    const at = (await readAt(file, offset + from, end - from)).lastIndexOf(0);
    if (at >= 0) return from + at;
    end = from;
  }
  return undefined;
}
