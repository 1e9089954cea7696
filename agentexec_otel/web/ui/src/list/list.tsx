import type { RefObject } from "preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";

import { go, href, route } from "../route";
import { useKeys } from "../shared/keys";
import { session } from "../shared/session";
import { type Bulk, BulkDialog, Selection } from "./bulk";
import { Failed, NothingFound, Welcome } from "./empty";
import { hasFilters } from "./query";
import { ListStore } from "./store";
import { Table, type TableHandle } from "./table";
import { clearFilters, Toolbar } from "./toolbar";

/** The list that was shown last. It is kept while a detail is shown, with its rows, its place and its cursor. */
let latest: ListStore | null = null;

function storeFor(search: URLSearchParams): ListStore {
  if (latest?.search.toString() !== search.toString()) latest = new ListStore(search, latest);
  return latest;
}

export function List() {
  const { search } = route.value;
  const store = useMemo(() => storeFor(search), [search.toString()]);
  const [bulk, setBulk] = useState<Bulk | null>(null);
  const main = useRef<HTMLElement>(null);
  const table = useRef<TableHandle>(null);
  const [tries, setTries] = useState(0);
  useEffect(() => store.connect(), [store, tries]);
  useEffect(() => {
    const head = main.current!.querySelector<HTMLElement>(".list-head")!;
    const observer = new ResizeObserver(() => main.current?.style.setProperty("--head", `${head.offsetHeight}px`));
    observer.observe(head);
    return () => observer.disconnect();
  }, []);
  useListKeys(store, table);
  return (
    <main class="list" ref={main}>
      <h1 class="visually-hidden">Activities</h1>
      <div class="list-head" hidden={isUnused(store)}>
        <Toolbar store={store} onBulk={(action) => setBulk({ action, ids: null })} />
      </div>
      <Content store={store} scroller={main} table={table} onRetry={() => setTries(tries + 1)} />
      <Selection store={store} onBulk={setBulk} />
      {bulk !== null && <BulkDialog store={store} bulk={bulk} onClose={() => setBulk(null)} />}
    </main>
  );
}

/** Whether there is no activity at all, so that there is nothing to filter. */
function isUnused({ state, version, rows, search }: ListStore): boolean {
  version.value;
  return state.value === "loaded" && rows.ids.length === 0 && !hasFilters(search);
}

interface ContentProps {
  store: ListStore;
  scroller: RefObject<HTMLElement | null>;
  table: { current: TableHandle | null };
  onRetry: () => void;
}

/** The rows, or what there is to say instead. The rows of the search before stay until there are others. */
function Content({ store, scroller, table, onRetry }: ContentProps) {
  const shown = useRef(store);
  store.version.value;
  const state = store.state.value;
  const isStale = state === "loading" && shown.current !== store;
  if (state instanceof Error) {
    const retry = () => {
      onRetry();
      void store.load();
    };
    return <Failed error={state} onRetry={retry} />;
  }
  if (!isStale) shown.current = store;
  if (state === "loading" && !isStale) return <p class="loading">Loading activities</p>;
  if (isUnused(shown.current)) return <Welcome />;
  if (shown.current.rows.ids.length === 0 && !isStale) return <NothingFound />;
  return <Table key={shown.current.key} store={shown.current} scroller={scroller} handle={table} isStale={isStale} />;
}

function useListKeys(store: ListStore, table: { current: TableHandle | null }): void {
  const move = (by: number) => (event: KeyboardEvent) => {
    event.preventDefault();
    table.current?.move(by);
  };
  useKeys({
    j: move(1),
    k: move(-1),
    "/": (event) => {
      event.preventDefault();
      document.querySelector<HTMLInputElement>(".search input")?.select();
    },
    x: () => {
      const id = store.cursorId.peek();
      if (id !== null && session.peek().may_act) store.select([id], !store.selected.peek().has(id));
    },
    Enter: (event) => {
      const id = store.cursorId.peek();
      if (id !== null && event.target === document.body) go(href(id, store.search));
    },
    Escape: () => {
      if (store.selected.peek().size > 0) store.selected.value = new Set();
      else if (hasFilters(store.search)) clearFilters();
      else store.cursorId.value = null;
    },
  });
}
