/**
 * The states of a live migration, in QEMU's words (`none` is what there is before it).
 *
 *     source         what happens                                          the guest runs
 *     setup          connecting                                            here
 *     active         rounds: all pages, then those that were dirtied       here
 *     pre-switchover waits for switchover()                                here
 *     device         pause(); last pages, devices' state; the answer       nowhere
 *     completed      the destination has loaded all                        there
 *     failed         broken off, resume()                                  here
 *     cancelling     being broken off                                      here, or nowhere until resume()
 *     cancelled      broken off, resume()                                  here
 *
 *     destination
 *     setup          listening, or the source has not yet said what it has
 *     active         pages, then the devices' state
 *     precopy-paused the connections broke; pages are kept for the source to carry on (option resumable). QEMU has
 *                    postcopy-paused for the same behind its switch-over
 *     completed      all is loaded, the source knows it; start()
 *     failed, cancelled   nothing was started
 */
export type SourceState =
  'setup' | 'active' | 'pre-switchover' | 'device' | 'completed' | 'failed' | 'cancelling' | 'cancelled';

export type DestinationState = 'setup' | 'active' | 'precopy-paused' | 'completed' | 'failed' | 'cancelled';
