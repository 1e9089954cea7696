import type { Activity, Status } from "../api";

/** What a row shows: a run that waits is RUNNING, and has a look of its own. */
export type Look = Lowercase<Status> | "waiting";

export const lookOf = (activity: Pick<Activity, "status" | "waiting">): Look =>
  activity.status === "RUNNING" && activity.waiting ? "waiting" : (activity.status.toLowerCase() as Look);

export const LABELS: Record<Look, string> = {
  queued: "Queued",
  running: "Running",
  waiting: "Waiting",
  complete: "Complete",
  error: "Error",
  canceled: "Canceled",
};

/** Each status has a shape beside its color, for people who do not tell the colors apart. */
export function StatusIcon({ look, percentage = null }: { look: Look; percentage?: number | null }) {
  return (
    <svg class={`status-icon is-${look}`} viewBox="0 0 16 16" width="16" height="16" aria-hidden="true">
      {look === "running" ? <Ring percentage={percentage ?? 0} /> : <path d={SHAPES[look]} />}
      {look in MARKS && <path class="mark" d={MARKS[look]} />}
    </svg>
  );
}

const DISC = "M8 1.5a6.5 6.5 0 1 1 0 13a6.5 6.5 0 0 1 0-13Z";
const SHAPES: Record<Exclude<Look, "running">, string> = {
  queued: DISC,
  waiting: DISC,
  complete: DISC,
  error: "M5.3 1.5h5.4l3.8 3.8v5.4l-3.8 3.8H5.3l-3.8-3.8V5.3Z",
  canceled: DISC,
};
const MARKS: Partial<Record<Look, string>> = {
  waiting: "M6.2 5.5v5m3.6-5v5",
  complete: "m5 8.3 2.1 2.1L11 6",
  error: "M8 4.6v4.2m0 2.4v.1",
  canceled: "m5.4 10.6 5.2-5.2",
};

/** How far a run is, around a dot that pulses while the page is connected. */
function Ring({ percentage }: { percentage: number }) {
  return (
    <>
      <circle class="track" cx="8" cy="8" r="6.25" />
      <circle
        class="arc"
        cx="8"
        cy="8"
        r="6.25"
        pathLength="100"
        stroke-dasharray={`${percentage} 100`}
        transform="rotate(-90 8 8)"
      />
      <circle class="dot" cx="8" cy="8" r="2.5" />
    </>
  );
}

export function StatusBadge({ look, percentage = null }: { look: Look; percentage?: number | null }) {
  return (
    <span class={`status is-${look}`}>
      <StatusIcon look={look} percentage={percentage} />
      {LABELS[look]}
    </span>
  );
}
