import { now } from "./clock";
import { ago, duration, exact, ticking } from "./format";

/** How long ago something was; the exact time on hover. */
export function Ago({ time }: { time: string }) {
  return (
    <time dateTime={time} title={exact(time)}>
      {ago(time, now.value)}
    </time>
  );
}

/** How much time is left until a moment; the exact time on hover. */
export function Left({ until }: { until: string }) {
  const seconds = (Date.parse(until) - now.value) / 1000;
  return (
    <time dateTime={until} title={exact(until)}>
      {seconds > 0 ? `${ticking(seconds)} left` : `expired ${ago(until, now.value)}`}
    </time>
  );
}

/** The time from one moment to another, or so far. */
export function Elapsed({ since, until }: { since: string; until: string | null }) {
  const start = Date.parse(since);
  if (until !== null) return <>{duration(Math.max(0, Date.parse(until) - start) / 1000)}</>;
  return <>{ticking(Math.max(0, now.value - start) / 1000)}</>;
}
