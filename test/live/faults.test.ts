/**
 * Connections that are cut one by one, and an abort, at each step: the guest runs on here, and nothing is started there. See
 * ends.test.ts as well, for cancel() of either end, and killed.test.ts.
 */
import t, { type Test } from 'tap';
import type { Address } from '../../src/index.js';
import { HandDestination } from '../migration/peers.js';
import { eventually } from '../support/raw-channel.js';
import { Wire, bothFail, failure, runsOnHere, scene } from './scene.js';
import { IN_LOAD, STEPS, type Step } from './steps.js';

const ALL_STEPS: Record<string, Step> = { ...STEPS, 'in load()': IN_LOAD };

function throughWire(t: Test): { wire: () => Wire; through: (address: Address) => Promise<Address> } {
  let wire!: Wire;
  return {
    wire: () => wire,
    through: (address) => {
      wire = new Wire(t, address);
      return wire.listen();
    },
  };
}

for (const [when, step] of Object.entries(ALL_STEPS)) {
  t.test(`an abort ${when}: the guest runs on, and the destination starts nothing`, async (t) => {
    const abort = new AbortController();
    const options = step(() => abort.abort(new Error('enough')));
    const it = await scene(t, { ...options, source: { ...options.source, signal: abort.signal } });
    const [code] = await bothFail(t, it);
    t.equal(code, 'ERR_MULTIFD_ABORTED');
    t.equal(it.source.state, 'cancelled');
  });

  t.test(`the main stream is cut ${when}: both fail, and the guest runs on`, async (t) => {
    const { wire, through } = throughWire(t);
    const it = await scene(t, { ...step(() => wire().cutMain()), through });
    await bothFail(t, it);
    t.equal(it.source.state, 'failed');
    t.equal(it.destination.state, 'failed');
  });

  if (step === IN_LOAD) continue;
  t.test(`one channel of two is cut ${when}: both fail, and the guest runs on`, async (t) => {
    const { wire, through } = throughWire(t);
    const options = step(() => wire().cutChannel());
    const it = await scene(t, {
      source: { ...options.source, channels: 2 },
      destination: { channels: 2 },
      through,
    });
    if (when === 'in state pre-switchover') {
      // Nothing is on its way there: it is noticed at the latest when something is to go out.
      await eventually(() => ['pre-switchover', 'failed'].includes(it.source.state), 'pre-switchover');
      // Behind the cut, which comes in a turn of its own.
      await new Promise((resolve) => setTimeout(resolve, 50));
      if (it.source.state === 'pre-switchover') it.source.switchover();
    }
    await bothFail(t, it);
  });
}

t.test('an abort in state setup: nothing was to be stopped, and every connection is closed', async (t) => {
  const peer = await HandDestination.listen(t);
  const abort = new AbortController();
  const it = await scene(t, { through: async () => peer.address, source: { signal: abort.signal } });
  await eventually(() => peer.open > 0, 'the source is connected');
  t.equal(it.source.state, 'setup');
  abort.abort(new Error('enough'));
  t.equal((await failure(it.source.done)).code, 'ERR_MULTIFD_ABORTED');
  await eventually(() => peer.open === 0, 'every connection is closed');
  runsOnHere(t, it);
});

t.test('the destination is gone in state setup, before and behind its channels', async (t) => {
  for (const connections of [1, 2]) {
    const peer = await HandDestination.listen(t);
    const gone = (): void => {
      if (peer.sockets.length >= connections) for (const socket of peer.sockets) socket.destroy();
    };
    peer.onChannel = gone;
    const it = await scene(t, { through: async () => peer.address });
    await eventually(() => peer.sockets.length >= connections, `${connections} connections`);
    gone();
    t.match((await failure(it.source.done)).code, /^ERR_MULTIFD_(CONNECTION|CONNECT)$/);
    t.equal(it.source.state, 'failed');
    runsOnHere(t, it);
    t.notOk(it.notes.includes('pause'));
  }
});
