import { useEffect, useMemo, useRef, useState } from "preact/hooks";

import { isEnded } from "../api";
import { copy } from "../shared/copy";
import { exact, grouped, plural } from "../shared/format";
import { Icon } from "../shared/icons";
import { say } from "../shared/notice";
import { LABELS, lookOf, StatusIcon } from "../shared/status";
import type { Entry } from "./feed";
import { clock, excerpt, isShort, Marked, visible } from "./text";
import { type Row, rowsOf, useWindow } from "./window";

interface Props {
  logs: readonly Entry[];
  /** When the activity was created, in milliseconds. */
  from: number;
  digits: number;
  isHidden: boolean;
  /** A log to show; a new object each time. */
  picked: { seq: number } | null;
  follows: boolean;
  onFollow: (follows: boolean) => void;
}

/** All logs, the latest at the bottom. */
export function LogPanel({ logs, from, digits, isHidden, picked, follows, onFollow }: Props) {
  const [search, setSearch] = useState("");
  const [expanded, setExpanded] = useState<ReadonlySet<number>>(new Set());
  const needle = search.trim().toLowerCase();
  const shown = useMemo(() => matching(logs, needle), [logs, needle]);
  const rows = useMemo(() => rowsOf(shown), [shown]);
  const seen = useSeen(logs, follows);
  const timeWidth = clock((logs.at(-1)?.at ?? from) - from, digits).length;
  const { viewport, first, last, before, after, list } = useWindow({ rows, follows, onFollow, picked });

  useEffect(() => {
    // A log that the search hides cannot be shown.
    if (picked !== null && !shown.some((log) => log.seq === picked.seq)) setSearch("");
  }, [picked]);

  const toggle = (seq: number) =>
    setExpanded((before) => {
      const next = new Set(before);
      if (!next.delete(seq)) next.add(seq);
      return next;
    });
  const copyAll = () =>
    void copy(shown.map((log) => lineOf(log, from, digits)).join("\n")).then(() => say(`Copied ${plural(shown.length, "log")}.`));

  return (
    <section class="log" aria-labelledby="log-title">
      <div class="section-head">
        <h2 id="log-title">Log</h2>
        <span class="log-count">{needle === "" ? grouped(logs.length) : `${plural(shown.length, "match", "matches")} of ${grouped(logs.length)}`}</span>
        <label class="log-search">
          <Icon name="search" />
          <input
            type="search"
            placeholder="Search log"
            aria-label="Search log"
            value={search}
            onInput={(event) => setSearch(event.currentTarget.value)}
            onKeyDown={(event) => {
              if (event.key !== "Escape") return;
              event.preventDefault();
              if (search === "") event.currentTarget.blur();
              setSearch("");
            }}
          />
        </label>
        <button type="button" class="button is-quiet log-copy-all" onClick={copyAll}>
          <Icon name="copy" />
          Copy log
        </button>
        <button type="button" class={follows ? "button log-follow is-on" : "button log-follow"} aria-pressed={follows} onClick={() => onFollow(!follows)}>
          {follows ? "Following" : seen < logs.length ? `Paused, ${grouped(logs.length - seen)} new` : "Paused"}
        </button>
      </div>
      {isHidden && <p class="log-hidden">You see when something was logged, but not what: your access does not include content.</p>}
      <div class="log-viewport" ref={viewport} tabIndex={0} role="region" aria-label="Logs">
        <ol ref={list} style={{ "--log-time": `${timeWidth}ch`, paddingTop: `${before}px`, paddingBottom: `${after}px` }}>
          {rows.slice(first, last).map((row) => (
            <LogRow
              key={row.key}
              row={row}
              from={from}
              digits={digits}
              needle={needle}
              isExpanded={expanded.has(row.log.seq)}
              isPicked={picked?.seq === row.log.seq}
              count={shown.length}
              onToggle={toggle}
            />
          ))}
        </ol>
        {shown.length === 0 && <p class="log-none">{needle === "" ? "No logs yet." : "No log contains this text."}</p>}
      </div>
      <Announcer logs={logs} />
    </section>
  );
}

/** How many logs there were when the viewer stopped following. */
function useSeen(logs: readonly Entry[], follows: boolean): number {
  const seen = useRef(logs.length);
  if (follows) seen.current = logs.length;
  return seen.current;
}

function matching(logs: readonly Entry[], needle: string): readonly Entry[] {
  return needle === "" ? logs : logs.filter((log) => visible(log.message).toLowerCase().includes(needle));
}

function lineOf(log: Entry, from: number, digits: number): string {
  const percent = log.percentage === null ? "" : `  ${log.percentage}%`;
  return `${clock(log.at - from, digits)}  ${visible(log.message)}${percent}`;
}

interface RowProps {
  row: Row;
  from: number;
  digits: number;
  needle: string;
  isExpanded: boolean;
  isPicked: boolean;
  count: number;
  onToggle: (seq: number) => void;
}

/** The same element as long as it would look the same: most rows stay as they are when others come. */
function LogRow({ row, from, digits, needle, isExpanded, isPicked, count, onToggle }: RowProps) {
  const { log, index, isAttempt, isChange } = row;
  return useMemo(() => {
    const message = visible(log.message);
    const isLong = !isShort(message);
    const isCut = isLong && !isExpanded;
    const look = isChange ? lookOf({ status: log.status, waiting: null }) : null;
    const kinds = ["log-row", isPicked && "is-picked", log.late && "is-late", look && `is-change is-${look}`];
    return (
      <li class={kinds.filter(Boolean).join(" ")} data-key={log.seq} aria-setsize={count} aria-posinset={index + 1}>
        {isAttempt && <span class="log-attempt">Attempt {log.attempt}</span>}
        <time class="log-time" dateTime={log.created_at} title={exact(log.created_at)}>
          {clock(log.at - from, digits)}
        </time>
        <span class="log-mark">{look && <StatusIcon look={look} percentage={log.percentage} />}</span>
        <span class="log-message">
          {look && <span class={message === "" ? "log-status" : "visually-hidden"}>{`${LABELS[look]}${message && ": "}`}</span>}
          {log.late && (
            <span class="log-late" title="It came after its attempt had ended.">
              late
            </span>
          )}
          <span class={isCut ? "log-text is-cut" : "log-text"} dir="auto">
            <Marked text={isCut ? `${excerpt(message, needle)} …` : message} needle={needle} />
          </span>
          {isLong && (
            <button type="button" class="log-more" aria-expanded={isExpanded} onClick={() => onToggle(log.seq)}>
              {isExpanded ? "Show less" : `Show all ${plural(message.length, "character")}`}
            </button>
          )}
        </span>
        <span class="log-percent">{log.percentage !== null && `${log.percentage}%`}</span>
        <button
          type="button"
          class="log-copy"
          tabIndex={-1}
          aria-label="Copy this log"
          title="Copy this log"
          onClick={() => void copy(log.message).then(() => say("Copied the log."))}
        >
          <Icon name="copy" />
        </button>
      </li>
    );
  }, [log, index, isAttempt, isChange, from, digits, needle, isExpanded, isPicked, count]);
}

const ANNOUNCE_MS = 5_000;

/** Tells a screen reader of new logs, but not of each one of many. */
function Announcer({ logs }: { logs: readonly Entry[] }) {
  const [text, setText] = useState("");
  const known = useRef<number | null>(null);
  const latest = useRef(logs);
  latest.current = logs;
  useEffect(() => {
    const timer = setInterval(() => {
      const all = latest.current;
      const fresh = all.length - (known.current ?? all.length);
      known.current = all.length;
      const log = all.at(-1);
      if (fresh > 0 && log !== undefined) {
        const message = visible(log.message.slice(0, 200));
        setText(fresh === 1 || isEnded(log) ? message : `${plural(fresh, "new log")}. ${message}`);
      }
    }, ANNOUNCE_MS);
    return () => clearInterval(timer);
  }, []);
  return (
    <p class="visually-hidden" role="log" aria-label="Latest log" aria-live="polite">
      {text}
    </p>
  );
}
