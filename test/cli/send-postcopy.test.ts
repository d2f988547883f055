/** `multifd send --mode postcopy`: which options fit, and which are told apart. */
import t from 'tap';
import { run } from './cli.js';

const TO = ['send', 'vm.mig', '--to', 'unix:/nosuch.sock'];

t.test('what belongs to channels is refused with postcopy, by its name', async (t) => {
  for (const more of [
    ['--channels', '4'],
    ['--compression', 'zstd'],
    ['--level', '3'],
    ['--zero-page-detection', 'multifd'],
    ['--zero-copy-send'],
    ['--uuid', '00112233-4455-6677-8899-aabbccddeeff'],
  ]) {
    const { code, stderr } = await run(t, [...TO, '--mode', 'postcopy', ...more]);
    t.equal(code, 2, more[0]);
    t.match(
      stderr,
      new RegExp(`option '${more[0]}.*Allowed only with --mode precopy: postcopy has one plain`),
    );
  }
});

t.test('what belongs to postcopy is refused without it', async (t) => {
  for (const more of [
    ['--recover'],
    ['--huge-pages', 'pc.ram=2M'],
    ['--host-page-size', '64K'],
    ['--hot'],
    ['--max-hot', '1M'],
  ]) {
    const { code, stderr } = await run(t, [...TO, ...more]);
    t.equal(code, 2, more[0]);
    t.match(stderr, /Allowed only with --mode postcopy/);
  }
});

t.test('huge pages are a block and a power of two', async (t) => {
  for (const wrong of ['pc.ram', 'pc.ram=3M', '=2M', 'pc.ram=1K']) {
    const { code, stderr } = await run(t, [...TO, '--mode', 'postcopy', '--huge-pages', wrong]);
    t.equal(code, 2, wrong);
    t.match(stderr, /such as pc.ram=2M/);
  }
});
