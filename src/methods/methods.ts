/**
 * The compression methods that there are, in one table. What a method's halves do, and who owns the bytes, is in
 * contract.ts. Read in each channel's thread, which loads the codec of its method alone.
 *
 * Method none has no halves: its pages are the payload, and the channels move them without a copy.
 */
import { MULTIFD_FLAG_NOCOMP, MULTIFD_FLAG_ZLIB, MULTIFD_FLAG_ZSTD } from '../wire/packet.js';
import type { Compression } from '../options.js';
import type { Codec } from './contract.js';

export type { Codec, ReceiveMethod, SendMethod } from './contract.js';

export interface Method {
  /** The method bits in a packet's flags. */
  readonly flag: number;
  /** Its modules, and with them its codec, are loaded where it is used: each channel's thread pays for them. */
  readonly load?: () => Promise<Codec>;
}

export const METHODS: Record<Compression, Method> = {
  none: { flag: MULTIFD_FLAG_NOCOMP },
  zlib: {
    flag: MULTIFD_FLAG_ZLIB,
    load: async () => {
      const { createZlibSender, createZlibReceiver } = await import('./zlib.js');
      return { createSender: createZlibSender, createReceiver: createZlibReceiver };
    },
  },
  zstd: {
    flag: MULTIFD_FLAG_ZSTD,
    load: async () => {
      const { createZstdSender, createZstdReceiver } = await import('./zstd.js');
      return { createSender: createZstdSender, createReceiver: createZstdReceiver };
    },
  },
};
