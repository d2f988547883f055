/** The steps of a live migration at which something may happen to it, for tables of what does; to be used with scene.ts. */
import type { MigrationDestinationOptions, MigrationSourceOptions, SourceState } from '../../src/index.js';
import type { SceneOptions } from './scene.js';

/** Acts once, when the migration has come so far. Pages never fit where rounds go on. */
export type Step = (act: () => void) => SceneOptions;

export const endless: Partial<MigrationSourceOptions> = {
  dirty: () => [{ block: 'ram', offset: 0, length: 40 * 4096 }],
  downtimeLimitMs: 0,
  maxRounds: 1_000_000,
};

/** Long enough for whatever is done to be noticed in the middle of the hook. */
function aWhile(ms = 30): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

function inState(state: SourceState, act: () => void): Partial<MigrationSourceOptions> {
  return {
    onState: (now) => {
      if (now === state) act();
    },
  };
}

/** The calls of dirty() after which it acts: at the begin, and in a round. */
function inDirty(call: number, act: () => void): SceneOptions {
  let calls = 0;
  const dirty = async (): Promise<{ block: string; offset: number; length: number }[]> => {
    if (++calls === call) {
      act();
      await aWhile();
    }
    return [{ block: 'ram', offset: 0, length: 40 * 4096 }];
  };
  return { source: { ...endless, dirty } };
}

function inLoad(act: () => void): Partial<MigrationDestinationOptions> {
  const load = async (): Promise<void> => {
    act();
    await aWhile(200);
  };
  return { devices: [{ idstr: 'cpu', load }] };
}

/** From the first connection to the devices' state; before the last byte has gone out. */
export const STEPS: Record<string, Step> = {
  'at the begin of state active': (act) => ({ source: { ...endless, ...inState('active', act) } }),
  'in the first dirty()': (act) => inDirty(1, act),
  'in the dirty() of the third round': (act) => inDirty(4, act),
  'in notConverging()': (act) => ({
    source: {
      ...endless,
      notConverging: async (percent) => {
        if (percent === 0) return;
        act();
        await aWhile();
      },
    },
  }),
  'in state pre-switchover': (act) => ({
    source: { pauseBeforeSwitchover: true, ...inState('pre-switchover', () => setImmediate(act)) },
  }),
  'at the begin of state device': (act) => ({ source: inState('device', act) }),
  'in pause()': (act) => ({
    source: {
      pause: async () => {
        act();
        await aWhile();
      },
    },
  }),
  'in save()': (act) => ({
    source: {
      devices: [
        {
          idstr: 'cpu',
          save: async () => {
            act();
            await aWhile();
            return Buffer.from('state');
          },
        },
      ],
    },
  }),
};

/** All has gone out, and the destination loads it. */
export const IN_LOAD: Step = (act) => ({ destination: inLoad(act) });
