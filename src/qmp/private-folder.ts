/**
 * A folder for a socket between QEMU and us, mode 0700: whatever mode a socket in it has, nobody else comes near it. QEMU
 * makes its sockets with its umask's mode. The folder goes with dispose(), or at the process's exit; only who is killed
 * leaves it behind.
 */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { MultifdError } from '../errors.js';

/** With the folder's and the socket's own names behind it the path of a socket has 107 bytes, or 103. */
const MAX_ROOT_BYTES = 72;

/** QEMU has to say the whole path: one that is too long for a socket is no use. */
function root(): string {
  // One that is relative means another folder to QEMU.
  const folder = path.resolve(os.tmpdir());
  return Buffer.byteLength(folder) <= MAX_ROOT_BYTES ? folder : '/tmp';
}

export class PrivateFolder implements Disposable {
  readonly path: string;

  /** @throws MultifdError ERR_MULTIFD_IO */
  constructor() {
    try {
      this.path = fs.mkdtempSync(path.join(root(), 'multifd-'));
      // An umask may have taken bits from the owner as well.
      fs.chmodSync(this.path, 0o700);
    } catch (error) {
      throw MultifdError.wrap(error, 'ERR_MULTIFD_IO', 'folder for a private socket');
    }
    process.on('exit', this.#remove);
  }

  [Symbol.dispose](): void {
    this.#remove();
    process.off('exit', this.#remove);
  }

  readonly #remove = (): void => {
    fs.rmSync(this.path, { recursive: true, force: true });
  };
}
