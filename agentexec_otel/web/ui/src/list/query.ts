import { type Query, STATUSES, type Status } from "../api";

/** The parameters of the page's address, which are those of the status API, and `since` for a span of time until now. */
export const REPEATED = ["status", "agent_type", "reason", "metadata", "error_type", "worker_id", "trace_id", "agent_id"] as const;
export const SINGLE = ["text", "waiting", "since", "created_after", "created_before"] as const;
export type Repeated = (typeof REPEATED)[number];
export type Single = (typeof SINGLE)[number];

export const SPANS: Readonly<Record<string, { label: string; seconds: number }>> = {
  "15m": { label: "Last 15 minutes", seconds: 900 },
  "1h": { label: "Last hour", seconds: 3600 },
  "24h": { label: "Last 24 hours", seconds: 86_400 },
  "7d": { label: "Last 7 days", seconds: 7 * 86_400 },
};

export type Order = "newest" | "oldest";

export const orderOf = (search: URLSearchParams): Order => (search.get("order") === "oldest" ? "oldest" : "newest");

/** The filters of an address as query parameters of the API. `now` in milliseconds. */
export function filtersOf(search: URLSearchParams, now: number): Query {
  const found: Query = {};
  for (const name of REPEATED) if (search.has(name)) found[name] = search.getAll(name);
  for (const name of SINGLE) if (search.get(name)) found[name] = search.get(name);
  const span = SPANS[search.get("since") ?? ""];
  if (span) found["created_after"] = new Date(now - span.seconds * 1000).toISOString();
  delete found["since"];
  return found;
}

/** The filters of an address without those on the status, for counts by status. */
export function withoutStatus(filters: Query): Query {
  const { status: _, waiting: __, ...rest } = filters;
  return rest;
}

export const hasFilters = (search: URLSearchParams): boolean =>
  [...REPEATED, ...SINGLE].some((name) => search.get(name));

/** The address with a value of a repeated parameter added, or removed if it is there. */
export function toggled(search: URLSearchParams, name: Repeated, value: string): URLSearchParams {
  const next = new URLSearchParams(search);
  const values = next.getAll(name);
  next.delete(name);
  const kept = values.includes(value) ? values.filter((one) => one !== value) : [...values, value];
  for (const one of kept) next.append(name, one);
  return next;
}

/** The address with a parameter set, or without it for an empty value. */
export function replaced(search: URLSearchParams, name: Single | "order", value: string): URLSearchParams {
  const next = new URLSearchParams(search);
  if (value === "") next.delete(name);
  else next.set(name, value);
  return next;
}

export function cleared(search: URLSearchParams): URLSearchParams {
  const next = new URLSearchParams();
  if (search.has("order")) next.set("order", orderOf(search));
  return next;
}

export const statusesOf = (search: URLSearchParams): Status[] =>
  STATUSES.filter((status) => search.getAll("status").includes(status));

/** The filter on one entry of an activity's metadata. Null for a value that is no text, number or boolean. */
export function metadataFilter(key: string, value: unknown): string | null {
  if (typeof value === "string") return `${key}=${value}`;
  return typeof value === "number" || typeof value === "boolean" ? `${key}:=${value}` : null;
}

/** Where the sparkline begins, and the seconds of one of its bars. Times in milliseconds. */
export function windowOf(filters: Query, now: number): { start: number; end: number; bucket: number } {
  const end = Date.parse(String(filters["created_before"])) || now;
  const start = Date.parse(String(filters["created_after"])) || end - 86_400_000;
  const seconds = Math.max(60, (end - start) / 1000);
  return { start, end, bucket: BUCKETS.find((bucket) => seconds / bucket <= MOST_BARS) ?? Math.ceil(seconds / MOST_BARS) };
}

const MOST_BARS = 60;
const BUCKETS = [15, 60, 300, 900, 1800, 3600, 3 * 3600, 6 * 3600, 12 * 3600, 86_400, 7 * 86_400];
