/**
 * The code of both sides under the stepper (stepped/): real sessions and channels whose steps come in an order drawn from a
 * seed. A schedule that fails names its seed: `MULTIFD_SEED=N npx tap dist/test/model/schedules.test.js` runs it alone.
 */
import t from 'tap';
import { spinMissing } from './spin.js';
import { firstFailure, notAccepted, type Side } from './schedules.js';

const COUNT = 1000;
const ACCEPTED = 50;
const given = Number(process.env.MULTIFD_SEED);
const alone = Number.isInteger(given) && given > 0;
const missing = spinMissing();

for (const side of ['send', 'receive'] as const satisfies Side[]) {
  t.test(
    `${side}: ${COUNT} schedules, no job lost, no slot owned twice, no sync early, nobody asleep`,
    async (t) => {
      t.equal(await firstFailure(side, alone ? given : 1, alone ? 1 : COUNT), undefined);
    },
  );

  const skip = missing === undefined ? false : `${missing}: traces are not held against the model`;
  t.test(`${side}: what ${ACCEPTED} schedules do, the model does`, { skip }, async (t) => {
    t.same(await notAccepted(side, alone ? given : 1, alone ? 1 : ACCEPTED), []);
  });
}

t.test('a channel that reads wantsSync after hasJob is found: a sync overtakes a job', async (t) => {
  const sync = 'const sync = control.wantsSync(id);';
  const job = 'const job = control.hasJob(id);';
  const changes = [
    { file: 'send/channel.js', from: sync, to: 'SECOND' },
    { file: 'send/channel.js', from: job, to: sync },
    { file: 'send/channel.js', from: 'SECOND', to: job },
  ];
  t.match(await firstFailure('send', 1, 5000, changes), /a sync of channel \d overtook \d+ jobs/);
});
