/**
 * The file of a resume, looked at before QEMU hears of anything: what fails here has cost nobody a QEMU that waits.
 *
 *     each            can be opened, past the page cache where that is asked for
 *     mapped-ram      is sound, and has the page size that was given
 *     for postcopy    its blocks are made of the destination's pages; its devices have an end
 *     a stream        libvirt's: unpacks up to its block list, which with the configuration says what QEMU must be like
 *
 * Pages, and a stream's rest, are looked at when they are sent.
 */
import { offsetForPostcopy, readSaveImage, type SaveImage } from '../libvirt/save-image.js';
import { requireSound, type MappedRamDescription } from '../mapped-ram/description.js';
import { readMappedRam } from '../mapped-ram/read.js';
import { tryDirectReads } from '../mapped-ram/read-pages.js';
import type { Described } from '../migration/needs.js';
import { requirePageSizeTold } from '../migration/options.js';
import type { CheckedSend } from '../migration/send.js';
import { readHead } from '../migration/send-stream.js';
import { MigrationFile } from '../packed/open.js';
import { refusePacked } from '../packed/packed-file.js';
import { hostPageSizes, type CheckedPostcopy } from '../postcopy/options.js';
import { digestOf } from '../postcopy/hot-file.js';
import { PageMap } from '../postcopy/page-map.js';
import { deviceBytes } from '../postcopy/stream.js';
import type { ReadableFile } from '../stream/positioned-file.js';
import { isLive, readRunState } from '../stream/run-state.js';

export interface ResumeFile {
  /** What QEMU must be like. */
  needs: Described;
  libvirt: SaveImage | undefined;
  /** Was the guest paused, or ended, when it was saved? Looked at for postcopy, which would start it all the same. */
  wasHeld: boolean;
  /** Of a file for postcopy: sha256 of what tells it from another parking's. */
  digest: string;
  /** Where QEMU's stream begins. */
  offset: number;
}

/** @throws MultifdError as sendMigration() for a file that cannot be sent; ERR_MULTIFD_OPTION for one that fits no option */
export async function lookAtFile(
  options: CheckedSend | CheckedPostcopy,
  sending: { pageSize: number | undefined; stallTimeoutMs: number | undefined },
): Promise<ResumeFile> {
  const { file, directIo, bounds } = options;
  const { pageSize } = sending;
  await using opened = await MigrationFile.open(file, directIo);
  const { content, packed, handle } = opened;
  const libvirt = await readSaveImage(content, options.offset);
  const offset =
    'recover' in options
      ? offsetForPostcopy(libvirt, options.offset)
      : (libvirt?.streamOffset ?? options.offset);
  if (libvirt !== undefined && libvirt.format !== 'sparse') {
    if (packed !== undefined) refusePacked("libvirt's save image of a stream");
    const { configuration, blocks } = await readHead(handle, libvirt, { directIo, bounds, ...sending });
    const needs = { machine: configuration?.machine ?? '', blocks, libvirt, configuration };
    return { needs, libvirt, wasHeld: false, digest: '', offset };
  }
  const description = await readMappedRam(content, {
    offset,
    ...(pageSize !== undefined && { pageSize }),
    ...bounds,
  });
  requireSound(description);
  requirePageSizeTold(description.pageSize, pageSize);
  if (opened.directPages !== undefined) await tryDirectReads(opened.directPages, description);
  const needs = { ...description, libvirt };
  if ('recover' in options) {
    const sizes = hostPageSizes(options, description);
    await deviceBytes(content, description);
    const maps = await PageMap.readAll(content, description, sizes);
    const digest = await digestOf(content, description, maps);
    const wasHeld = await isHeld(content, description, libvirt);
    return { needs, libvirt, wasHeld, digest, offset };
  }
  return { needs, libvirt, wasHeld: false, digest: '', offset };
}

/** libvirt pauses each domain to save it, and has a word of its own for how it was. */
async function isHeld(
  content: ReadableFile,
  { tailOffset = 0, tailBytes = 0, footers }: MappedRamDescription,
  libvirt: SaveImage | undefined,
): Promise<boolean> {
  if (libvirt !== undefined) return !libvirt.wasRunning;
  const state = await readRunState(content, { offset: tailOffset, bytes: tailBytes }, footers);
  return state !== undefined && !isLive(state);
}
