/**
 * The hint `FILE.hot` beside a mapped-ram file: which pages guests asked for that were started from it at once. One line of
 * JSON, in a format of our own:
 *
 *     { "multifd-hot": 1,
 *       "file": "sha256:...",                 whose hint it is: digest of blocks, bitmaps and the devices' beginning
 *       "pageSize": 4096,
 *       "check": "...",                       sha256 of [file, pageSize, pages] as JSON: no bit of it has changed
 *       "pages": [["pc.ram", 17, 3], ["vga.vram", 0], ["pc.ram", 4]] }    in the order of the requests
 *
 * It decides an order and nothing else: the pages themselves come from the mapped-ram file. So whatever stands in it, at
 * worst it is of no use. One that is of another file, damaged, or no regular file is left aside, and the caller told.
 *
 * It is read with a bound, through no link, and from nothing whose opening waits; written as a new file (O_EXCL, 0600: what a
 * guest touches is its own matter), and renamed over an old hint, never over a file that is none.
 */
import { createHash, randomBytes } from 'node:crypto';
import { constants, open, rename, rm, type FileHandle } from 'node:fs/promises';
import { setImmediate as yieldToLoop } from 'node:timers/promises';
import { MultifdError, codeOf } from '../errors.js';
import type { MappedRamDescription } from '../mapped-ram/description.js';
import { readAt, type ReadableFile } from '../stream/positioned-file.js';
import type { PageMap } from './page-map.js';

const VERSION = 1;
const BEGINNING = `{"multifd-hot":`;
/** 256 MiB of pages of 4 KiB; what is asked for later is no start any more. By choice. */
export const MAX_HOT_PAGES = 2 ** 16;
/** Of a page: its number and a comma, or in a list of its own a name of 255 characters, each of them escaped. */
const MAX_BYTES = 2 ** 22;
/** Of the devices: the processors' registers and clocks are among the first. */
const DEVICE_BYTES = 2 ** 16;
/** Hashed at once on the calling thread. */
const TURN_BYTES = 2 ** 22;
const MODE = 0o600;

/** A page of the target: the first of its host page. */
export interface HotPage {
  map: PageMap;
  page: number;
}

export function hotPath(file: string): string {
  return `${file}.hot`;
}

/** Whose hint: two parkings of one VM differ in the devices, if in no bitmap. */
export async function digestOf(
  file: ReadableFile,
  description: MappedRamDescription,
  maps: readonly PageMap[],
): Promise<string> {
  const hash = createHash('sha256');
  const { machine, pageSize, tailOffset = 0, tailBytes = 0 } = description;
  const blocks = maps.map(({ block }) => [block.name, block.usedLength]);
  hash.update(JSON.stringify([machine, pageSize, tailBytes, blocks]));
  for (const { presentBytes } of maps) {
    for (let at = 0; at < presentBytes.length; at += TURN_BYTES) {
      hash.update(presentBytes.subarray(at, at + TURN_BYTES));
      await yieldToLoop();
    }
  }
  hash.update(await readAt(file, tailOffset, Math.min(tailBytes, DEVICE_BYTES)));
  return `sha256:${hash.digest('hex')}`;
}

/**
 * @returns the pages, those alone that the file can have; undefined if there is no hint
 * @throws Error why it is left aside
 */
export async function readHot(
  path: string,
  digest: string,
  maps: readonly PageMap[],
): Promise<HotPage[] | undefined> {
  const text = await readText(path);
  if (text === undefined) return undefined;
  const given = parse(text);
  if (given.file !== digest) throw new Error('it is of another file, or of an earlier state of this one');
  const byName = new Map(maps.map((map) => [map.block.name, map]));
  const pages: HotPage[] = [];
  for (const [name, ...numbers] of given.pages) {
    const map = typeof name === 'string' ? byName.get(name) : undefined;
    if (map === undefined) throw new Error('it has pages of a block that is not in the file');
    for (const page of numbers) {
      if (!Number.isInteger(page) || (page as number) < 0 || (page as number) >= map.block.pageCount)
        throw new Error('it has pages that are not in the file');
      // The host's pages may be others than they were.
      pages.push({ map, page: (page as number) - ((page as number) % map.hostPages) });
      if (pages.length === MAX_HOT_PAGES) break;
    }
    if (pages.length === MAX_HOT_PAGES) break;
  }
  if (given.check !== checkOf(given.file, given.pageSize, given.pages)) throw new Error('it is damaged');
  return pages;
}

/** Of all that stands in it. */
export function checkOf(file: unknown, pageSize: unknown, pages: unknown): string {
  return createHash('sha256')
    .update(JSON.stringify([file, pageSize, pages]))
    .digest('hex');
}

async function readText(path: string): Promise<string | undefined> {
  const flags = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK;
  const handle = await open(path, flags).catch((error: unknown) => {
    if (codeOf(error) === 'ENOENT') return undefined;
    throw codeOf(error) === 'ELOOP' ? new Error('it is a link') : error;
  });
  if (handle === undefined) return undefined;
  try {
    const stats = await handle.stat();
    if (!stats.isFile()) throw new Error('it is no regular file');
    if (stats.size > MAX_BYTES)
      throw new Error(`received ${stats.size} bytes, expected at most ${MAX_BYTES}`);
    return (await readAt(handle, 0, stats.size)).toString();
  } finally {
    await handle.close();
  }
}

function parse(text: string): { file: unknown; pageSize: unknown; check: unknown; pages: unknown[][] } {
  let given: unknown;
  try {
    given = JSON.parse(text);
  } catch {
    throw new Error('it is damaged, or no such file');
  }
  const { 'multifd-hot': version, file, pageSize, check, pages } = (given ?? {}) as Record<string, unknown>;
  if (version !== VERSION) throw new Error(`it is not of version ${VERSION}, or no such file`);
  if (!Array.isArray(pages) || !pages.every((run) => Array.isArray(run))) throw new Error('it is damaged');
  return { file, pageSize, check, pages };
}

/** @throws Error why it could not be written: what was there before is there still */
export async function writeHot(
  path: string,
  digest: string,
  pageSize: number,
  hot: readonly HotPage[],
): Promise<void> {
  await requireOurs(path);
  const runs: [string, ...number[]][] = [];
  let last: PageMap | undefined;
  for (const { map, page } of hot.slice(0, MAX_HOT_PAGES)) {
    if (map !== last) runs.push([map.block.name]);
    last = map;
    runs[runs.length - 1].push(page);
  }
  const check = checkOf(digest, pageSize, runs);
  const text = `${JSON.stringify({ 'multifd-hot': VERSION, file: digest, pageSize, check, pages: runs })}\n`;
  // What could not be read again is not written.
  if (text.length > MAX_BYTES) throw new Error(`${text.length} bytes, expected at most ${MAX_BYTES}`);
  const part = `${path}.${randomBytes(6).toString('hex')}.part`;
  let handle: FileHandle | undefined;
  try {
    handle = await open(part, 'wx', MODE);
    await handle.writeFile(text);
    await handle.close();
    await rename(part, path);
  } catch (error) {
    await handle?.close().catch(() => {});
    if (handle !== undefined) await rm(part, { force: true }).catch(() => {});
    throw error;
  }
}

/** By this name may stand what somebody else keeps there. */
async function requireOurs(path: string): Promise<void> {
  const text = await readText(path);
  if (text === undefined || text.startsWith(BEGINNING)) return;
  throw new MultifdError('ERR_MULTIFD_IO', 'there is another file of this name: it is not replaced');
}
