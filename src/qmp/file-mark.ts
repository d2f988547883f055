/**
 * Which file a guest was started from at once, kept where the guest is: --recover from the file of another parking would mix the
 * memory of two. A process that comes later knows nothing, and the pages that QEMU has do not say whose they are.
 *
 *     start        object-add secret, id multifd-file-<digest>    nothing uses it, and it goes with the QEMU
 *     recover      qom-list /objects                              another's: refused. None: nobody knows
 *     completed    object-del
 *
 * As long QEMU has our settings, and who goes on does not know its own. So a second object, multifd-tls-off, says that its
 * tls-creds were switched off, for a private socket.
 *
 * A QEMU that takes no such object is none the worse for it.
 */
import { wrong } from '../option-checks.js';
import { textOf } from './json.js';
import type { Qmp } from './qmp.js';

const PREFIX = 'multifd-file-';
const TLS_OFF = 'multifd-tls-off';
/** Of the digest's 64 characters. */
const ID_CHARACTERS = 32;

export class FileMark {
  readonly #qmp: Qmp;
  readonly #id: string;

  /** @param digest sha256 in hexadecimal */
  constructor(qmp: Qmp, digest: string) {
    this.#qmp = qmp;
    this.#id = `${PREFIX}${digest.replace(/^sha256:/, '').slice(0, ID_CHARACTERS)}`;
  }

  async add(isTlsOff: boolean): Promise<void> {
    for (const id of [this.#id, ...(isTlsOff ? [TLS_OFF] : [])]) {
      await this.#attempt('object-add', { 'qom-type': 'secret', id, data: 'multifd' });
    }
  }

  async isTlsOff(): Promise<boolean> {
    return (await this.#objects()).includes(TLS_OFF);
  }

  /** @throws MultifdError ERR_MULTIFD_OPTION if the guest is known to be another file's */
  async requireSame(file: string): Promise<void> {
    const marks = (await this.#objects()).filter((name) => name.startsWith(PREFIX));
    if (marks.length === 0 || marks.includes(this.#id)) return;
    const allowed =
      "the file that the guest was started from: this one is another parking's, or has changed since";
    throw wrong('file', file, allowed);
  }

  async remove(): Promise<void> {
    await this.#attempt('object-del', { id: this.#id });
    await this.#attempt('object-del', { id: TLS_OFF });
  }

  async #objects(): Promise<string[]> {
    const objects = await this.#attempt('qom-list', { path: '/objects' });
    if (!Array.isArray(objects)) return [];
    return (objects as ({ name?: unknown } | null)[]).map((object) => textOf(object?.name));
  }

  async #attempt(command: string, args: object): Promise<unknown> {
    return this.#qmp.execute(command, args).catch(() => undefined);
  }
}
