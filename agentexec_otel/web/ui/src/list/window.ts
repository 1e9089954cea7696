import { type Signal, useSignal } from "@preact/signals";
import { type RefObject } from "preact";
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";

import type { ListStore } from "./store";

/** Rows behind the last visible one from which on the next page is loaded. */
const AHEAD = 120;
const NARROW = matchMedia("(max-width: 700px)");
/** The heights of a row in list.css. */
const ROW = 54;
const NARROW_ROW = 66;
/** Pixels by which a list that is scrolled still counts as one that is not. */
const AT_TOP = 4;

const rowHeight = (): number => (NARROW.matches ? NARROW_ROW : ROW);

/** The part of the rows that can be seen. */
export interface Window {
  body: RefObject<HTMLDivElement | null>;
  range: Signal<{ first: number; last: number }>;
  height: Signal<number>;
  /** Scroll by as little as shows a row whole. */
  reveal: (index: number) => void;
  scrollToTop: () => void;
}

/** Follow what can be seen of the rows, load what comes next, and keep the place for the way back. */
export function useWindow(store: ListStore, scroller: RefObject<HTMLElement | null>): Window {
  const body = useRef<HTMLDivElement>(null);
  const range = useSignal({ first: 0, last: 40 });
  const height = useSignal(rowHeight());

  /** The first visible pixel of the rows, and how many are visible: on wide pages the head covers some. */
  const visible = () => {
    const { scrollTop, clientHeight } = scroller.current!;
    const above = body.current!.offsetTop;
    return NARROW.matches ? { from: scrollTop - above, space: clientHeight } : { from: scrollTop, space: clientHeight - above };
  };
  const measure = () => {
    const { from, space } = visible();
    const first = Math.max(0, Math.floor(from / height.peek()));
    const last = Math.max(first, Math.ceil((from + space) / height.peek()));
    store.scrollTop = scroller.current!.scrollTop;
    store.viewport = { first, last, isAtTop: from <= AT_TOP };
    const before = range.peek();
    if (before.first !== first || before.last !== last) range.value = { first, last };
    if (last + AHEAD > store.rows.ids.length && !(store.more.peek() instanceof Error)) void store.loadMore();
  };

  useLayoutEffect(() => {
    const main = scroller.current!;
    main.scrollTop = store.scrollTop;
    measure();
    const observer = new ResizeObserver(() => {
      height.value = rowHeight();
      measure();
    });
    observer.observe(main);
    main.addEventListener("scroll", measure, { passive: true });
    store.onRemoved = (count) => (main.scrollTop -= count * height.peek());
    return () => {
      observer.disconnect();
      main.removeEventListener("scroll", measure);
    };
  }, []);
  useEffect(measure, [store.rows.ids, store.more.value]);

  return {
    body,
    range,
    height,
    reveal: (index) => {
      const { from, space } = visible();
      const [top, bottom] = [index * height.peek(), (index + 1) * height.peek()];
      if (top < from) scroller.current!.scrollTop -= from - top;
      else if (bottom > from + space) scroller.current!.scrollTop += bottom - from - space;
      measure();
    },
    scrollToTop: () => {
      scroller.current!.scrollTop = NARROW.matches ? body.current!.offsetTop : 0;
      measure();
    },
  };
}
