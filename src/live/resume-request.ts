/**
 * Looks at a main stream that has come in, and takes nothing of it: is it that of a source which may be carried on, and of
 * which one? Nothing that it says is believed but its token. See stream/resume-section.ts.
 */
import { MultifdError, receivedExpected } from '../errors.js';
import { ByteReader } from '../stream/byte-reader.js';
import { MainStreamReader } from '../stream/main-stream.js';
import { RESUME_IDSTR, decodeResumeBody, type ResumeRequest } from '../stream/resume-section.js';
import type { MainConnection } from '../transport/main-connection.js';

/** Header, configuration and commands are some hundred bytes; a machine's name has 255 at the most. */
const MAX_PEEKED_BYTES = 2048;

/**
 * @throws MultifdError ERR_MULTIFD_STREAM if it is another's; whatever the stream broke with
 */
export async function readResumeRequest(main: MainConnection): Promise<ResumeRequest> {
  const reader = new ByteReader(peeked(main), { name: 'main stream' });
  const stream = new MainStreamReader(reader, { takesResume: true });
  for (;;) {
    const item = await stream.next();
    if (item === undefined || item.kind === 'section') throw noResumeRequest('START of ram');
    if (item.kind === 'other-section' && item.idstr !== RESUME_IDSTR) throw noResumeRequest(item.idstr);
    // Its body comes in one piece.
    if (item.kind === 'other-data') return decodeResumeBody(item.raw);
  }
}

/** A source that does not ask: QEMU, sendMigration(), or one of ours without the option. */
export function noResumeRequest(received: string): MultifdError {
  const what = "section before ram's START";
  const expected = `"${RESUME_IDSTR}" of createMigrationSource({ resumable: true }): a QEMU, or sendMigration(), cannot carry on (option resumable here)`;
  return new MultifdError('ERR_MULTIFD_STREAM', receivedExpected(what, received, expected));
}

/** Byte by byte: there are few, and no more is waited for than what is looked at. */
async function* peeked(main: MainConnection): AsyncGenerator<Buffer, void, undefined> {
  for (let have = 0; have < MAX_PEEKED_BYTES; have++) {
    const bytes = await main.reader.peek(have + 1);
    if (bytes.length <= have) return;
    yield Buffer.from(bytes.subarray(have));
  }
}
