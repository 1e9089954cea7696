/** The status API, as docs/reference/status-api.md has it. */

export type Status = "QUEUED" | "RUNNING" | "COMPLETE" | "ERROR" | "CANCELED";

export const STATUSES: readonly Status[] = ["QUEUED", "RUNNING", "COMPLETE", "ERROR", "CANCELED"];

/** Whether the current attempt has ended. */
export function isEnded({ status }: { status: Status }): boolean {
  return status !== "QUEUED" && status !== "RUNNING";
}

export interface Waiting {
  for?: string;
  since?: string;
  items?: { tool?: string; call_id?: string }[];
}

export interface Activity {
  agent_id: string;
  agent_type: string;
  status: Status;
  created_at: string;
  updated_at: string;
  started_at: string | null;
  ended_at: string | null;
  attempt: number;
  latest_percentage: number | null;
  latest_log: string | null;
  latest_log_timestamp: string | null;
  queued_seconds: number | null;
  duration_seconds: number | null;
  error_type: string | null;
  reason: string | null;
  waiting: Waiting | null;
  metadata: Record<string, unknown> | null;
  model: string | null;
  input_tokens: number | null;
  output_tokens: number | null;
  cached_input_tokens: number | null;
  reasoning_tokens: number | null;
  requests: number | null;
  worker_id: string | null;
  lease_expires_at: string | null;
  trace_id: string | null;
  span_id: string | null;
  /** Only from servers that have a price, or a template of links to traces. */
  cost?: number | string | null;
  trace_url?: string | null;
}

export interface Log {
  id: number;
  seq: number;
  message: string;
  status: Status;
  percentage: number | null;
  created_at: string;
  attempt: number;
  late: boolean;
}

export interface Page {
  items: Activity[];
  page_size: number;
  next_cursor: string | null;
}

export interface Percentiles {
  count: number;
  sum: number;
  p50: number | null;
  p90: number | null;
  p95: number | null;
  p99: number | null;
  max: number | null;
}

export interface Bucket {
  start: string;
  started: number;
  ended: number;
  failed: number;
}

export interface Stats {
  total: number;
  by_status: Partial<Record<Status, number>>;
  by_type: { agent_type: string; total: number; active: number; failed: number; duration_seconds: Percentiles }[];
  by_reason: Record<string, number>;
  duration_seconds: Percentiles;
  queued_seconds: Percentiles;
  input_tokens: Percentiles;
  output_tokens: Percentiles;
  series: Bucket[];
}

/** What the viewer may do. */
export interface Session {
  may_act: boolean;
  may_see_content: boolean;
  may_retry: boolean;
}

/** Query parameters; an array repeats its parameter. */
export type Query = Record<string, string | number | boolean | readonly string[] | null | undefined>;

/** A response that is not a success, with the sentence of its problem details. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
  }
}

export function apiUrl(path: string, query: Query = {}): string {
  const url = new URL(`api/${path}`, document.baseURI);
  for (const [name, value] of Object.entries(query)) {
    if (value === null || value === undefined || value === "") continue;
    for (const one of Array.isArray(value) ? value : [value]) url.searchParams.append(name, String(one));
  }
  return url.href;
}

async function request<T>(url: string, init: RequestInit = {}): Promise<T> {
  const response = await fetch(url, init);
  if (!response.ok) throw new ApiError(response.status, await problemOf(response));
  return (await response.json()) as T;
}

async function problemOf(response: Response): Promise<string> {
  try {
    const problem = (await response.json()) as { detail?: unknown; title?: unknown };
    return String(problem.detail ?? problem.title ?? response.statusText);
  } catch {
    return `The server answered ${response.status}.`;
  }
}

/** A change needs a header that a page of another site cannot send. */
function act<T>(path: string, query: Query = {}): Promise<T> {
  return request<T>(apiUrl(path, query), { method: "POST", headers: { "X-AgentExec-Action": "dashboard" } });
}

export const getSession = () => request<Session>(apiUrl("session"));
export const getPage = (query: Query, signal?: AbortSignal) =>
  request<Page>(apiUrl("activities", query), signal ? { signal } : {});
export const getActivity = (id: string) => request<Activity>(apiUrl(`activities/${id}`, { logs: false }));
export const LOGS_PER_PAGE = 1000;
export const getLogs = (id: string, afterSeq: number) =>
  request<Log[]>(apiUrl(`activities/${id}/logs`, { after_seq: afterSeq, limit: LOGS_PER_PAGE }));
export const getStats = (query: Query, signal?: AbortSignal) =>
  request<Stats>(apiUrl("stats", query), signal ? { signal } : {});
export const cancel = (id: string) => act<{ canceled: boolean }>(`activities/${id}/cancel`);
export const retry = (id: string) => act<{ attempt: number }>(`activities/${id}/retry`);
export const cancelMany = (query: Query) => act<{ canceled: number }>("cancel", query);
export const retryMany = (query: Query) => act<{ attempts: Record<string, number>; refused: Record<string, string> }>("retry", query);
