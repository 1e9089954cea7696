import type { RefObject } from "preact";
import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";

import type { Entry } from "./feed";

export interface Row {
  key: number;
  index: number;
  log: Entry;
  /** The first log of an attempt that is not the first one. */
  isAttempt: boolean;
  /** Its status is not that of the log before it. */
  isChange: boolean;
}

export function rowsOf(logs: readonly Entry[]): readonly Row[] {
  return logs.map((log, index) => {
    const before = logs[index - 1];
    return {
      key: log.seq,
      index,
      log,
      isAttempt: before !== undefined && before.attempt !== log.attempt,
      isChange: before === undefined || before.status !== log.status || before.attempt !== log.attempt,
    };
  });
}

const ESTIMATE = 29;
const OVERSCAN = 160;
/** How far the viewer scrolls before other rows are rendered. */
const STRIDE = 200;
const AT_BOTTOM = 8;
const MOST_CORRECTIONS = 8;

interface Options {
  rows: readonly Row[];
  follows: boolean;
  onFollow: (follows: boolean) => void;
  picked: { seq: number } | null;
}

interface Window {
  viewport: RefObject<HTMLDivElement | null>;
  list: RefObject<HTMLOListElement | null>;
  /** The rows to render, and the heights of those before and after them. */
  first: number;
  last: number;
  before: number;
  after: number;
}

/**
 * Render only the rows that can be seen, whatever their heights: a row's height is estimated until it was rendered.
 *
 * While `follows`, the end stays in view. Otherwise the row at the top stays where it is.
 */
export function useWindow({ rows, follows, onFollow, picked }: Options): Window {
  const viewport = useRef<HTMLDivElement>(null);
  const list = useRef<HTMLOListElement>(null);
  const heights = useRef(new Map<number, number>()).current;
  const goal = useRef<{ seq: number; corrections: number } | null>(null);
  const lastTop = useRef(0);
  const [place, setPlace] = useState({ top: 0, height: 600, measured: 0 });

  const offsets = useMemo(() => {
    const sums = new Float64Array(rows.length + 1);
    for (const [i, row] of rows.entries()) sums[i + 1] = sums[i]! + (heights.get(row.key) ?? ESTIMATE);
    return sums;
  }, [rows, place.measured]);
  const total = offsets[rows.length]!;
  const top = follows ? Math.max(0, total - place.height) : place.top;
  const first = find(offsets, top - OVERSCAN);
  const last = Math.min(rows.length, find(offsets, top + STRIDE + place.height + OVERSCAN) + 1);

  useEffect(() => {
    const element = viewport.current!;
    const onScroll = () => {
      const { scrollTop, scrollHeight, clientHeight } = element;
      const isAtBottom = scrollHeight - scrollTop - clientHeight < AT_BOTTOM;
      // Only the viewer moves away from `lastTop`: changes of the content set it.
      if (isAtBottom && scrollTop > lastTop.current + 1) onFollow(true);
      else if (!isAtBottom && scrollTop < lastTop.current - 1) onFollow(false);
      lastTop.current = scrollTop;
      const place = scrollTop - (scrollTop % STRIDE);
      setPlace((known) => (known.top === place ? known : { ...known, top: place }));
    };
    let width = 0;
    const observer = new ResizeObserver(() => {
      if (element.clientWidth !== width) heights.clear();
      width = element.clientWidth;
      setPlace((known) => ({ top: element.scrollTop, height: element.clientHeight, measured: known.measured + 1 }));
    });
    element.addEventListener("scroll", onScroll, { passive: true });
    observer.observe(element);
    return () => {
      element.removeEventListener("scroll", onScroll);
      observer.disconnect();
    };
  }, [onFollow]);

  useEffect(() => {
    if (picked !== null) goal.current = { seq: picked.seq, corrections: MOST_CORRECTIONS };
    setPlace((known) => ({ ...known, measured: known.measured + 1 }));
  }, [picked]);

  useLayoutEffect(() => {
    const element = viewport.current!;
    const moved = measure(list.current!, heights, offsets, first, element.scrollTop);
    if (follows) element.scrollTop = element.scrollHeight;
    else if (goal.current !== null) aim(element, goal, rows, offsets);
    else if (moved.above !== 0) element.scrollTop += moved.above;
    lastTop.current = element.scrollTop;
    if (moved.changed || goal.current !== null) {
      setPlace((known) => ({ ...known, top: element.scrollTop, measured: known.measured + 1 }));
    }
  });

  return { viewport, list, first, last, before: offsets[first]!, after: total - offsets[last]! };
}

/** Bring the wanted row to the upper third; its place is known better with each row that is measured. */
function aim(
  element: HTMLElement,
  goal: { current: { seq: number; corrections: number } | null },
  rows: readonly Row[],
  offsets: Float64Array,
): void {
  const wanted = goal.current!;
  const index = rows.findIndex((row) => row.key === wanted.seq);
  wanted.corrections -= 1;
  if (index >= 0) element.scrollTop = offsets[index]! - element.clientHeight / 3;
  if (wanted.corrections === 0) goal.current = null;
}

function measure(
  list: HTMLElement,
  heights: Map<number, number>,
  offsets: Float64Array,
  first: number,
  scrollTop: number,
): { changed: boolean; above: number } {
  let changed = false;
  let above = 0;
  for (const [i, item] of [...list.children].entries()) {
    const key = Number((item as HTMLElement).dataset.key);
    const height = item.getBoundingClientRect().height;
    const known = heights.get(key);
    if (height === 0 || (known !== undefined && Math.abs(known - height) < 0.5)) continue;
    heights.set(key, height);
    const delta = height - (known ?? ESTIMATE);
    if (Math.abs(delta) < 0.5) continue;
    changed = true;
    if (offsets[first + i]! < scrollTop) above += delta;
  }
  return { changed, above };
}

/** The last index whose offset is at most `y`. */
function find(offsets: Float64Array, y: number): number {
  let low = 0;
  let high = offsets.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (offsets[middle]! <= y) low = middle;
    else high = middle - 1;
  }
  return low;
}
