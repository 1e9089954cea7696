import { signal } from "@preact/signals";

import { type Activity, getStats, type Stats } from "../api";
import { now } from "./clock";

const DAYS = 7;
const REFRESH_MS = 60_000;
const LEAST_COUNT = 5;
const FACTOR = 2;

/** Statistics of the last days, of every activity that the viewer may see: what is usual, and which types there are. */
export const lately = signal<Stats | null>(null);
let loadedAt = -Infinity;

export function loadLately(): void {
  if (performance.now() - loadedAt < REFRESH_MS) return;
  loadedAt = performance.now();
  void getStats({ created_after: new Date(now.peek() - DAYS * 86_400_000).toISOString() }).then(
    (found) => (lately.value = found),
    () => (loadedAt = -Infinity),
  );
}

/** The seconds from which an activity of a type is slower than usual: twice its p95. Null while too few have ended. */
export function slowFrom(agentType: string): number | null {
  const usual = lately.value?.by_type.find((one) => one.agent_type === agentType)?.duration_seconds;
  return usual && usual.count >= LEAST_COUNT && usual.p95 !== null ? usual.p95 * FACTOR : null;
}

/** Whether an activity is slower than usual for its type. */
export function isSlow(activity: Activity): boolean {
  const from = slowFrom(activity.agent_type);
  if (from === null || activity.started_at === null) return false;
  const end = activity.ended_at === null ? now.value : Date.parse(activity.ended_at);
  return (end - Date.parse(activity.started_at)) / 1000 > from;
}
