import { type Ref } from "preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";

import type { Activity, Status } from "../api";
import { now } from "../shared/clock";
import { duration, exact, plural } from "../shared/format";
import { LABELS, lookOf } from "../shared/status";
import type { Entry } from "./feed";
import { type Attempt, binsOf, hatchPath, percentPath, type Plot, plotOf, ticksOf, ticksPath } from "./plot";
import { clock, digitsOf, round, visible } from "./text";

const LEFT = 30;
const RIGHT = 14;
const CHART = { top: 6, bottom: 54 };
const BAND = { top: 64, height: 16 };
const TICKS = { top: 86, bottom: 108 };
const HEIGHT = 128;
const TICK_WIDTH = 84;

interface Props {
  activity: Activity;
  logs: readonly Entry[];
  /** Show this log. */
  onPick: (log: Entry) => void;
}

/** What happened when: the percentage, the attempts, what they waited for, and each log. */
export function Timeline({ activity, logs, onPick }: Props) {
  const [box, width] = useWidth();
  const plot = useMemo(() => plotOf(activity, logs, now.value), [activity, logs, now.value]);
  const picture = useMemo(() => <Picture plot={plot} logs={logs} width={width} />, [plot, width]);
  const summary = useMemo(() => <Summary activity={activity} logs={logs} plot={plot} />, [plot]);
  const [pointed, setPointed] = useState<Entry | null>(null);
  const { from, to } = plot;

  const nearest = (event: PointerEvent): Entry | null => {
    const x = event.clientX - (event.currentTarget as Element).getBoundingClientRect().left;
    return nearestTo(logs, from + ((x - LEFT) / innerOf(width)) * (to - from));
  };
  const pick = (log: Entry | null) => {
    setPointed(log);
    if (log !== null) onPick(log);
  };

  return (
    <section class="timeline" aria-labelledby="timeline-title">
      {summary}
      <div
        class="timeline-plot"
        ref={box}
        role="slider"
        tabIndex={0}
        aria-label="Logs in time. Arrow keys move, Enter shows the log."
        aria-valuemin={0}
        aria-valuemax={logs.length}
        aria-valuenow={pointed === null ? 0 : logs.indexOf(pointed) + 1}
        aria-valuetext={pointed === null ? "none" : `${clock(pointed.at - from, 1)}: ${visible(pointed.message)}`}
        onPointerMove={(event) => (event.buttons === 1 ? pick(nearest(event)) : setPointed(nearest(event)))}
        onPointerDown={(event) => event.button === 0 && pick(nearest(event))}
        onPointerLeave={() => setPointed(null)}
        onBlur={() => setPointed(null)}
        onKeyDown={(event) => {
          if (event.key === "Enter") pick(pointed);
          const moved = moveBy(event.key, logs, pointed);
          if (moved === undefined) return;
          event.preventDefault();
          setPointed(moved);
        }}
      >
        {picture}
        {pointed !== null && <Tip log={pointed} plot={plot} left={scaleOf(plot, width)(pointed.at)} width={width} />}
      </div>
    </section>
  );
}

const innerOf = (width: number) => Math.max(1, width - LEFT - RIGHT);

function scaleOf({ from, to }: Plot, width: number): (at: number) => number {
  return (at) => LEFT + Math.min(1, Math.max(0, (at - from) / (to - from))) * innerOf(width);
}

function Picture({ plot, logs, width }: { plot: Plot; logs: readonly Entry[]; width: number }) {
  const x = scaleOf(plot, width);
  return (
    <svg width={width} height={HEIGHT} viewBox={`0 0 ${width} ${HEIGHT}`} aria-hidden="true">
      <Axis plot={plot} x={x} width={innerOf(width)} />
      <path class="timeline-percent" d={percentPath(logs, x, percentY, plot.now)} />
      {plot.attempts.map((attempt) => (
        <Lane key={attempt.number} attempt={attempt} plot={plot} x={x} />
      ))}
      {plot.waits.map((wait) => (
        <path key={wait.from} class="timeline-wait" d={hatchPath(x(wait.from), x(wait.to), BAND.top, BAND.height)} />
      ))}
      {plot.attempts.length > 1 && plot.attempts.map((attempt) => <Label key={attempt.number} attempt={attempt} plot={plot} x={x} />)}
      <Ticks logs={logs} x={x} width={width} />
      <Gaps plot={plot} x={x} />
    </svg>
  );
}

function Summary({ activity, logs, plot }: { activity: Activity; logs: readonly Entry[]; plot: Plot }) {
  return (
    <>
      <div class="section-head">
        <h2 id="timeline-title">Timeline</h2>
        <Legend plot={plot} hasLate={logs.some((log) => log.late)} />
      </div>
      <p class="visually-hidden">{summaryOf(activity, logs, plot)}</p>
    </>
  );
}

function useWidth(): [Ref<HTMLDivElement>, number] {
  const box = useRef<HTMLDivElement>(null);
  const [width, setWidth] = useState(600);
  useEffect(() => {
    const observer = new ResizeObserver(([entry]) => setWidth(Math.round(entry!.contentRect.width)));
    observer.observe(box.current!);
    return () => observer.disconnect();
  }, []);
  return [box, width];
}

interface Scaled {
  x: (at: number) => number;
}

function Axis({ plot, x, width }: Scaled & { plot: Plot; width: number }) {
  const ticks = ticksOf(plot.to - plot.from, Math.max(2, Math.floor(width / TICK_WIDTH)));
  return (
    <g class="timeline-axis">
      {[0, 50, 100].map((percent) => (
        <g key={percent}>
          <line class="timeline-grid" x1={LEFT} x2={LEFT + width} y1={percentY(percent)} y2={percentY(percent)} />
          <text x={LEFT - 6} y={percentY(percent) + 4} text-anchor="end">
            {percent}
          </text>
        </g>
      ))}
      <line class="timeline-base" x1={LEFT} x2={LEFT + width} y1={TICKS.bottom + 0.5} y2={TICKS.bottom + 0.5} />
      {ticks.map((tick) => {
        const at = x(plot.from + tick);
        return (
          <g key={tick}>
            <line class="timeline-base" x1={at} x2={at} y1={TICKS.bottom} y2={TICKS.bottom + 4} />
            <text x={at} y={HEIGHT - 5} text-anchor={tick === 0 ? "start" : at > LEFT + width - 24 ? "end" : "middle"}>
              {round(tick)}
            </text>
          </g>
        );
      })}
    </g>
  );
}

const percentY = (percent: number) => CHART.bottom - ((CHART.bottom - CHART.top) * Math.min(100, Math.max(0, percent))) / 100;

const SHAPES: Partial<Record<Status, string>> = {
  COMPLETE: "m-3.4.3 2.3 2.3L3.4-2.4",
  ERROR: "M-2.6-2.6 2.6 2.6m0-5.2-5.2 5.2",
  CANCELED: "M-3 0h6",
};

/** One attempt: how long it was queued, and how long it ran. */
function Lane({ attempt, plot, x }: Scaled & { attempt: Attempt; plot: Plot }) {
  const middle = BAND.top + BAND.height / 2;
  const started = attempt.started ?? attempt.ended ?? plot.now;
  const end = attempt.ended ?? plot.now;
  const width = Math.max(2, x(end) - x(started));
  const isActive = attempt.ended === null;
  return (
    <g class={`timeline-attempt is-${attempt.status.toLowerCase()}`}>
      <line class="timeline-queue" x1={x(attempt.queued)} x2={x(started)} y1={middle} y2={middle} />
      {attempt.started !== null && (
        <rect class={isActive ? "timeline-run is-active" : "timeline-run"} x={x(started)} y={BAND.top} width={width} height={BAND.height} rx={3} />
      )}
      {isActive && attempt.started !== null && <circle class="timeline-now" cx={x(end)} cy={middle} r={4} />}
      {!isActive && (
        <g class="timeline-end" transform={`translate(${x(end)} ${middle})`}>
          <circle r={7.5} />
          <path d={SHAPES[attempt.status] ?? ""} />
        </g>
      )}
    </g>
  );
}

/** The number of an attempt, if there is room. */
function Label({ attempt, plot, x }: Scaled & { attempt: Attempt; plot: Plot }) {
  const from = x(attempt.started ?? plot.now);
  if (x(attempt.ended ?? plot.now) - from < 70) return null;
  return (
    <text class="timeline-number" x={from + 6} y={BAND.top + BAND.height / 2 + 4}>
      Attempt {attempt.number}
    </text>
  );
}

/** So many pixels with logs are drawn lighter. */
const DENSE = 200;

function Ticks({ logs, x, width }: Scaled & { logs: readonly Entry[]; width: number }) {
  const bins = binsOf(logs, x, width, false);
  const isDense = bins.reduce((filled, count) => filled + (count > 0 ? 1 : 0), 0) > DENSE;
  return (
    <>
      <path class={isDense ? "timeline-tick is-dense" : "timeline-tick"} d={ticksPath(bins, TICKS.bottom, 7, 20)} />
      <path class="timeline-tick is-late" d={ticksPath(binsOf(logs, x, width, true), TICKS.bottom, 7, 20)} />
    </>
  );
}

function Gaps({ plot, x }: Scaled & { plot: Plot }) {
  return (
    <>
      {plot.gaps.map((gap) => {
        const [from, to] = [x(gap.from) + 4, x(gap.to) - 4];
        if (to - from < 64) return null;
        const y = TICKS.bottom - 9;
        const middle = (from + to) / 2;
        const text = duration((gap.to - gap.from) / 1000);
        const half = text.length * 3.1 + 5;
        return (
          <g class="timeline-gap" key={gap.from}>
            <path d={`M${from} ${y - 3}v6M${from} ${y}H${middle - half}M${middle + half} ${y}H${to}M${to} ${y - 3}v6`} />
            <text x={middle} y={y + 4} text-anchor="middle">
              {text}
            </text>
          </g>
        );
      })}
    </>
  );
}

const TIP_WIDTH = 330;

function Tip({ log, plot, left, width }: { log: Entry; plot: Plot; left: number; width: number }) {
  const offset = Math.max(0, Math.min(left - TIP_WIDTH / 2, width - TIP_WIDTH));
  return (
    <>
      <div class="timeline-cursor" style={{ left: `${left}px` }} />
      <div class="timeline-tip" style={{ left: `${offset}px` }} aria-hidden="true">
        <div class="timeline-tip-head">
          <span>{clock(log.at - plot.from, digitsOf(plot.to - plot.from, true))}</span>
          {log.percentage !== null && <span>{log.percentage}%</span>}
          <span class="timeline-tip-exact">{exact(log.created_at)}</span>
        </div>
        <div class="timeline-tip-message" dir="auto">
          {visible(log.message.slice(0, 200)) || LABELS[lookOf({ status: log.status, waiting: null })]}
        </div>
      </div>
    </>
  );
}

function Legend({ plot, hasLate }: { plot: Plot; hasLate: boolean }) {
  return (
    <ul class="timeline-legend" aria-hidden="true">
      {plot.attempts.some((one) => (one.started ?? plot.now) - one.queued > 0) && <li class="is-queue">queued</li>}
      <li class="is-run">ran</li>
      {plot.waits.length > 0 && <li class="is-wait">waited</li>}
      <li class="is-log">log</li>
      {hasLate && <li class="is-late">late log</li>}
      <li class="is-percent">percent</li>
    </ul>
  );
}

function nearestTo(logs: readonly Entry[], at: number): Entry | null {
  let best: Entry | null = null;
  for (const log of logs) if (best === null || Math.abs(log.at - at) <= Math.abs(best.at - at)) best = log;
  return best;
}

/** The log that a key moves to; undefined for another key. */
function moveBy(key: string, logs: readonly Entry[], from: Entry | null): Entry | null | undefined {
  const page = Math.max(2, Math.round(logs.length / 20));
  const steps: Record<string, number> = {
    ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -page, PageUp: page,
    Home: -Infinity, End: Infinity,
  };
  const step = steps[key];
  if (step === undefined) return undefined;
  const at = from === null ? (step > 0 && step !== Infinity ? -1 : logs.length) : logs.indexOf(from);
  return logs[Math.max(0, Math.min(logs.length - 1, at + step))] ?? null;
}

/** The timeline in sentences. */
function summaryOf(activity: Activity, logs: readonly Entry[], plot: Plot): string {
  const sentences = plot.attempts.map((attempt) => {
    const name = plot.attempts.length > 1 ? `Attempt ${attempt.number}` : "It";
    const queued = duration(((attempt.started ?? attempt.ended ?? plot.now) - attempt.queued) / 1000);
    if (attempt.started === null) return `${name} ${attempt.ended === null ? "has been" : "was"} queued for ${queued}.`;
    const ran = duration(((attempt.ended ?? plot.now) - attempt.started) / 1000);
    const verb = attempt.ended === null ? "has been running" : "ran";
    const end = attempt.ended === null ? "" : `, and ended as ${attempt.status.toLowerCase()}`;
    return `${name} was queued for ${queued}, ${verb} for ${ran}${end}.`;
  });
  sentences.push(`${plural(logs.length, "log")}.`);
  const gap = plot.gaps[0];
  if (gap !== undefined) sentences.push(`The longest time without a log is ${duration((gap.to - gap.from) / 1000)}.`);
  if (activity.latest_percentage !== null) sentences.push(`${activity.latest_percentage} percent.`);
  return sentences.join(" ");
}
