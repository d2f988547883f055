/** What the options of both ends of a live migration have in common: the machine's name, and devices. */
import { didYouMean, similarTo } from '../did-you-mean.js';
import { flag, integer, wrong } from '../option-checks.js';
import { isIdstr } from '../options.js';
import { isEarlyDevice } from '../stream/other-sections.js';
import { RAM_IDSTR } from '../stream/records.js';
import { PROOF_IDSTR, type DeviceId } from './device-sections.js';

/** As the receiving side takes it. */
const MAX_MACHINE_CHARS = 255;
/** Of sections: ids beyond are not looked for in a stream. */
export const MAX_DEVICES = 0xffff - 1;

/**
 * The machine type with its version, such as `v86-1.0`: what both ends must have alike.
 *
 * @throws MultifdError ERR_MULTIFD_OPTION
 */
export function checkMachine(machine: unknown): string {
  if (typeof machine === 'string' && /^[\x21-\x7e]+$/.test(machine) && machine.length <= MAX_MACHINE_CHARS)
    return machine;
  const allowed = `1 to ${MAX_MACHINE_CHARS} printable ASCII characters without blanks, such as "v86-1.0"`;
  throw wrong('machine', machine, allowed);
}

/** @throws MultifdError ERR_MULTIFD_OPTION */
export function requireHook<T>(name: string, hook: T): T {
  if (typeof hook !== 'function') throw wrong(name, hook, 'a function');
  return hook;
}

/** @throws MultifdError ERR_MULTIFD_OPTION */
export function checkVerify(verify: unknown): boolean {
  if (verify !== undefined && typeof verify !== 'boolean') throw wrong('verify', verify, 'true or false');
  return verify === true;
}

/**
 * What else a device has is its own, so that one object may serve both ends.
 *
 * @param hook of this end: `save` or `load`
 * @throws MultifdError ERR_MULTIFD_OPTION
 */
export function checkDevices<H extends 'save' | 'load', D extends Partial<Record<H, unknown>>>(
  devices: readonly D[] | undefined,
  hook: H,
): (DeviceId & { given: D })[] {
  const form = `an array of { idstr, instanceId, version, ${hook} }`;
  if (devices === undefined) return [];
  if (!Array.isArray(devices)) throw wrong('devices', devices, form);
  if (devices.length > MAX_DEVICES) throw wrong('devices', devices.length, `at most ${MAX_DEVICES} devices`);
  const seen = new Set<string>();
  return (devices as unknown[]).map((given, index) => {
    const at = `devices[${index}]`;
    if (given === null || typeof given !== 'object') throw wrong(at, given, form);
    const { idstr, instanceId, version } = given as Partial<DeviceId>;
    const meant = (name: string): string => {
      const near = name in given ? [] : similarTo(name, Object.keys(given));
      return near.length === 0 ? '' : `; did you mean ${name} by ${near.join(' or ')}?`;
    };
    if (typeof idstr !== 'string' || !isIdstr(idstr))
      throw wrong(`${at}.idstr`, idstr, `1 to 255 printable ASCII characters${meant('idstr')}`);
    if (idstr === RAM_IDSTR || isEarlyDevice(idstr))
      throw wrong(`${at}.idstr`, idstr, "a name that is not one of those whose state goes before ram's END");
    if (idstr === PROOF_IDSTR)
      throw wrong(`${at}.idstr`, idstr, 'another name: this is that of option verify');
    const device = {
      idstr,
      instanceId: integer(`${at}.instanceId`, instanceId, 0, 0, 0xffffffff, meant('instanceId')),
      version: integer(`${at}.version`, version, 1, 0, 0xffffffff, meant('version')),
      given: given as D,
    };
    const { [hook]: call } = given as Partial<Record<H, unknown>>;
    if (typeof call !== 'function') throw wrong(`${at}.${hook}`, call, `a function${meant(hook)}`);
    // A destination's; an object that serves both sides has it in both.
    flag(`${at}.stream`, (given as { stream?: unknown }).stream);
    const key = `${idstr}/${device.instanceId}`;
    if (seen.has(key)) throw wrong('devices', key, 'each idstr and instanceId once');
    seen.add(key);
    return device;
  });
}

/** Names that are not there, with what may be meant by them. */
export function unknownName(name: string, allowed: readonly string[]): string {
  return `one of ${allowed.join(', ')}${didYouMean(name, allowed)}`;
}
