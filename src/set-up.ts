/**
 * What is set alike at both ends, since the wire does not say it or says too little, and how it is called: in the library,
 * on the command line (of a relay with `-in` or `-out` behind it), in QEMU. A message about two ends that do not fit names
 * all three, so that it can be mended at either.
 */
export const SET_UP = {
  channels: "option channels, --channels, QEMU's multifd-channels",
  compression: "option compression, --compression, QEMU's multifd-compression",
  pageSize: "option pageSize, --page-size; a QEMU has its target's",
  uuid: "option uuid, --uuid, QEMU's -uuid",
  blocks: "option blocks; a QEMU has its machine's, with its -m and devices",
  devices: 'option devices',
  deviceStateBytes: 'option deviceStateBytes',
  tls: "option tls, --tls-creds, QEMU's tls-creds",
} as const;

/** For a sender whose peer has closed its connections: a receiver that refuses does no more than that. */
export const REFUSED_PERHAPS =
  'if the receiver has refused, its own error says why; alike at both ends are ' +
  `channels (${SET_UP.channels}), compression (${SET_UP.compression}), the page size (${SET_UP.pageSize}), ` +
  `the uuid (${SET_UP.uuid}), TLS (${SET_UP.tls}) and the blocks (${SET_UP.blocks})`;
