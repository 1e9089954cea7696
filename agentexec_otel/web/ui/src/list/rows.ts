import type { Activity } from "../api";
import type { Order } from "./query";

/** The activities of the list: those that are displayed, in order, and those that wait for a moment to appear or to go. */
export class Rows {
  /** The displayed ones, in order. A new array with each change of the order. */
  ids: readonly string[] = [];
  /** What is new and not displayed yet. */
  readonly held = new Map<string, Activity>();
  /** When those that do not meet the filters any longer were said to have left, in milliseconds. */
  readonly left = new Map<string, number>();
  /** Whether activities follow behind the last displayed one. */
  hasMore = true;
  private readonly displayed = new Map<string, Activity>();

  constructor(readonly order: Order) {}

  get(id: string): Activity | undefined {
    return this.displayed.get(id);
  }

  /** Take an activity that is new or has changed. Changes are displayed in place, what is new is held. */
  put(activity: Activity): void {
    const id = activity.agent_id;
    if (this.displayed.has(id)) {
      this.displayed.set(id, activity);
      this.left.delete(id);
    } else if (this.held.has(id) || !this.hasMore || this.place(activity) < this.ids.length) {
      this.held.set(id, activity);
    }
  }

  /** Update an activity that has left, as it is now. */
  update(activity: Activity): void {
    if (this.displayed.has(activity.agent_id)) this.displayed.set(activity.agent_id, activity);
  }

  leave(id: string, now: number): void {
    this.held.delete(id);
    if (this.displayed.has(id) && !this.left.has(id)) this.left.set(id, now);
  }

  /** Append a page. */
  append(page: readonly Activity[], hasMore: boolean): void {
    const added = page.filter((one) => !this.displayed.has(one.agent_id));
    for (const one of page) {
      this.displayed.set(one.agent_id, one);
      this.held.delete(one.agent_id);
    }
    this.hasMore = hasMore;
    if (added.length > 0) this.ids = [...this.ids, ...added.map((one) => one.agent_id)];
  }

  /** Replace everything by the first pages. What is newer than the first row is held, or displayed at once. */
  replace(pages: readonly Activity[], hasMore: boolean, showsNew: boolean): void {
    const found = new Map(pages.map((one) => [one.agent_id, one]));
    const first = this.ids[0] === undefined ? undefined : this.displayed.get(this.ids[0]);
    const isNew = (one: Activity) =>
      !showsNew && first !== undefined && this.order === "newest" && keyOf(one) > keyOf(first);
    this.held.clear();
    this.left.clear();
    this.displayed.clear();
    for (const [id, one] of found) (isNew(one) ? this.held : this.displayed).set(id, one);
    this.ids = [...this.displayed.keys()];
    this.hasMore = hasMore;
  }

  /** Display what is held from a place on: 0 for all of it. */
  show(from: number): boolean {
    const shown = [...this.held.values()].filter((one) => this.place(one) >= from);
    if (shown.length === 0) return false;
    const ids = [...this.ids];
    for (const one of shown) {
      this.held.delete(one.agent_id);
      ids.splice(this.placeIn(ids, one), 0, one.agent_id);
      this.displayed.set(one.agent_id, one);
    }
    this.ids = ids;
    return true;
  }

  /** Remove what left before a moment. Returns how many of them stood before a place. */
  drop(before: number, place: number): number {
    const gone = new Set([...this.left].filter(([, since]) => since <= before).map(([id]) => id));
    if (gone.size === 0) return 0;
    const above = this.ids.slice(0, place).filter((id) => gone.has(id)).length;
    this.ids = this.ids.filter((id) => !gone.has(id));
    for (const id of gone) {
      this.displayed.delete(id);
      this.left.delete(id);
    }
    return above;
  }

  /** Where an activity belongs among the displayed ones. */
  private place(activity: Activity): number {
    return this.placeIn(this.ids, activity);
  }

  private placeIn(ids: readonly string[], activity: Activity): number {
    const key = keyOf(activity);
    let [low, high] = [0, ids.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      const other = keyOf(this.displayed.get(ids[middle]!)!);
      if (this.order === "newest" ? other > key : other < key) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

/** The moment of creation as text that sorts: the API leaves out a fraction of zero. */
const keyOf = ({ created_at }: Activity): string =>
  created_at.length === 20 ? `${created_at.slice(0, 19)}.000000Z` : created_at;
