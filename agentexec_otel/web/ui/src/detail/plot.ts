/** Where everything of the timeline is. Pure: of an activity, its logs, a moment and a width. */
import { type Activity, isEnded, type Status } from "../api";
import type { Entry } from "./feed";

export interface Attempt {
  number: number;
  /** Milliseconds; null while it has not come to that. */
  queued: number;
  started: number | null;
  ended: number | null;
  status: Status;
}

export interface Span {
  from: number;
  to: number;
}

export interface Gap extends Span {
  after: Entry;
}

export interface Plot {
  from: number;
  to: number;
  now: number;
  attempts: Attempt[];
  waits: Span[];
  gaps: Gap[];
}

/** The message that a run gets by default when it begins to wait. A log has nothing else to tell. */
const WAITS = /^Waiting for [^.]+\.$/;
const LEAST_GAP = 0.12;
const MOST_GAPS = 2;

export function plotOf(activity: Activity, logs: readonly Entry[], now: number): Plot {
  const from = Date.parse(activity.created_at);
  const attempts = attemptsOf(activity, logs);
  const last = logs.at(-1)?.at ?? from;
  const ended = isEnded(activity);
  const end = ended ? Math.max(attempts.at(-1)?.ended ?? last, last) : Math.max(now, last);
  return {
    from,
    to: from + (ended ? Math.max(end - from, 1) : roomFor(end - from)),
    now: end,
    attempts,
    waits: waitsOf(activity, logs, end),
    gaps: gapsOf(attempts, logs, end, end - from),
  };
}

/** The scale of a run that grows changes in steps, not with each second. */
export function roomFor(ms: number): number {
  return STEPS.map((step) => step * 4).find((room) => room >= ms * 1.02) ?? ms * 1.1;
}

function attemptsOf(activity: Activity, logs: readonly Entry[]): Attempt[] {
  const found: Attempt[] = [];
  for (const log of logs) {
    let attempt = found.at(-1);
    if (attempt === undefined || log.attempt > attempt.number) {
      attempt = { number: log.attempt, queued: log.at, started: null, ended: null, status: log.status };
      found.push(attempt);
    }
    if (log.late || log.attempt !== attempt.number) continue;
    if (log.status === "RUNNING") attempt.started ??= log.at;
    if (isEnded(log)) attempt.ended ??= log.at;
    attempt.status = log.status;
  }
  const current = found.at(-1);
  if (current !== undefined && current.number === activity.attempt) {
    current.status = activity.status;
    if (activity.started_at !== null) current.started = Date.parse(activity.started_at);
    if (activity.ended_at !== null) current.ended = Date.parse(activity.ended_at);
  }
  return found;
}

function waitsOf(activity: Activity, logs: readonly Entry[], end: number): Span[] {
  const found: Span[] = [];
  for (const [i, log] of logs.entries()) {
    if (log.status === "RUNNING" && !log.late && WAITS.test(log.message)) found.push({ from: log.at, to: logs[i + 1]?.at ?? end });
  }
  const since = activity.waiting?.since;
  if (since !== undefined && found.at(-1)?.to !== end) found.push({ from: Date.parse(since), to: end });
  return found;
}

/** The longest times without a log while an attempt ran. */
function gapsOf(attempts: Attempt[], logs: readonly Entry[], end: number, length: number): Gap[] {
  const found: Gap[] = [];
  for (const [i, log] of logs.entries()) {
    if (log.status !== "RUNNING" || log.late) continue;
    const next = logs[i + 1];
    if (next !== undefined && next.attempt !== log.attempt) continue;
    const to = next?.at ?? (attempts.at(-1)?.ended || end);
    if (to - log.at > length * LEAST_GAP) found.push({ from: log.at, to, after: log });
  }
  return found.sort((a, b) => b.to - b.from - (a.to - a.from)).slice(0, MOST_GAPS);
}

const SECOND = 1000;
const MINUTE = 60 * SECOND;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;
const STEPS = [
  ...[1, 2, 5, 10, 20, 50, 100, 200, 500],
  ...[1, 2, 5, 10, 15, 30].map((n) => n * SECOND),
  ...[1, 2, 5, 10, 15, 30].map((n) => n * MINUTE),
  ...[1, 2, 3, 6, 12].map((n) => n * HOUR),
  ...[1, 2, 5, 10, 20, 50, 100].map((n) => n * DAY),
];

/** Round moments of an axis of this length, at most so many. */
export function ticksOf(ms: number, most: number): number[] {
  const step = STEPS.find((one) => ms / one <= most) ?? ms;
  return Array.from({ length: Math.floor(ms / step) + 1 }, (_, i) => i * step);
}

/** How many logs each pixel has. */
export function binsOf(logs: readonly Entry[], x: (at: number) => number, width: number, late: boolean): Uint32Array {
  const bins = new Uint32Array(Math.ceil(width) + 1);
  for (const log of logs) {
    if (log.late !== late) continue;
    const pixel = Math.min(bins.length - 1, Math.max(0, Math.round(x(log.at))));
    bins[pixel] = bins[pixel]! + 1;
  }
  return bins;
}

/** An SVG path with a tick for each pixel that has logs; more logs make a longer one. */
export function ticksPath(bins: Uint32Array, bottom: number, least: number, most: number): string {
  const fullest = Math.log1p(bins.reduce((a, b) => Math.max(a, b), 1));
  let path = "";
  for (const [pixel, count] of bins.entries()) {
    if (count === 0) continue;
    const height = least + (most - least) * (count === 1 ? 0 : Math.log1p(count) / fullest);
    path += `M${pixel + 0.5} ${bottom}v${-height.toFixed(1)}`;
  }
  return path;
}

/** The percentage as a step line for each attempt, without points that no pixel shows. */
export function percentPath(
  logs: readonly Entry[],
  x: (at: number) => number,
  y: (percent: number) => number,
  end: number,
): string {
  let path = "";
  let drawn = 0;
  let last: number | null = null;
  for (const log of logs) {
    if (log.late) continue;
    const at = x(log.at);
    const { percentage } = log;
    if (percentage !== null && percentage !== last && !(last !== null && at - drawn < 0.5 && Math.abs(percentage - last) < 1)) {
      path += last === null ? `M${at.toFixed(1)} ${y(0)}` : `H${at.toFixed(1)}`;
      path += `V${y(percentage).toFixed(1)}`;
      drawn = at;
      last = percentage;
    }
    if (isEnded(log) && last !== null) {
      path += `H${at.toFixed(1)}`;
      last = null;
    }
  }
  return last === null ? path : `${path}H${x(end).toFixed(1)}`;
}

/** Diagonal lines in a box. A pattern would need an address, which `<base>` changes in some browsers. */
export function hatchPath(x0: number, x1: number, top: number, height: number): string {
  let path = "";
  for (let x = x0 - height; x < x1; x += 5) {
    const from = Math.max(x, x0);
    const to = Math.min(x + height, x1);
    const y = (at: number) => (top + height - (at - x)).toFixed(1);
    if (to > from) path += `M${from.toFixed(1)} ${y(from)}L${to.toFixed(1)} ${y(to)}`;
  }
  return path;
}
