/**
 * A QEMU's settings for migrations, capabilities and parameters: remembered, replaced for one migration, put back.
 *
 *     remember()    query-migrate-capabilities, query-migrate-parameters
 *     set()         capabilities: ours on, of the others only those stay on that leave the stream as we know it
 *                   parameters: ours
 *     putBack()     what differs from what was remembered, then compared again
 *
 * Between set() and putBack() nothing else is touched: what an operator changes meanwhile of other settings is his.
 *
 * The order matters. QEMU judges each call against what holds by then: zero-copy-send refuses a method, and xbzrle refuses
 * multifd. So capabilities first and parameters second on the way there, the other way round on the way back, each in one
 * call. While a migration is under way, `cancelling` included, capabilities cannot be set.
 */
import { MultifdError, describeThrown } from '../errors.js';
import { formatQmpJson, textOf } from './json.js';
import type { Qmp } from './qmp.js';
import type { QmpSchema } from './schema.js';

/**
 * May stay as the operator has them: how often something is told, how the guest is slowed down, what is compared, and
 * `dirty-bitmaps`, whose sections are passed on. All others are off for the run, also those that are not known here: of
 * mapped-ram, xbzrle, postcopy-ram, background-snapshot, zero-copy-send, x-ignore-shared, switchover-ack,
 * pause-before-switchover and the like each makes another stream, or one that waits.
 */
const HARMLESS: ReadonlySet<string> = new Set([
  'auto-converge',
  'dirty-bitmaps',
  'dirty-limit',
  'events',
  'late-block-activate',
  'postcopy-blocktime',
  'release-ram',
  'validate-uuid',
  'zero-blocks',
]);

type Capabilities = Map<string, boolean>;
type Parameters = Record<string, unknown>;

export class MigrationSettings {
  readonly #qmp: Qmp;
  readonly #capabilities: Capabilities;
  readonly #parameters: Parameters;
  /** Parameters that set() has touched, with the values that it gave them. */
  readonly #ours: Parameters = {};
  #isSet = false;

  private constructor(qmp: Qmp, capabilities: Capabilities, parameters: Parameters) {
    this.#qmp = qmp;
    this.#capabilities = capabilities;
    this.#parameters = parameters;
  }

  /** @throws MultifdError ERR_MULTIFD_QMP, ERR_MULTIFD_TIMEOUT */
  static async remember(qmp: Qmp): Promise<MigrationSettings> {
    return new MigrationSettings(qmp, await queryCapabilities(qmp), await queryParameters(qmp));
  }

  /** Its credentials as they were; empty if it had none. */
  get tlsCreds(): string {
    return textOf(settable('tls-creds', this.#parameters['tls-creds']));
  }

  /** Are they off for the run? */
  get isTlsOff(): boolean {
    return this.tlsCreds !== '' && this.#ours['tls-creds'] === '';
  }

  /** What the operator has on and that is off for the run: capabilities, and `tls-creds`. */
  switchedOff(on: readonly string[]): string[] {
    return [...this.#capabilitiesOff(on), ...(this.isTlsOff ? ['tls-creds'] : [])];
  }

  #capabilitiesOff(on: readonly string[]): string[] {
    return [...this.#capabilities]
      .filter(([name, state]) => state && !HARMLESS.has(name) && !on.includes(name))
      .map(([name]) => name);
  }

  /**
   * @param on capabilities
   * @throws MultifdError ERR_MULTIFD_QMP, ERR_MULTIFD_TIMEOUT; putBack() is to be called all the same
   */
  async set(on: readonly string[], parameters: Parameters): Promise<void> {
    this.#isSet = true;
    const off = this.#capabilitiesOff(on);
    await this.#setCapabilities([
      ...off.map((name): [string, boolean] => [name, false]),
      ...on.map((name): [string, boolean] => [name, true]),
    ]);
    Object.assign(this.#ours, parameters);
    await this.#qmp.execute('migrate-set-parameters', parameters);
  }

  /** Is it still the QEMU that has been set? One in its place has not got all of `on`. */
  async areSet(on: readonly string[]): Promise<boolean> {
    const now = await queryCapabilities(this.#qmp);
    return on.every((name) => now.get(name) === true);
  }

  /** What they were, for who has to put them back by hand; undefined if they were never touched. */
  describe(on: readonly string[]): string | undefined {
    if (!this.#isSet) return undefined;
    const changed = [
      ...on.filter((name) => this.#capabilities.get(name) === false),
      ...this.#capabilitiesOff(on),
    ];
    const parameters = Object.keys(this.#ours).map((name): [string, unknown] => [
      name,
      this.#parameters[name],
    ]);
    return listed([
      ...changed.map((name): [string, unknown] => [name, this.#capabilities.get(name)]),
      ...parameters,
    ]);
  }

  /**
   * When the migration is over.
   *
   * @throws MultifdError ERR_MULTIFD_QMP that names what is not as it was
   */
  async putBack(): Promise<void> {
    if (!this.#isSet) return;
    const refused: string[] = [];
    const attempt = async (call: Promise<unknown>): Promise<boolean> =>
      call.then(
        () => true,
        (error: unknown) => {
          refused.push(describeThrown(error));
          return false;
        },
      );
    try {
      const parameters = await this.#parametersToPutBack();
      if (Object.keys(parameters).length > 0) {
        const whole = await attempt(this.#qmp.execute('migrate-set-parameters', parameters));
        // One that QEMU does not take back shall not keep the others from it.
        for (const [name, value] of whole ? [] : Object.entries(parameters)) {
          await attempt(this.#qmp.execute('migrate-set-parameters', { [name]: value }));
        }
      }
      const capabilities = await this.#capabilitiesToPutBack();
      if (capabilities.length > 0) await attempt(this.#setCapabilities(capabilities));
      const left = listed([
        ...Object.entries(await this.#parametersToPutBack()),
        ...(await this.#capabilitiesToPutBack()),
      ]);
      if (left === '') return;
      refused.unshift(left);
    } catch (error) {
      refused.push(describeThrown(error));
    }
    // One by one they may be refused with the same words as all together.
    const reasons = [...new Set(refused)].join('; ');
    const message = `the settings that the VM had for migrations could not be put back: ${reasons}`;
    throw new MultifdError('ERR_MULTIFD_QMP', message);
  }

  /** The same. @returns what could not be put back, and why; undefined if all is as it was */
  async putBackOrSay(): Promise<string | undefined> {
    return this.putBack().then(
      () => undefined,
      (refused: unknown) => describeThrown(refused),
    );
  }

  async #parametersToPutBack(): Promise<Parameters> {
    const now = await queryParameters(this.#qmp);
    const differing: Parameters = {};
    for (const name of Object.keys(this.#ours)) {
      const [was, is] = [settable(name, this.#parameters[name]), settable(name, now[name])];
      if (was !== undefined && formatQmpJson(was) !== formatQmpJson(is)) differing[name] = was;
    }
    return differing;
  }

  async #capabilitiesToPutBack(): Promise<[string, boolean][]> {
    const now = await queryCapabilities(this.#qmp);
    return [...this.#capabilities].filter(([name, state]) => now.has(name) && now.get(name) !== state);
  }

  async #setCapabilities(capabilities: [string, boolean][]): Promise<void> {
    await this.#qmp.execute('migrate-set-capabilities', {
      capabilities: capabilities.map(([capability, state]) => ({ capability, state })),
    });
  }
}

/** For people: `multifd false, multifd-channels 7`. */
function listed(settings: [string, unknown][]): string {
  return settings
    .filter(([, value]) => value !== undefined)
    .map(([name, value]) => `${name} ${formatQmpJson(value)}`)
    .join(', ');
}

/**
 * QEMU may leave out a TLS parameter that is not set, or say null; it takes an empty text for both (and null not everywhere).
 */
function settable(name: string, value: unknown): unknown {
  return name.startsWith('tls-') ? (value ?? '') : value;
}

/** @throws MultifdError ERR_MULTIFD_QMP where this QEMU has not got what is asked for */
export function requireMultifd(qmp: Qmp, schema: QmpSchema, compression: string): void {
  const lacks = (what: string): never => {
    throw new MultifdError('ERR_MULTIFD_QMP', `${qmp.address}: this QEMU has no ${what}`);
  };
  for (const name of ['multifd', 'return-path']) {
    if (!schema.capabilities.has(name)) lacks(`capability ${name}`);
  }
  for (const name of ['multifd-channels', 'multifd-compression']) {
    if (!schema.parameters.has(name)) lacks(`parameter ${name}`);
  }
  const methods = schema.parameters.get('multifd-compression');
  if (methods?.has(compression) === true) return;
  lacks(
    `multifd-compression ${compression}, only ${[...(methods ?? [])].join(', ')}: give another compression`,
  );
}

async function queryCapabilities(qmp: Qmp): Promise<Capabilities> {
  const command = 'query-migrate-capabilities';
  const answer = await qmp.execute(command);
  if (!Array.isArray(answer)) throw unexpected(qmp, command, answer, 'an array');
  const capabilities: Capabilities = new Map();
  for (const entry of answer as ({ capability?: unknown; state?: unknown } | null)[]) {
    if (typeof entry?.capability === 'string' && typeof entry.state === 'boolean') {
      capabilities.set(entry.capability, entry.state);
    }
  }
  return capabilities;
}

async function queryParameters(qmp: Qmp): Promise<Parameters> {
  const command = 'query-migrate-parameters';
  return requireObject(qmp, command, await qmp.execute(command));
}

/** @throws MultifdError ERR_MULTIFD_QMP */
export function requireObject(qmp: Qmp, command: string, answer: unknown): Record<string, unknown> {
  if (answer === null || typeof answer !== 'object' || Array.isArray(answer)) {
    throw unexpected(qmp, command, answer, 'an object');
  }
  return answer as Record<string, unknown>;
}

function unexpected(qmp: Qmp, command: string, answer: unknown, expected: string): MultifdError {
  const received = formatQmpJson(answer).slice(0, 60);
  return new MultifdError(
    'ERR_MULTIFD_QMP',
    `${qmp.address}: ${command}: received ${received}, expected ${expected}`,
  );
}
