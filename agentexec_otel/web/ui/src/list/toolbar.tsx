import { useEffect, useRef, useState } from "preact/hooks";

import { go, href, route } from "../route";
import { grouped, words } from "../shared/format";
import { Icon } from "../shared/icons";
import { session } from "../shared/session";
import { type Look, LABELS, StatusIcon } from "../shared/status";
import { lately } from "../shared/usual";
import { type BulkAction } from "./bulk";
import { Choices, Menu } from "./menu";
import { cleared, hasFilters, orderOf, type Repeated, REPEATED, replaced, type Single, SPANS, statusesOf, toggled } from "./query";
import { Sparkline } from "./sparkline";
import type { ListStore } from "./store";

const TYPING_MS = 250;

const show = (search: URLSearchParams, options?: { replace: boolean }) => go(href(null, search), options);
export const toggle = (name: Repeated, value: string) => show(toggled(route.peek().search, name, value));
const replace = (name: Single | "order", value: string) => show(replaced(route.peek().search, name, value));
export const clearFilters = () => show(cleared(route.peek().search));

export function Toolbar({ store, onBulk }: { store: ListStore; onBulk: (action: BulkAction) => void }) {
  const { search } = route.value;
  const [isOpen, setIsOpen] = useState(false);
  return (
    <>
      <div class="overview">
        <StatusChips store={store} search={search} />
        <Sparkline series={store.counts.series.value} />
      </div>
      <div class="filters">
        {session.value.may_see_content && <Search search={search} />}
        <button type="button" class="button is-filter filters-toggle" aria-expanded={isOpen} onClick={() => setIsOpen(!isOpen)}>
          Filters
          <Icon name="chevron" />
        </button>
        <div class={isOpen ? "filters-more is-open" : "filters-more"}>
          <TypeMenu search={search} />
          <ReasonMenu search={search} />
          {session.value.may_see_content && <MetadataMenu store={store} search={search} />}
          <TimeMenu search={search} />
          <ActiveFilters search={search} />
          <span class="filters-end">
            <button type="button" class="button is-quiet" onClick={() => replace("order", orderOf(search) === "newest" ? "oldest" : "")}>
              <Icon name={orderOf(search) === "newest" ? "newest" : "oldest"} />
              {orderOf(search) === "newest" ? "Newest first" : "Oldest first"}
            </button>
            {session.value.may_act && <BulkMenu onBulk={onBulk} />}
          </span>
        </div>
      </div>
    </>
  );
}

function StatusChips({ store, search }: { store: ListStore; search: URLSearchParams }) {
  const counts = store.counts.byStatus.value;
  const chosen = statusesOf(search);
  const isWaiting = search.get("waiting") === "true";
  const total = counts && Object.values(counts).reduce((a, b) => a + b, 0);
  const without = (name: string) => {
    const next = new URLSearchParams(search);
    next.delete(name);
    return next;
  };
  const ofStatus = (status: "QUEUED" | "RUNNING" | "COMPLETE" | "ERROR" | "CANCELED") => (
    <Chip
      look={status.toLowerCase() as Look}
      count={counts && (counts[status] ?? 0)}
      isPressed={chosen.includes(status)}
      onClick={() => show(toggled(without("waiting"), "status", status))}
    />
  );
  return (
    <div class="chips" role="group" aria-label="Status">
      <Chip count={total} isPressed={chosen.length === 0 && !isWaiting} onClick={() => {
        const next = without("status");
        next.delete("waiting");
        show(next);
      }} />
      {ofStatus("QUEUED")}
      {ofStatus("RUNNING")}
      <Chip
        look="waiting"
        count={counts && store.counts.waiting.value}
        isPressed={isWaiting}
        onClick={() => show(replaced(without("status"), "waiting", isWaiting ? "" : "true"))}
      />
      {ofStatus("COMPLETE")}
      {ofStatus("ERROR")}
      {ofStatus("CANCELED")}
    </div>
  );
}

function Chip({ look, count, isPressed, onClick }: { look?: Look; count: number | null; isPressed: boolean; onClick: () => void }) {
  return (
    <button type="button" class={look ? `chip is-${look}` : "chip"} aria-pressed={isPressed} onClick={onClick}>
      {look && <StatusIcon look={look} percentage={65} />}
      {look ? LABELS[look] : "All"}
      <span class="chip-count">{count === null ? "" : grouped(count)}</span>
    </button>
  );
}

function Search({ search }: { search: URLSearchParams }) {
  const input = useRef<HTMLInputElement>(null);
  const timer = useRef<ReturnType<typeof setTimeout>>(undefined);
  const text = search.get("text") ?? "";
  const applied = useRef(text);
  const [typed, setTyped] = useState(text);
  useEffect(() => {
    if (text !== applied.current) setTyped(text);
    applied.current = text;
  }, [text]);
  useEffect(() => () => clearTimeout(timer.current), []);
  const apply = (value: string) => {
    clearTimeout(timer.current);
    applied.current = value;
    const { search: now } = route.peek();
    const before = now.get("text") ?? "";
    // What is typed is one step of the history.
    if (value !== before) show(replaced(now, "text", value), { replace: before !== "" && value !== "" });
  };
  const type = (value: string) => {
    setTyped(value);
    clearTimeout(timer.current);
    timer.current = setTimeout(() => apply(value), TYPING_MS);
  };
  return (
    <label class="search">
      <Icon name="search" />
      <input
        ref={input}
        type="search"
        placeholder="Search latest messages"
        aria-label="Search latest messages"
        value={typed}
        onInput={(event) => type(event.currentTarget.value)}
        onKeyDown={(event) => {
          if (event.key === "Enter") apply(typed);
          if (event.key !== "Escape") return;
          event.preventDefault();
          if (typed === "") input.current?.blur();
          setTyped("");
          apply("");
        }}
      />
      <kbd aria-hidden="true">/</kbd>
    </label>
  );
}

function TypeMenu({ search }: { search: URLSearchParams }) {
  const chosen = search.getAll("agent_type");
  const found = lately.value?.by_type ?? [];
  const values = [
    ...chosen.filter((type) => !found.some((one) => one.agent_type === type)).map((type) => ({ value: type, label: type })),
    ...found.map((one) => ({ value: one.agent_type, label: one.agent_type, count: one.total })),
  ];
  return (
    <Menu label="Type" count={chosen.length}>
      {() => <Choices values={values} chosen={chosen} onToggle={(value) => toggle("agent_type", value)} />}
    </Menu>
  );
}

function ReasonMenu({ search }: { search: URLSearchParams }) {
  const chosen = search.getAll("reason");
  const found = lately.value?.by_reason ?? {};
  const values = [...new Set([...chosen, ...Object.keys(found)])].map((reason) => ({
    value: reason,
    label: words(reason),
    ...(found[reason] === undefined ? {} : { count: found[reason] }),
  }));
  return (
    <Menu label="Reason" count={chosen.length}>
      {() => <Choices values={values} chosen={chosen} onToggle={(value) => toggle("reason", value)} />}
    </Menu>
  );
}

function MetadataMenu({ store, search }: { store: ListStore; search: URLSearchParams }) {
  const chosen = search.getAll("metadata");
  return (
    <Menu label="Metadata" count={chosen.length}>
      {(close) => (
        <form
          class="menu-form"
          onSubmit={(event) => {
            event.preventDefault();
            const value = String(new FormData(event.currentTarget).get("metadata")).trim();
            if (/^[^=]+=/.test(value) && !chosen.includes(value)) toggle("metadata", value);
            close();
          }}
        >
          <label>
            <span>key=text, or key:=5 for a number</span>
            <input class="field" name="metadata" required pattern="[^=]+=.*" placeholder="tenant=acme" list="known-metadata" autoComplete="off" />
          </label>
          <datalist id="known-metadata">
            {store.knownMetadata().map((one) => (
              <option key={one} value={one} />
            ))}
          </datalist>
          <button type="submit" class="button">
            Add filter
          </button>
        </form>
      )}
    </Menu>
  );
}

function TimeMenu({ search }: { search: URLSearchParams }) {
  const since = search.get("since") ?? "";
  const hasDates = search.has("created_after") || search.has("created_before");
  const choose = (span: string) => {
    const next = replaced(search, "since", span);
    next.delete("created_after");
    next.delete("created_before");
    show(next);
  };
  return (
    <Menu label="Created" count={since || hasDates ? 1 : 0}>
      {(close) => (
        <>
          {[["", "Any time"] as const, ...Object.entries(SPANS).map(([span, { label }]) => [span, label] as const)].map(([span, label]) => (
            <label key={span} class="choice">
              <input type="radio" name="since" checked={span === since && !hasDates} onChange={() => choose(span)} />
              {label}
            </label>
          ))}
          <form
            class="menu-form"
            onSubmit={(event) => {
              event.preventDefault();
              const data = new FormData(event.currentTarget);
              let next = replaced(search, "since", "");
              for (const name of ["created_after", "created_before"] as const) {
                const value = String(data.get(name));
                next = replaced(next, name, value && new Date(value).toISOString());
              }
              show(next);
              close();
            }}
          >
            <label>
              <span>From</span>
              <input class="field" type="datetime-local" name="created_after" defaultValue={local(search.get("created_after"))} />
            </label>
            <label>
              <span>To</span>
              <input class="field" type="datetime-local" name="created_before" defaultValue={local(search.get("created_before"))} />
            </label>
            <button type="submit" class="button">
              Apply
            </button>
          </form>
        </>
      )}
    </Menu>
  );
}

/** A moment as the value of an input of local time. */
function local(iso: string | null): string {
  if (iso === null) return "";
  const time = new Date(iso);
  return new Date(time.getTime() - time.getTimezoneOffset() * 60_000).toISOString().slice(0, 16);
}

/** The filters other than the status, each with a button that removes it. */
function ActiveFilters({ search }: { search: URLSearchParams }) {
  const repeated = REPEATED.filter((name) => name !== "status").flatMap((name) =>
    search.getAll(name).map((value) => ({ text: textOf(name, value), remove: () => toggle(name, value) })),
  );
  const dates = (["created_after", "created_before"] as const)
    .filter((name) => search.get(name))
    .map((name) => ({
      text: `${name === "created_after" ? "from" : "to"} ${new Date(search.get(name)!).toLocaleString()}`,
      remove: () => replace(name, ""),
    }));
  const since = SPANS[search.get("since") ?? ""];
  const all = [...repeated, ...(since ? [{ text: since.label, remove: () => replace("since", "") }] : []), ...dates];
  if (!hasFilters(search)) return null;
  return (
    <>
      {all.map(({ text, remove }) => (
        <button key={text} type="button" class="active-filter" aria-label={`Remove filter ${text}`} onClick={remove}>
          <span class="ellipsis">{text}</span>
          <Icon name="close" />
        </button>
      ))}
      <button type="button" class="button is-quiet" onClick={clearFilters}>
        Clear filters
      </button>
    </>
  );
}

function textOf(name: Repeated, value: string): string {
  if (name === "agent_type" || name === "metadata") return value;
  return `${words(name)} ${name === "reason" ? words(value) : value}`;
}

function BulkMenu({ onBulk }: { onBulk: (action: BulkAction) => void }) {
  return (
    <Menu label="Actions">
      {(close) => {
        const item = (action: BulkAction, text: string) => (
          <button
            type="button"
            class="menu-item"
            onClick={() => {
              close();
              onBulk(action);
            }}
          >
            {text}
          </button>
        );
        return (
          <>
            {item("cancel", "Cancel all that match…")}
            {session.value.may_retry && item("retry", "Retry all that match…")}
          </>
        );
      }}
    </Menu>
  );
}
