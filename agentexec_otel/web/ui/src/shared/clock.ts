import { signal } from "@preact/signals";

import type { Activity } from "../api";

const TOLERANCE_MS = 750;
let skew = 0;

/** The time of the server in milliseconds. One timer moves it once a second, for everything that ticks. */
export const now = signal(Date.now());

const tick = () => (now.value = Date.now() - skew);
setInterval(tick, 1000);
document.addEventListener("visibilitychange", tick);

/** Learn the server's clock from an active activity: its durations were computed as it was sent. */
export function learnClock({ started_at, created_at, duration_seconds, queued_seconds, status }: Activity): void {
  let server: number | null = null;
  if (status === "RUNNING" && started_at !== null && duration_seconds) server = Date.parse(started_at) + duration_seconds * 1000;
  if (status === "QUEUED" && queued_seconds) server = Date.parse(created_at) + queued_seconds * 1000;
  if (server === null || Math.abs(Date.now() - skew - server) < TOLERANCE_MS) return;
  skew = Date.now() - server;
  tick();
}
