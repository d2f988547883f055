/**
 * What a QEMU knows, by its own description (`query-qmp-schema`), never by its version's number: a distribution's QEMU has
 * methods compiled in or out, and features carried back.
 *
 *     {"name": "migrate-set-parameters", "meta-type": "command", "arg-type": "12"}
 *     {"name": "12", "meta-type": "object", "members": [{"name": "multifd-compression", "type": "34"}, ...]}
 *     {"name": "34", "meta-type": "enum", "members": [{"name": "none"}, ...], "values": ["none", ...]}     (QEMU < 6.2: values)
 *     {"name": "[35]", "meta-type": "array", "element-type": "35"}
 *
 * The names of types are numbers that differ from build to build: only the ways from a command are fixed. What is of another
 * shape is passed over.
 */
import { MultifdError } from '../errors.js';
import type { Qmp } from './qmp.js';

interface Entity {
  'arg-type'?: unknown;
  'element-type'?: unknown;
  members?: unknown;
  values?: unknown;
}

const NOTHING: ReadonlySet<string> = new Set();

export class QmpSchema {
  readonly #entities = new Map<string, Entity>();
  /** Of migrate-set-capabilities. */
  readonly capabilities: ReadonlySet<string>;
  /** Of migrate-set-parameters, each with the values that it may have where these are listed. */
  readonly parameters: ReadonlyMap<string, ReadonlySet<string>>;

  private constructor(entities: unknown[]) {
    for (const entity of entities) {
      const name = memberOf(entity, 'name');
      if (typeof name === 'string') this.#entities.set(name, entity as Entity);
    }
    this.capabilities = this.#capabilities();
    this.parameters = new Map(
      [...this.#arguments('migrate-set-parameters')].map(([name, type]) => [name, this.#values(type)]),
    );
  }

  /** @throws MultifdError ERR_MULTIFD_QMP, ERR_MULTIFD_TIMEOUT */
  static async query(qmp: Qmp): Promise<QmpSchema> {
    const entities = await qmp.execute('query-qmp-schema');
    if (!Array.isArray(entities)) {
      const message = `${qmp.address}: query-qmp-schema: received ${typeof entities}, expected an array`;
      throw new MultifdError('ERR_MULTIFD_QMP', message);
    }
    return new QmpSchema(entities);
  }

  hasCommand(command: string): boolean {
    return this.#entities.has(command);
  }

  hasArgument(command: string, argument: string): boolean {
    return this.#arguments(command).has(argument);
  }

  #capabilities(): ReadonlySet<string> {
    const list = this.#arguments('migrate-set-capabilities').get('capabilities');
    const element = list === undefined ? undefined : this.#entities.get(list)?.['element-type'];
    const type = typeof element === 'string' ? this.#members(element).get('capability') : undefined;
    return type === undefined ? NOTHING : this.#values(type);
  }

  /** Names and types of a command's arguments. */
  #arguments(command: string): Map<string, string> {
    const type = this.#entities.get(command)?.['arg-type'];
    return typeof type === 'string' ? this.#members(type) : new Map<string, string>();
  }

  #members(type: string): Map<string, string> {
    const members = new Map<string, string>();
    const listed = this.#entities.get(type)?.members;
    if (!Array.isArray(listed)) return members;
    for (const member of listed) {
      const [name, of] = [memberOf(member, 'name'), memberOf(member, 'type')];
      if (typeof name === 'string' && typeof of === 'string') members.set(name, of);
    }
    return members;
  }

  /** Of an enum; of anything else none. */
  #values(type: string): ReadonlySet<string> {
    const { members, values } = this.#entities.get(type) ?? {};
    if (Array.isArray(values)) return new Set(values.filter((value) => typeof value === 'string'));
    if (!Array.isArray(members)) return NOTHING;
    const names = members.map((member) => memberOf(member, 'name'));
    return new Set(names.filter((name) => typeof name === 'string'));
  }
}

function memberOf(object: unknown, key: string): unknown {
  return object !== null && typeof object === 'object' ? (object as Record<string, unknown>)[key] : undefined;
}
