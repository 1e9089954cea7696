import type { RefObject } from "preact";
import { useLayoutEffect, useMemo, useRef } from "preact/hooks";

import { href } from "../route";
import { grouped } from "../shared/format";
import { Icon } from "../shared/icons";
import { session } from "../shared/session";
import { Row, type RowActions } from "./row";
import type { ListStore } from "./store";
import { toggle } from "./toolbar";
import { useWindow, type Window } from "./window";

const OVERSCAN = 8;

export interface TableHandle {
  /** Move the cursor by so many rows. */
  move: (by: number) => void;
}

interface TableProps {
  store: ListStore;
  scroller: RefObject<HTMLElement | null>;
  handle: { current: TableHandle | null };
  isStale: boolean;
}

/** The rows that can be seen, of as many as there are. */
export function Table({ store, scroller, handle, isStale }: TableProps) {
  store.version.value;
  const view = useWindow(store, scroller);
  const actions = useActions(store);
  handle.current = useCursor(store, view);
  const { ids } = store.rows;
  const maySelect = session.value.may_act;
  const showNew = () => {
    view.scrollToTop();
    store.showHeld();
  };
  return (
    <>
      <NewRows store={store} onShow={showNew} />
      <div
        class={`table${maySelect ? " may-select" : ""}${isStale ? " is-stale" : ""}`}
        role="table"
        aria-label="Activities"
        aria-rowcount={store.rows.hasMore ? -1 : ids.length + 1}
        aria-busy={isStale}
      >
        <Columns store={store} maySelect={maySelect} />
        <div
          class="rows"
          role="rowgroup"
          ref={view.body}
          style={{ height: `${ids.length * view.height.value}px` }}
          onPointerMove={() => store.touch()}
          onPointerDown={() => store.touch()}
        >
          {indexesOf(store, view).map((index) => (
            <Row
              key={ids[index]}
              activity={store.rows.get(ids[index]!)!}
              index={index}
              top={index * view.height.value}
              isCursor={ids[index] === store.cursorId.value}
              isSelected={store.selected.value.has(ids[index]!)}
              hasLeft={store.rows.left.has(ids[index]!)}
              maySelect={maySelect}
              actions={actions}
            />
          ))}
        </div>
      </div>
      <More store={store} />
    </>
  );
}

/** The rows to draw: those that can be seen, some around them, and the one of the cursor, which keeps the focus. */
function indexesOf(store: ListStore, { range }: Window): number[] {
  const { ids } = store.rows;
  const first = Math.max(0, range.value.first - OVERSCAN);
  const end = Math.min(ids.length, range.value.last + OVERSCAN);
  const indexes = Array.from({ length: Math.max(0, end - first) }, (_, i) => first + i);
  const cursor = store.cursorId.value === null ? -1 : ids.indexOf(store.cursorId.value);
  if (cursor !== -1 && (cursor < first || cursor >= end)) indexes.push(cursor);
  return indexes;
}

/** The row that the keys act on. Its link has the focus. */
function useCursor(store: ListStore, view: Window): TableHandle {
  // After a detail the focus, which was in it, returns to the row.
  const wantsFocus = useRef(store.cursorId.peek() !== null && document.activeElement === document.body);
  useLayoutEffect(() => {
    if (!wantsFocus.current) return;
    wantsFocus.current = false;
    view.body.current?.querySelector<HTMLElement>(".row.is-cursor a")?.focus({ preventScroll: true });
  });
  return {
    move: (by) => {
      store.touch();
      const { ids } = store.rows;
      const { first, last, isAtTop } = store.viewport;
      const at = store.cursorId.peek() === null ? -1 : ids.indexOf(store.cursorId.peek()!);
      // A cursor that was scrolled out of sight starts again at the first row that is seen whole.
      const isSeen = at !== -1 && at >= first - 1 && at <= last;
      const next = isSeen ? Math.min(ids.length - 1, Math.max(0, at + by)) : first + (isAtTop ? 0 : 1);
      view.reveal(next);
      wantsFocus.current = true;
      store.cursorId.value = ids[next] ?? null;
      store.version.value += 1;
    },
  };
}

function useActions(store: ListStore): RowActions {
  const anchor = useRef<string | null>(null);
  return useMemo<RowActions>(
    () => ({
      hrefOf: (id) => href(id, store.search),
      onFocus: (id) => (store.cursorId.value = id),
      onFilter: (metadata) => toggle("metadata", metadata),
      onSelect: (id, isSelected, isRange) => {
        const { ids } = store.rows;
        const [from, to] = [ids.indexOf(anchor.current ?? id), ids.indexOf(id)].sort((a, b) => a - b) as [number, number];
        store.select(isRange && from !== -1 ? ids.slice(from, to + 1) : [id], isSelected);
        anchor.current = id;
      },
    }),
    [store],
  );
}

function Columns({ store, maySelect }: { store: ListStore; maySelect: boolean }) {
  const { ids } = store.rows;
  const isAll = ids.length > 0 && ids.every((id) => store.selected.value.has(id));
  return (
    <div class="columns" role="rowgroup">
      <div class="column-row" role="row" aria-rowindex={1}>
        {maySelect && (
          <span class="cell-select" role="columnheader">
            <input
              type="checkbox"
              aria-label="Select all loaded activities"
              title={`Select the ${grouped(ids.length)} loaded`}
              checked={isAll}
              onClick={(event) => store.select(store.rows.ids, event.currentTarget.checked)}
            />
          </span>
        )}
        <span role="columnheader">Status</span>
        <span role="columnheader">Activity</span>
        <span role="columnheader">Latest message</span>
        <span role="columnheader">Progress</span>
        <span class="is-end" role="columnheader">Duration</span>
        <span class="is-end" role="columnheader">Created</span>
      </div>
    </div>
  );
}

function NewRows({ store, onShow }: { store: ListStore; onShow: () => void }) {
  const count = store.rows.held.size;
  if (count === 0 || store.viewport.isAtTop) return null;
  return (
    <div class="new-rows" role="presentation">
      <button type="button" class="new-rows-button" aria-label={`Show ${count} new`} onClick={onShow}>
        <Icon name="up" />
        {grouped(count)} new
      </button>
    </div>
  );
}

function More({ store }: { store: ListStore }) {
  const more = store.more.value;
  if (!(more instanceof Error)) return <p class="more">{more === "loading" ? "Loading more" : ""}</p>;
  return (
    <p class="more">
      {more.message}{" "}
      <button
        type="button"
        class="button"
        onClick={() => {
          store.more.value = "idle";
          void store.loadMore();
        }}
      >
        Try again
      </button>
    </p>
  );
}
