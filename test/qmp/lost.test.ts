/**
 * A monitor that is lost in the middle of parkVm(): what is reported, what the source was told and what lies on disk agree, and
 * another VM that answers in its place is left alone. QEMU is played, and so is its migration, from a capture.
 */
import fs from 'node:fs';
import path from 'node:path';
import t, { type Test } from 'tap';
import { MultifdError, parkVm, type ParkVmOptions, type ParkedVm } from '../../src/index.js';
import { CAPTURES, streamsOf } from '../migration/captures.js';
import { HandSource, askingMain } from '../migration/peers.js';
import { eventually } from '../support/raw-channel.js';
import { within } from '../support/within.js';
import { fakeQmp, type Command, type FakeQmp } from './fake-qmp.js';
import { FakeVm } from './fake-vm.js';

const WAIT_MS = 20_000;
/** In the time for which a monitor is looked for, with a pause before each time. */
const MOST_LOSSES = 50;
const streams = streamsOf(CAPTURES[0]);

class Scene {
  readonly vm = new FakeVm();
  /** Who answers at the monitor. */
  answering = this.vm;
  fake!: FakeQmp;
  readonly out: string;
  source: HandSource | undefined;
  /** Statuses in onProgress. */
  readonly told: string[] = [];
  #parked: Promise<ParkedVm | MultifdError> | undefined;

  private constructor(t: Test) {
    this.out = path.join(t.testdir({}), 'vm.mig');
    this.vm.connect = () => {};
  }

  /** @param on called with each command before it is answered */
  static async make(t: Test, on: (command: Command, scene: Scene) => void = () => {}): Promise<Scene> {
    const scene = new Scene(t);
    scene.fake = await fakeQmp(t, (command) => {
      on(command, scene);
      return scene.answering.say(command);
    });
    scene.vm.connect = () => {
      scene.source = new HandSource(t, { path: scene.vm.uri }, 2);
      scene.vm.migration = { status: 'active' };
      scene.vm.guest = 'running';
    };
    return scene;
  }

  park(options: Partial<ParkVmOptions> = {}): Promise<ParkedVm | MultifdError> {
    const { path: qmp } = this.fake;
    const parked = parkVm({
      qmp: { path: qmp },
      out: this.out,
      onProgress: ({ source }) => void this.told.push(source.status),
      ...options,
    });
    this.#parked = parked.catch((error: unknown) => {
      if (error instanceof MultifdError) return error;
      throw error;
    });
    return within(this.#parked, WAIT_MS, 'parkVm()');
  }

  async migrating(): Promise<HandSource> {
    await eventually(() => this.told.includes('active'), 'it migrates');
    return this.source as HandSource;
  }

  /** All of the guest; QEMU gives it up when it is told that it is on disk. */
  async sendAll(): Promise<void> {
    const source = this.source as HandSource;
    source.main.write(askingMain(streams.main));
    source.channels.forEach((channel, id) => channel.write(streams.channels[id]));
    await eventually(() => source.told, 'the source is told that all has come');
    this.vm.migration = { status: 'completed' };
    this.vm.guest = 'postmigrate';
    source.destroy();
  }

  commands(from = 0): string[] {
    return this.fake.commands.slice(from).map(({ execute }) => execute);
  }

  get files(): string[] {
    return fs.readdirSync(path.dirname(this.out));
  }
}

const OWN = { 'multifd-channels': 7, 'multifd-compression': 'zlib' };

t.test(
  'a monitor that is lost while it migrates, and found again: parked as if nothing had been',
  async (t) => {
    const scene = await Scene.make(t);
    const parked = scene.park();
    await scene.migrating();
    const [said] = [scene.fake.commands.length];
    scene.fake.cut();
    await eventually(() => scene.commands(said).includes('query-migrate'), 'it is asked again');
    scene.fake.cut();
    await scene.sendAll();
    t.match(await parked, { source: 'postmigrate', problem: undefined });
    t.match(scene.vm.parameters, OWN);
    t.equal(scene.vm.capabilities.multifd, false);
    t.same(scene.files, ['vm.mig']);
  },
);

t.test(
  'a monitor that is lost when QEMU has said that it is done, and found again: its settings are put back',
  async (t) => {
    let cuts = 0;
    const scene = await Scene.make(t, ({ execute }, { vm, fake }) => {
      const isBack = vm.migration.status === 'completed' && execute === 'migrate-set-parameters';
      if (isBack && cuts++ === 0) fake.cut();
    });
    const parked = scene.park();
    await scene.migrating();
    await scene.sendAll();
    t.match(await parked, { source: 'postmigrate', problem: undefined });
    t.equal(cuts, 1);
    t.match(scene.vm.parameters, OWN);
  },
);

t.test('quit that a lost monitor did not pass on is said again', async (t) => {
  let cuts = 0;
  const scene = await Scene.make(t, ({ execute }, { fake }) => {
    if (execute === 'quit' && cuts++ === 0) fake.cut();
    else if (execute === 'quit') setTimeout(() => fake.end(), 50);
  });
  const parked = scene.park({ then: 'quit' });
  await scene.migrating();
  await scene.sendAll();
  t.match(await parked, { source: 'gone', problem: undefined });
  t.equal(scene.commands().filter((name) => name === 'quit').length, 2);
});

t.test(
  'a monitor that is lost while the settings are made, and found again: they are put back',
  async (t) => {
    let cuts = 0;
    const scene = await Scene.make(t, ({ execute }, { fake }) => {
      if (execute === 'migrate-set-parameters' && cuts++ === 0) fake.cut();
    });
    t.match(await scene.park(), { code: 'ERR_MULTIFD_QMP', message: /QEMU has closed QMP/ });
    t.match(scene.vm.parameters, OWN);
    t.equal(scene.vm.capabilities.xbzrle, true);
    t.notOk(scene.commands().includes('migrate'));
    t.same(scene.files, []);
  },
);

t.test(
  'an abort while the monitor is lost: the guest runs on, and has its settings when it is found again',
  async (t) => {
    const controller = new AbortController();
    const scene = await Scene.make(t);
    const parked = scene.park({ signal: controller.signal });
    const source = await scene.migrating();
    scene.fake.cut();
    controller.abort(new Error('enough'));
    await source.broken();
    scene.vm.migration = { status: 'failed' };
    t.match(await parked, { code: 'ERR_MULTIFD_ABORTED', cause: { message: 'enough' } });
    t.match(scene.vm.parameters, OWN);
    t.equal(scene.vm.guest, 'running');
    t.same(scene.files, []);
  },
);

t.test(
  'an abort ends the search for a monitor that is lost at each quit, and says that quit was told',
  async (t) => {
    const controller = new AbortController();
    let quits = 0;
    const scene = await Scene.make(t, ({ execute }, { fake }) => {
      if (execute !== 'quit') return;
      fake.cut();
      if (++quits === 2) setTimeout(() => controller.abort(new Error('enough')), 50);
    });
    const parked = scene.park({ then: 'quit', signal: controller.signal });
    await scene.migrating();
    await scene.sendAll();
    t.match(await parked, {
      code: 'ERR_MULTIFD_ABORTED',
      cause: { message: 'enough' },
      message: /^aborted; quit was not answered; too late: the guest is whole in .*vm\.mig/,
    });
    t.equal(quits, 2);
    t.match(scene.vm.parameters, OWN);
    t.same(scene.files, ['vm.mig']);
  },
);

t.test('another QEMU that answers in its place is told nothing', async (t) => {
  for (const then of ['quit', 'stop'] as const) {
    const scene = await Scene.make(t);
    const parked = scene.park({ then });
    await scene.migrating();
    scene.answering = new FakeVm();
    const said = scene.fake.commands.length;
    scene.fake.cut();
    scene.source?.destroy();
    t.match(await parked, { code: /^ERR_MULTIFD_(EOF|CONNECTION|QMP)$/ });
    const commands = scene.commands(said).filter((name) => !name.startsWith('query-'));
    t.same([...new Set(commands)], ['qmp_capabilities'], then);
    t.same(scene.files, []);
  }
});

/** Each waits as long as it takes to give the monitor up: at once, so that they wait once. */
const FOR_GOOD: Record<string, (t: Test) => Promise<void>> = {
  'while it migrates, which fails: the guest runs on': async (t) => {
    const scene = await Scene.make(t);
    const parked = scene.park();
    const source = await scene.migrating();
    source.main.write(streams.main.subarray(0, 200));
    source.channels.forEach((channel, id) => channel.write(streams.channels[id].subarray(0, 100)));
    scene.fake.end();
    await eventually(() => scene.told.includes('unknown'), 'that it is not known is told');
    source.destroy();
    const error = (await parked) as MultifdError;
    t.match(error.message, /if it lives, its connections for the migration are broken.*runs on there/);
    t.match(error.message, /they were multifd false, .*xbzrle true, .*multifd-channels 7/);
    t.same(scene.files, []);
  },
  'while it migrates, and all comes: no success that QEMU has not told of': async (t) => {
    const scene = await Scene.make(t);
    const parked = scene.park({ then: 'quit' });
    await scene.migrating();
    scene.fake.end();
    await eventually(() => scene.told.includes('unknown'), 'that it is not known is told');
    await scene.sendAll();
    t.match(await parked, {
      code: 'ERR_MULTIFD_QMP',
      message:
        /the guest is whole in .*vm\.mig, and QEMU was told so, which has not said that it gave it up: see to it/,
    });
    t.same(scene.files, ['vm.mig']);
    t.notOk(scene.commands().includes('quit'));
  },
  'when QEMU has said that it is done: parked, with a problem': async (t) => {
    const scene = await Scene.make(t, ({ execute }, { vm, fake }) => {
      if (vm.migration.status === 'completed' && execute === 'migrate-set-parameters') fake.end();
    });
    const parked = scene.park();
    await scene.migrating();
    await scene.sendAll();
    t.match(await parked, {
      source: 'unknown',
      problem: /its guest stands still there, and its settings .* they were multifd false/,
    });
    t.same(scene.files, ['vm.mig']);
  },
  'with quit: that QEMU has ended is not claimed': async (t) => {
    const scene = await Scene.make(t, ({ execute }, { fake }) => {
      if (execute === 'quit') fake.end();
    });
    const parked = scene.park({ then: 'quit' });
    await scene.migrating();
    await scene.sendAll();
    t.match(await parked, { source: 'unknown', problem: /^quit was not answered: .* stands still there/ });
    t.same(scene.files, ['vm.mig']);
  },
  'again and again, at each quit': async (t) => {
    const scene = await Scene.make(t, ({ execute }, { fake }) => {
      if (execute === 'quit') fake.cut();
    });
    const parked = scene.park({ then: 'quit' });
    await scene.migrating();
    await scene.sendAll();
    t.match(await parked, { source: 'unknown', problem: /^quit was not answered: .* stands still there/ });
    const quits = scene.commands().filter((name) => name === 'quit').length;
    t.ok(quits > 1 && quits < MOST_LOSSES, `${quits} times`);
  },
  'again and again, as its settings are put back': async (t) => {
    let losses = 0;
    const scene = await Scene.make(t, ({ execute }, { vm, fake }) => {
      if (vm.migration.status !== 'completed' || execute !== 'query-migrate-parameters') return;
      losses++;
      fake.cut();
    });
    const parked = scene.park();
    await scene.migrating();
    await scene.sendAll();
    t.match(await parked, { source: 'unknown', problem: /its guest stands still there, and its settings/ });
    t.ok(losses > 1 && losses < MOST_LOSSES, `${losses} times`);
  },
};

t.test('a monitor that is lost for good', { jobs: 6 }, async (t) => {
  await Promise.all(Object.entries(FOR_GOOD).map(([name, act]) => t.test(name, { buffered: true }, act)));
});
