import { signal } from "@preact/signals";

import { type Activity, ApiError, getActivity, getPage, type Query } from "../api";
import { learnClock, now } from "../shared/clock";
import { sayError } from "../shared/notice";
import { follow } from "../stream";
import { filtersOf, metadataFilter, orderOf } from "./query";
import { Rows } from "./rows";
import { Counts } from "./counts";

const PAGE = 200;
const MOST_AGAIN = 1_000;
const STREAM_WAIT_MS = 1_000;
const LEFT_SHOWN_MS = 3_000;
const IDLE_MS = 1_200;
const SETTLE_MS = 400;
const MOST_LOOKUPS = 20;
const SUGGESTED_FROM = 200;
const MOST_SUGGESTED = 50;

let lists = 0;

/** What the list's window shows; rows move only outside of it, or when nobody is about to click. */
export interface Viewport {
  first: number;
  last: number;
  isAtTop: boolean;
}

/** The list for one search: loads pages, follows the stream, and moves rows when that disturbs nobody. */
export class ListStore {
  readonly key = ++lists;
  readonly filters: Query;
  readonly rows: Rows;
  readonly counts: Counts;
  /** Counts the changes of `rows`, at most one a frame. */
  readonly version = signal(0);
  readonly state = signal<"loading" | "loaded" | Error>("loading");
  readonly more = signal<"idle" | "loading" | Error>("idle");
  readonly selected = signal<ReadonlySet<string>>(new Set());
  readonly cursorId = signal<string | null>(null);
  scrollTop = 0;
  viewport: Viewport = { first: 0, last: 0, isAtTop: true };
  /** Called with the number of rows that were removed above the window. */
  onRemoved: (count: number) => void = () => {};

  private nextPage: string | null = "";
  private lastEvent: string | null = null;
  private touchedAt = -Infinity;
  private frame = 0;
  private lookups = 0;
  private isConnected = false;
  /** Events that come while pages are being loaded. */
  private early: (() => void)[] | null = null;
  private close: () => void = () => {};
  private loads = 0;

  constructor(
    readonly search: URLSearchParams,
    before: ListStore | null,
  ) {
    this.filters = filtersOf(search, now.peek());
    this.rows = new Rows(orderOf(search));
    this.counts = new Counts(this.filters, before?.counts ?? null);
  }

  /** Follow the stream, from where it was left. Returns the function that stops. */
  connect(): () => void {
    const fallback = setTimeout(() => this.state.peek() === "loading" && void this.load(), STREAM_WAIT_MS);
    const resumed = this.lastEvent;
    let isFresh = resumed === null;
    this.close = follow("events", { ...this.filters, after: resumed }, {
      ready: (_, id) => {
        this.seen(id);
        if (isFresh) void this.load();
        isFresh = false;
      },
      activity: (data, id) => {
        this.seen(id);
        const activity = JSON.parse(data) as Activity;
        this.apply(() => this.rows.put(activity), activity);
      },
      left: (data, id) => {
        this.seen(id);
        const { agent_id } = JSON.parse(data) as { agent_id: string };
        this.apply(() => this.leave(agent_id));
      },
      reset: (_, id) => {
        this.seen(id);
        void this.load();
      },
    });
    const settle = setInterval(() => this.settle(), SETTLE_MS);
    this.isConnected = true;
    if (this.state.peek() !== "loading") this.counts.start();
    return () => {
      clearTimeout(fallback);
      clearInterval(settle);
      this.counts.stop();
      this.isConnected = false;
      this.close();
    };
  }

  /** Load the first pages, as many as are being looked at. */
  async load(): Promise<void> {
    const load = ++this.loads;
    this.early = [];
    const wanted = Math.min(MOST_AGAIN, this.viewport.last + 1);
    const found: Activity[] = [];
    let cursor: string | null = "";
    try {
      do {
        const page = await getPage(this.pageQuery(cursor));
        if (load !== this.loads) return;
        found.push(...page.items);
        cursor = page.next_cursor;
      } while (cursor !== null && found.length < wanted);
      found.forEach(learnClock);
      this.nextPage = cursor;
      this.rows.replace(found, cursor !== null, this.viewport.isAtTop);
      // Rows come first: counts take the database longer.
      if (this.state.peek() !== "loaded" && this.isConnected) this.counts.start();
      this.state.value = "loaded";
    } catch (error) {
      if (load !== this.loads) return;
      this.fail(error);
    }
    const early = this.early;
    this.early = null;
    for (const apply of early) apply();
    this.changed();
  }

  /** Load the next page. */
  async loadMore(): Promise<void> {
    if (this.nextPage === null || this.nextPage === "" || this.more.peek() === "loading" || this.early !== null) return;
    const load = this.loads;
    this.more.value = "loading";
    try {
      const page = await getPage(this.pageQuery(this.nextPage));
      if (load !== this.loads) return;
      page.items.forEach(learnClock);
      this.nextPage = page.next_cursor;
      this.rows.append(page.items, page.next_cursor !== null);
      this.more.value = "idle";
      this.changed();
    } catch (error) {
      this.more.value = asError(error);
    } finally {
      if (this.more.peek() === "loading") this.more.value = "idle";
    }
  }

  /** Note that the viewer moves the pointer over the rows, or presses keys. */
  touch(): void {
    this.touchedAt = performance.now();
  }

  /** Display everything that is held. */
  showHeld(): void {
    if (this.rows.show(0)) this.changed();
  }

  select(ids: Iterable<string>, isSelected: boolean): void {
    const next = new Set(this.selected.peek());
    for (const id of ids) {
      if (isSelected) next.add(id);
      else next.delete(id);
    }
    this.selected.value = next;
  }

  /** Metadata of the first rows, as filters to suggest. */
  knownMetadata(): string[] {
    const found = new Set<string>();
    for (const id of this.rows.ids.slice(0, SUGGESTED_FROM))
      for (const [key, value] of Object.entries(this.rows.get(id)?.metadata ?? {})) {
        const filter = metadataFilter(key, value);
        if (filter !== null) found.add(filter);
      }
    return [...found].sort().slice(0, MOST_SUGGESTED);
  }

  private pageQuery(cursor: string): Query {
    return { ...this.filters, order: this.rows.order, page_size: PAGE, cursor };
  }

  private seen(id: string): void {
    if (id !== "") this.lastEvent = id;
  }

  private apply(change: () => void, activity?: Activity): void {
    if (activity) learnClock(activity);
    if (this.early !== null) this.early.push(change);
    else change();
    this.changed();
    this.counts.refreshSoon();
  }

  private leave(id: string): void {
    this.rows.leave(id, now.peek());
    if (!this.rows.get(id) || this.lookups >= MOST_LOOKUPS) return;
    this.lookups += 1;
    void getActivity(id)
      .then(
        (activity) => {
          this.rows.update(activity);
          this.changed();
        },
        () => {},
      )
      .finally(() => (this.lookups -= 1));
  }

  /** Show what is held and remove what has left, where it moves nothing that is looked at. */
  private settle(): void {
    const isIdle = performance.now() - this.touchedAt > IDLE_MS;
    const { first, last, isAtTop } = this.viewport;
    const hasShown = this.rows.show(isIdle && isAtTop ? 0 : last + 1);
    const before = this.rows.ids;
    const above = isIdle ? this.rows.drop(now.peek() - LEFT_SHOWN_MS, first) : 0;
    if (!hasShown && before === this.rows.ids) return;
    this.changed();
    if (above > 0) this.onRemoved(above);
  }

  private changed(): void {
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      if (this.viewport.isAtTop) this.settle();
      this.version.value += 1;
    });
  }

  private fail(error: unknown): void {
    // A stream for a request that is refused would be opened again and again.
    const isRefused = error instanceof ApiError && error.status < 500;
    if (isRefused) this.close();
    if (isRefused || this.rows.ids.length === 0) this.state.value = asError(error);
    else sayError(error);
  }
}

const asError = (error: unknown): Error =>
  error instanceof ApiError ? error : new Error("The server cannot be reached.");
