/**
 * What a run has to have come to. Nothing here knows how it was brought about: plan, what struck, and what both ends said go in,
 * and what is wrong comes out, empty if nothing is.
 *
 *     no fault, or a mild one     both complete, and what is there is what was here
 *     any other                   the same; or each end that is alive fails with an error that the fault explains, in time, the
 *                                 guest running on at the source; or, the fault having come between the destination's answer and
 *                                 the source, the destination has completed alone
 *     a session                   likewise; and a destination that is struck itself may fail alone: nothing tells the source of it
 *     a file                      that is whole when its source goes without a word is kept, and said to be: it may be all there is
 *     in any case                 whoever completes has what the source had; nothing is left behind
 */
import type { EnginePlan, FaultKind, SideName } from './engine-plan.js';
import { isMild } from './engine-plan.js';
import { DEVICE } from './live-way.js';
import type { Digests, LeftBehind, Outcome } from './messages.js';

export interface SideReport {
  /** Undefined: it has said nothing in time, or is dead. */
  outcome: Outcome | undefined;
  /** How it died, where it did. */
  died: string | undefined;
  /** From the fault, or from where it was let go on, to the outcome. */
  tookMs: number | undefined;
  left: LeftBehind | undefined;
}

export interface RunFacts {
  plan: EnginePlan;
  /** What struck, if something did. */
  struck: FaultKind | undefined;
  sides: Record<SideName, SideReport>;
  /** Of the source's memory, when it stood still. */
  reached: Digests | undefined;
  /** Files that are there and should not be. */
  files: string[];
  /** From the word to connect to the source's end. */
  movedMs?: number | undefined;
  /** How long was waited for each end, from the fault or from the begin; default: limitMs. */
  waitedMs?: number;
  /** How long an error may take to come. */
  limitMs: number;
}

/** The engine lets 100 ms' worth go at once; each channel ends the packet that it has begun. */
const RATE_MARGIN = 1.25;
const BURST_MARGIN_MS = 200;
const PACKET_MARGIN_BYTES = 2 ** 19;

/** A connection that broke, seen from either end, at any time. */
const LOST = [
  'ERR_MULTIFD_CONNECTION',
  'ERR_MULTIFD_CONNECT',
  'ERR_MULTIFD_EOF',
  'ERR_MULTIFD_STALL',
  'ERR_MULTIFD_TIMEOUT',
  'ERR_MULTIFD_STREAM',
  'ERR_MULTIFD_TLS',
];
/** What the fault means to the side that it strikes; nothing else may be said there. */
const OWN: Partial<Record<FaultKind, string[]>> = {
  abort: ['ERR_MULTIFD_ABORTED'],
  cancel: ['ERR_MULTIFD_CLOSED'],
  thread: ['ERR_MULTIFD_WORKER'],
  'disk-full': ['ERR_MULTIFD_IO', 'ERR_MULTIFD_STREAM'],
};
/** Of a session the stressing process is the main stream, and says so to the other end: that closes. */
const TOLD = 'ERR_MULTIFD_CLOSED';

export function judge(facts: RunFacts): string[] {
  const { source, destination } = facts.sides;
  const wrong = [...aliveAndSaid(facts, 'source'), ...aliveAndSaid(facts, 'destination')];
  const kept = destination.outcome?.kept;
  if (destination.outcome?.completed === true || kept !== undefined)
    wrong.push(...differences(facts, destination.outcome as Outcome));
  const completed = (side: SideReport): boolean => side.outcome?.completed === true;
  if (completed(source) && !completed(destination) && !diedOf(facts, 'destination') && !isUntold(facts))
    wrong.push('the source has completed and the destination has not: the guest is lost');
  for (const name of ['source', 'destination'] as const) wrong.push(...leftOf(name, facts.sides[name].left));
  for (const file of facts.files.filter((file) => file !== kept)) wrong.push(`a file is left: ${file}`);
  wrong.push(...hooksOf(facts), ...tooFast(facts));
  return wrong;
}

function diedOf({ plan, struck, sides }: RunFacts, side: SideName): boolean {
  return struck === 'kill' && plan.fault?.side === side && sides[side].died === 'killed by SIGKILL';
}

/** A session has no return path: whoever ends it has sent all, and what becomes of it is the main stream's to say. */
function isUntold({ plan, struck, sides }: RunFacts): boolean {
  if (plan.way !== 'session' || plan.fault?.side !== 'destination' || struck === undefined) return false;
  return OWN[struck]?.includes(sides.destination.outcome?.code ?? '') === true;
}

function aliveAndSaid(facts: RunFacts, side: SideName): string[] {
  const { outcome, died, tookMs } = facts.sides[side];
  const { plan, struck, limitMs, waitedMs = limitMs } = facts;
  if (diedOf(facts, side)) return [];
  if (died !== undefined) return [`the ${side}'s process: ${died}`];
  if (outcome === undefined) return [`the ${side} has not ended: nothing within ${Math.round(waitedMs)} ms`];
  const wrong: string[] = [];
  if (tookMs !== undefined && tookMs > limitMs)
    wrong.push(`the ${side} took ${Math.round(tookMs)} ms to end, expected ${limitMs} at the most`);
  if (outcome.completed) return wrong;
  const { code = 'no code' } = outcome;
  const said = `the ${side} failed with ${code}: ${outcome.message}`;
  if (isMild(struck)) return [...wrong, `${said}; expected to complete (fault: ${struck ?? 'none'})`];
  const isOwn = plan.fault?.side === side || struck === 'disk-full';
  const own = (struck !== undefined && side === ownSide(facts) && isOwn && OWN[struck]) || undefined;
  const allowed = own ?? [...LOST, ...(plan.way === 'session' ? [TOLD] : [])];
  const isAllowed = (one: string): boolean => allowed.includes(one);
  // A thread that ends says nothing itself: what the other end makes of its connection may be known here before its death is.
  const isBehind = struck === 'thread' && LOST.includes(code) && outcome.suppressed?.some(isAllowed) === true;
  if (!isAllowed(code) && !isBehind) wrong.push(`${said}; expected one of ${allowed.join(', ')}`);
  return wrong;
}

function ownSide({ plan, struck }: RunFacts): SideName | undefined {
  return struck === 'disk-full' ? 'destination' : plan.fault?.side;
}

function differences({ reached, plan }: RunFacts, { digests = {} }: Outcome): string[] {
  if (reached === undefined) {
    // A session's source says what it has in the end; one that failed there has said nothing.
    return plan.way === 'session' ? [] : ['the destination has completed before the source stood still'];
  }
  const names = new Set([...Object.keys(digests), ...Object.keys(reached)]);
  // A file has the device's state within its tail.
  if (plan.way === 'file') names.delete(DEVICE);
  return [...names]
    .filter((name) => digests[name] !== reached[name])
    .map((name) =>
      digests[name] === undefined
        ? `${name} has not come: received nothing, expected SHA-256 ${reached[name]}`
        : `${name} differs: received SHA-256 ${digests[name]}, expected ${reached[name]}`,
    );
}

/** Of a session, where no round is let off the limit: what may go in so long is known, and a slow machine only makes it less. */
function tooFast({ plan, sides, movedMs }: RunFacts): string[] {
  const { maxBandwidth: limit, channels, way } = plan;
  const { outcome } = sides.source;
  if (way !== 'session' || limit === 0 || movedMs === undefined || outcome?.completed !== true) return [];
  const most = RATE_MARGIN * limit * ((movedMs + BURST_MARGIN_MS) / 1000) + channels * PACKET_MARGIN_BYTES;
  if (outcome.bytes <= most) return [];
  return [
    `the source has sent ${outcome.bytes} bytes in ${Math.round(movedMs)} ms, expected ${Math.round(most)} at the most by maxBandwidth ${limit}`,
  ];
}

/** The guest runs at one end alone: after a failure at the source, once. */
function hooksOf({ plan, sides, struck }: RunFacts): string[] {
  const { source, destination } = sides;
  if (plan.way === 'session' || source.outcome === undefined) return [];
  const count = (hooks: string[], name: string): number => hooks.filter((hook) => hook === name).length;
  const paused = count(source.outcome.hooks, 'pause');
  const resumed = count(source.outcome.hooks, 'resume');
  const wrong: string[] = [];
  const expected = source.outcome.completed ? 0 : paused;
  if (resumed !== expected)
    wrong.push(`the source's guest was resumed ${resumed} times, expected ${expected}`);
  if (destination.outcome === undefined || plan.way === 'file') return wrong;
  const started = count(destination.outcome.hooks, 'start');
  const runs = destination.outcome.completed ? 1 : 0;
  if (started !== runs) wrong.push(`the destination's guest was started ${started} times, expected ${runs}`);
  const hooks = destination.outcome.hooks.join(', ');
  if (destination.outcome.completed && hooks !== 'load, start')
    wrong.push(`the destination has called ${hooks || 'nothing'}, expected load, start`);
  if (source.outcome.completed && paused !== 1)
    wrong.push(`the source's guest was paused ${paused} times, expected once`);
  if (isMild(struck) && resumed > 0) wrong.push('the guest was resumed at the source without a fault');
  return wrong;
}

function leftOf(side: SideName, left: LeftBehind | undefined): string[] {
  if (left === undefined) return [];
  const wrong: string[] = [];
  if (left.descriptors.length > 0)
    wrong.push(`the ${side} has left descriptors: ${left.descriptors.join(', ')}`);
  if (left.threads > 0) wrong.push(`the ${side} has left ${left.threads} threads`);
  if (left.resources.length > 0) wrong.push(`the ${side} has left open: ${left.resources.join(', ')}`);
  return wrong;
}
