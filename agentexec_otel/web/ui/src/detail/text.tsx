/** Control characters as visible symbols, line breaks and tabs aside. */
export function visible(text: string): string {
  return text.replace(/\r\n/g, "\n").replace(CONTROLS, (one) => {
    const code = one.charCodeAt(0);
    return code < 0x20 ? String.fromCharCode(0x2400 + code) : code === 0x7f ? "\u2421" : "\ufffd";
  });
}

const CONTROLS = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g;

/** Text with what was searched for marked. `needle` is in lower case. */
export function Marked({ text, needle }: { text: string; needle: string }) {
  if (needle === "") return <>{text}</>;
  const parts = [];
  const lower = text.toLowerCase();
  // Lower case has another length in a few languages: then nothing is marked, rather than the wrong letters.
  let from = 0;
  if (lower.length === text.length) {
    for (let at = lower.indexOf(needle); at >= 0; at = lower.indexOf(needle, from)) {
      parts.push(text.slice(from, at), <mark>{text.slice(at, at + needle.length)}</mark>);
      from = at + needle.length;
    }
  }
  parts.push(text.slice(from));
  return <>{parts}</>;
}

const MOST_LINES = 4;
const MOST_CHARACTERS = 360;
const BEFORE_MATCH = 80;

/** The part of a long text that is shown until it is expanded: its beginning, or the surroundings of a match. */
export function excerpt(text: string, needle: string): string {
  let cut = text;
  if (needle !== "") {
    const match = text.toLowerCase().indexOf(needle);
    if (match > BEFORE_MATCH * 2) cut = `…${text.slice(match - BEFORE_MATCH)}`;
  }
  let end = -1;
  for (let line = 0; line < MOST_LINES; line++) {
    end = cut.indexOf("\n", end + 1);
    if (end < 0) break;
  }
  return cut.slice(0, Math.min(end < 0 ? cut.length : end, MOST_CHARACTERS));
}

/** Whether a text is shown whole. */
export function isShort(text: string): boolean {
  if (text.length > MOST_CHARACTERS) return false;
  let lines = 1;
  for (let at = text.indexOf("\n"); at >= 0; at = text.indexOf("\n", at + 1)) lines++;
  return lines <= MOST_LINES;
}

/** A point of time after the creation: 0:07.5, 12:07.5, 1:12:07.5, 2 d 1:12:07. */
export function clock(ms: number, digits: number): string {
  const total = Math.max(0, ms) / 1000;
  const days = Math.floor(total / 86_400);
  const hours = Math.floor((total % 86_400) / 3600);
  const minutes = Math.floor((total % 3600) / 60);
  const scale = 10 ** digits;
  const seconds = (Math.floor((total % 60) * scale) / scale).toFixed(digits).padStart(digits === 0 ? 2 : digits + 3, "0");
  const pad = (n: number) => String(n).padStart(2, "0");
  if (days > 0) return `${days} d ${hours}:${pad(minutes)}:${seconds}`;
  return hours > 0 ? `${hours}:${pad(minutes)}:${seconds}` : `${minutes}:${seconds}`;
}

/** How many digits of a second tell the logs of a run apart that took so long. They do not change while it is short. */
export function digitsOf(ms: number, hasEnded: boolean): number {
  if (ms >= 3_600_000) return 0;
  return hasEnded && ms < 10_000 ? 3 : 1;
}

const UNITS: [string, number][] = [
  ["d", 86_400_000],
  ["h", 3_600_000],
  ["min", 60_000],
  ["s", 1000],
];

/** A round length of time on an axis: 0.2 s, 45 s, 1 min 30 s, 2 d 6 h. */
export function round(ms: number): string {
  if (ms === 0) return "0";
  if (ms % 1000 !== 0) return `${Number((ms / 1000).toFixed(3))} s`;
  const parts = [];
  for (const [unit, size] of UNITS) {
    const n = Math.floor(ms / size);
    if (n > 0) parts.push(`${n} ${unit}`);
    ms -= n * size;
  }
  return parts.join(" ");
}
