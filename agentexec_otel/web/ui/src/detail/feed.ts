import { type ReadonlySignal, signal } from "@preact/signals";

import { type Activity, ApiError, getActivity, getLogs, isEnded, type Log, LOGS_PER_PAGE } from "../api";
import { learnClock, now } from "../shared/clock";
import { connection, follow } from "../stream";

/** A log, with its time in milliseconds. */
export interface Entry extends Log {
  at: number;
}

/** One activity as it is now, and all its logs, each once and in the order of `seq`. */
export interface Feed {
  activity: ReadonlySignal<Activity | null>;
  logs: ReadonlySignal<readonly Entry[]>;
  /** The API's sentence if there is no such activity for this viewer. */
  problem: ReadonlySignal<string | null>;
  /** Read the activity again, such as after a change. */
  refresh: () => Promise<void>;
  close: () => void;
}

/** How long new logs wait to be shown together: longer, the more there are to draw again. */
const FLUSH_MS = 80;
const FLUSH_MS_PER_LOG = 0.025;
const REFRESH_MS = 1_500;
const RETRY_MS = 2_000;
/** A worker extends its lease without a log. */
const LEASE_MS = 10_000;

/**
 * Follow an activity through its attempts with one stream at a time, as browsers open few per server: the stream of its
 * logs until it ends, then the list's stream of this activity, until it is retried or a late log comes.
 */
export function openFeed(agentId: string): Feed {
  const activity = signal<Activity | null>(null);
  const logs = signal<readonly Entry[]>([]);
  const problem = signal<string | null>(null);
  let arrived: Entry[] = [];
  let seq = 0;
  let closed = false;
  let closeStream = () => {};
  let isWatching = false;
  let retryTimer: ReturnType<typeof setTimeout> | undefined;
  let flushTimer: ReturnType<typeof setTimeout> | undefined;
  let refreshTimer: ReturnType<typeof setTimeout> | undefined;
  let refreshedAt = 0;

  function take(found: Activity): void {
    if (activity.value === null || isNewer(found, activity.value)) activity.value = found;
  }

  function add(log: Log): void {
    if (log.seq <= seq) return;
    seq = log.seq;
    arrived.push({ ...log, at: Date.parse(log.created_at) });
  }

  function flush(): void {
    clearTimeout(flushTimer);
    flushTimer = undefined;
    if (arrived.length > 0) logs.value = [...logs.value, ...arrived];
    arrived = [];
  }

  async function refresh(): Promise<void> {
    refreshedAt = Date.now();
    const found = await getActivity(agentId);
    if (closed) return;
    learnClock(found);
    take(found);
  }

  const leaseTimer = setInterval(() => {
    if (activity.value?.status === "RUNNING" && !document.hidden) refreshSoon();
  }, LEASE_MS);

  /** A log does not have all that it changes, such as what the run waits for. */
  function refreshSoon(): void {
    refreshTimer ??= setTimeout(
      () => {
        refreshTimer = undefined;
        refresh().catch(() => {}); // the stream notices a lost connection
      },
      Math.max(100, refreshedAt + REFRESH_MS - Date.now()),
    );
  }

  function followLogs(): void {
    isWatching = false;
    closeStream();
    closeStream = follow(`activities/${agentId}/events`, { after: seq }, {
      log: (data) => {
        add(JSON.parse(data) as Log);
        flushTimer ??= setTimeout(flush, FLUSH_MS + logs.value.length * FLUSH_MS_PER_LOG);
        refreshSoon();
      },
      end: (data) => {
        flush();
        take(JSON.parse(data) as Activity);
        followRetry();
      },
    });
  }

  function followRetry(): void {
    const check = (found: Activity) => {
      if (!isWatching || closed) return;
      const before = activity.value;
      take(found);
      if (!isEnded(found) || before?.updated_at !== found.updated_at) followLogs();
    };
    const read = () => void getActivity(agentId).then(check, () => {});
    isWatching = true;
    closeStream();
    closeStream = follow("events", { agent_id: agentId }, {
      ready: read,
      reset: read,
      activity: (data) => check(JSON.parse(data) as Activity),
    });
  }

  /** Thousands of logs come faster in pages than as events. */
  async function load(): Promise<void> {
    await refresh();
    let more = true;
    while (more && !closed) {
      const page = await getLogs(agentId, seq);
      for (const log of page) add(log);
      flush();
      more = page.length === LOGS_PER_PAGE;
    }
  }

  function open(): void {
    load().then(() => closed || followLogs(), (error: unknown) => {
      if (closed) return;
      if (error instanceof ApiError && error.status < 500) {
        problem.value = error.message;
        connection.value = { isOpen: true, lost: null };
      } else {
        if (connection.value.lost === null) connection.value = { isOpen: false, lost: now.peek() };
        retryTimer = setTimeout(open, RETRY_MS);
      }
    });
  }

  open();
  return {
    activity,
    logs,
    problem,
    refresh,
    close: () => {
      closed = true;
      closeStream();
      clearInterval(leaseTimer);
      for (const timer of [retryTimer, flushTimer, refreshTimer]) clearTimeout(timer);
    },
  };
}

/** Answers overtake each other: an attempt that has ended stays so. */
function isNewer(found: Activity, known: Activity): boolean {
  if (found.attempt !== known.attempt) return found.attempt > known.attempt;
  if (isEnded(found) !== isEnded(known)) return isEnded(found);
  return Date.parse(found.updated_at) >= Date.parse(known.updated_at);
}
