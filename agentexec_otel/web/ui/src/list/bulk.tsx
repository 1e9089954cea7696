import { useEffect, useState } from "preact/hooks";

import { type Activity, cancelMany, getStats, type Query, retryMany, type Status } from "../api";
import { Dialog } from "../shared/dialog";
import { plural } from "../shared/format";
import { Icon } from "../shared/icons";
import { say, sayError } from "../shared/notice";
import { session } from "../shared/session";
import type { ListStore } from "./store";

export type BulkAction = "cancel" | "retry";

/** Which activities an action takes: these, or all that meet the filters. */
export interface Bulk {
  action: BulkAction;
  ids: readonly string[] | null;
}

const TAKES: Record<BulkAction, readonly Status[]> = {
  cancel: ["QUEUED", "RUNNING"],
  retry: ["ERROR", "CANCELED"],
};
const VERBS = { cancel: { now: "Cancel", done: "Canceled" }, retry: { now: "Retry", done: "Retried" } } as const;
/** Ids of a request, whose address must stay below what proxies take. */
const MOST_IDS = 100;

export const takes = (action: BulkAction, { status }: Activity): boolean => TAKES[action].includes(status);

/** What can be done with the selection. */
export function Selection({ store, onBulk }: { store: ListStore; onBulk: (bulk: Bulk) => void }) {
  const ids = [...store.selected.value];
  if (ids.length === 0) return null;
  const idsFor = (action: BulkAction) =>
    ids.filter((id) => {
      const activity = store.rows.get(id);
      return activity !== undefined && takes(action, activity);
    });
  const button = (action: BulkAction) => {
    const taken = idsFor(action);
    return (
      <button
        type="button"
        class="button"
        aria-label={`${VERBS[action].now} ${taken.length} selected`}
        disabled={taken.length === 0}
        onClick={() => onBulk({ action, ids: taken })}
      >
        <Icon name={action === "cancel" ? "stop" : "retry"} />
        {VERBS[action].now} {taken.length}
      </button>
    );
  };
  return (
    <div class="selection" role="region" aria-label="Selection">
      <span>{ids.length} selected</span>
      {button("cancel")}
      {session.value.may_retry && button("retry")}
      <button type="button" class="button is-quiet is-icon" aria-label="Clear selection" onClick={() => (store.selected.value = new Set())}>
        <Icon name="close" />
      </button>
    </div>
  );
}

/** Asks with the number first, then acts. */
export function BulkDialog({ store, bulk, onClose }: { store: ListStore; bulk: Bulk; onClose: () => void }) {
  const { action, ids } = bulk;
  const verb = VERBS[action];
  const [count, setCount] = useState(ids?.length ?? null);
  const [isBusy, setIsBusy] = useState(false);
  const filters = narrowed(store.filters, action);
  useEffect(() => {
    if (ids !== null) return;
    const counted = filters === null ? Promise.resolve(0) : getStats(filters).then((found) => found.total);
    counted.then(setCount, (error: unknown) => {
      sayError(error);
      onClose();
    });
  }, []);
  if (count === null) return null;
  const activities = plural(count, "activity", "activities");
  if (count === 0)
    return (
      <Dialog title={`Nothing to ${action}`} onClose={onClose}>
        <p>{action === "cancel" ? "No activity that matches is queued or running." : "No activity that matches has failed or was canceled."}</p>
        <div class="dialog-actions">
          <button type="button" class="button" onClick={onClose}>
            Close
          </button>
        </div>
      </Dialog>
    );
  const act = async () => {
    setIsBusy(true);
    try {
      say(await run(action, ids === null ? [{ ...filters }] : chunks(ids, action)));
      store.selected.value = new Set();
    } catch (error) {
      sayError(error);
    }
    onClose();
  };
  return (
    <Dialog title={`${verb.now} ${activities}?`} onClose={onClose}>
      <p>
        {action === "cancel"
          ? "Their workers are notified and stop. What they have reported is kept."
          : "Each is opened again as its next attempt and handed to a worker."}
        {ids === null && " The number can change until you confirm."}
      </p>
      <div class="dialog-actions">
        <button type="button" class="button" onClick={onClose}>
          {action === "cancel" ? "Keep running" : "Back"}
        </button>
        <button type="button" class={`button ${action === "cancel" ? "is-danger" : "is-primary"}`} disabled={isBusy} onClick={() => void act()}>
          {verb.now} {activities}
        </button>
      </div>
    </Dialog>
  );
}

/** The filters, with the statuses that an action takes. Null if they exclude all of these. */
function narrowed(filters: Query, action: BulkAction): Query | null {
  const chosen = (filters["status"] ?? []) as readonly string[];
  const status = TAKES[action].filter((one) => chosen.length === 0 || chosen.includes(one));
  return status.length === 0 ? null : { ...filters, status };
}

function chunks(ids: readonly string[], action: BulkAction): Query[] {
  const count = Math.ceil(ids.length / MOST_IDS);
  return Array.from({ length: count }, (_, i) => ({
    agent_id: ids.slice(i * MOST_IDS, (i + 1) * MOST_IDS),
    status: TAKES[action],
  }));
}

/** Returns the sentence that says what was done. */
async function run(action: BulkAction, queries: readonly Query[]): Promise<string> {
  let done = 0;
  const refused: string[] = [];
  for (const query of queries) {
    if (action === "cancel") {
      done += (await cancelMany(query)).canceled;
    } else {
      const result = await retryMany(query);
      done += Object.keys(result.attempts).length;
      refused.push(...Object.values(result.refused));
    }
  }
  const sentence = `${VERBS[action].done} ${plural(done, "activity", "activities")}.`;
  return refused.length === 0 ? sentence : `${sentence} ${refused.length} refused: ${refused[0]}`;
}
