import { signal } from "@preact/signals";

import { type Bucket, getStats, type Query, type Status } from "../api";
import { now } from "../shared/clock";
import { running } from "../shared/running";
import { loadLately } from "../shared/usual";
import { windowOf, withoutStatus } from "./query";

const LEAST_MS = 3_000;
const REGULAR_MS = 30_000;
const SERIES_MS = 20_000;
/** After each refresh, a rest of so many times as long as it took. */
const REST = 5;

export interface Series {
  start: number;
  end: number;
  bucket: number;
  buckets: readonly Bucket[];
}

/** Counts by status and the series of starts and failures, refreshed at most every few seconds. */
export class Counts {
  readonly byStatus = signal<Partial<Record<Status, number>> | null>(null);
  readonly waiting = signal(0);
  readonly series = signal<Series | null>(null);
  private readonly base: Query;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private regular: ReturnType<typeof setInterval> | undefined;
  private isCounting = false;
  private restUntil = 0;
  private seriesUntil = 0;

  /** Shows the counts of the list before until it has its own, so that nothing flashes. */
  constructor(
    private readonly filters: Query,
    before: Counts | null,
  ) {
    this.base = withoutStatus(filters);
    this.byStatus.value = before?.byStatus.peek() ?? null;
    this.waiting.value = before?.waiting.peek() ?? 0;
    this.series.value = before?.series.peek() ?? null;
  }

  start(): void {
    this.stop();
    this.seriesUntil = 0;
    this.regular = setInterval(() => this.refreshSoon(), REGULAR_MS);
    void this.refresh();
  }

  stop(): void {
    clearInterval(this.regular);
    clearTimeout(this.timer);
    this.timer = undefined;
    this.regular = undefined;
  }

  /** Refresh as soon as the last time is long enough ago. */
  refreshSoon(): void {
    if (this.regular === undefined || this.timer !== undefined || this.isCounting) return;
    this.timer = setTimeout(
      () => {
        this.timer = undefined;
        if (!document.hidden) void this.refresh();
      },
      Math.max(0, this.restUntil - performance.now()),
    );
  }

  private async refresh(): Promise<void> {
    if (this.isCounting) return;
    this.isCounting = true;
    loadLately();
    const begun = performance.now();
    try {
      await Promise.all([this.count(), performance.now() < this.seriesUntil ? null : this.readSeries()]);
    } catch {
      // The list says what is wrong; the counts stay as they are.
    }
    this.isCounting = false;
    const took = performance.now() - begun;
    this.restUntil = performance.now() + Math.max(LEAST_MS, took * REST);
  }

  private async count(): Promise<void> {
    const { by_status } = await getStats(this.base);
    const isWaiting = by_status.RUNNING ? await getStats({ ...this.base, status: "RUNNING", waiting: true }) : null;
    this.byStatus.value = by_status;
    this.waiting.value = isWaiting?.total ?? 0;
    if (Object.keys(this.base).length === 0) running.value = by_status.RUNNING ?? 0;
  }

  private async readSeries(): Promise<void> {
    const { start, end, bucket } = windowOf(this.filters, now.peek());
    const after = new Date(start).toISOString();
    const { series } = await getStats({ ...this.base, created_after: after, bucket });
    this.series.value = { start, end, bucket, buckets: series };
    this.seriesUntil = performance.now() + SERIES_MS;
  }
}
