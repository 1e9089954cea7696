/** Seconds as a person reads them: 0.4 s, 12 s, 3 min 05 s, 2 h 10 min, 3 d 4 h. */
export function duration(seconds: number | null): string {
  if (seconds === null) return "";
  return seconds < 10 ? `${seconds.toFixed(1)} s` : ticking(seconds);
}

/** Like `duration`, in whole seconds, for one that grows while it is read. */
export function ticking(seconds: number): string {
  const pad = (n: number) => String(Math.floor(n)).padStart(2, "0");
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${pad(seconds % 60)} s`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h ${pad((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86_400)} d ${Math.floor((seconds % 86_400) / 3600)} h`;
}

/** A number in at most four characters: 950, 12.3k, 1.2M. */
export function compact(n: number): string {
  if (n < 1000) return String(n);
  return n < 999_950 ? `${(n / 1000).toFixed(n < 99_950 ? 1 : 0)}k` : `${(n / 1_000_000).toFixed(1)}M`;
}

const GROUPED = new Intl.NumberFormat("en");

/** A number with separators of thousands: 12,345. */
export const grouped = (n: number): string => GROUPED.format(n);

/** A number with its noun: 1 activity, 37 activities. */
export function plural(n: number, one: string, many = `${one}s`): string {
  return `${grouped(n)} ${n === 1 ? one : many}`;
}

/** How long ago: now, 12 s ago, 5 min ago, 3 h ago, 2 d ago. `now` in milliseconds. */
export function ago(iso: string, now: number): string {
  const seconds = (now - Date.parse(iso)) / 1000;
  if (seconds < 5) return "now";
  if (seconds < 60) return `${Math.floor(seconds)} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86_400)} d ago`;
}

const EXACT = new Intl.DateTimeFormat(undefined, {
  year: "numeric",
  month: "short",
  day: "numeric",
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
  fractionalSecondDigits: 3,
  timeZoneName: "short",
});

/** The exact time, in the viewer's zone, with milliseconds. */
export const exact = (iso: string): string => EXACT.format(new Date(iso));

/** A name of the API as words: rate_limit becomes rate limit. */
export const words = (name: string): string => name.replaceAll("_", " ");
