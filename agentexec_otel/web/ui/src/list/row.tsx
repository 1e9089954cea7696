import { Component } from "preact";

import type { Activity, Waiting } from "../api";
import { compact, duration, grouped, words } from "../shared/format";
import { Icon } from "../shared/icons";
import { Progress } from "../shared/progress";
import { lookOf, StatusBadge } from "../shared/status";
import { Ago, Elapsed } from "../shared/time";
import { isSlow, slowFrom } from "../shared/usual";
import { metadataFilter } from "./query";

const MOST_TAGS = 3;
const NOTABLE_WAIT_SECONDS = 10;

export interface RowActions {
  hrefOf: (id: string) => string;
  onSelect: (id: string, isSelected: boolean, isRange: boolean) => void;
  onFocus: (id: string) => void;
  onFilter: (metadata: string) => void;
}

interface RowProps {
  activity: Activity;
  index: number;
  top: number;
  isCursor: boolean;
  isSelected: boolean;
  hasLeft: boolean;
  maySelect: boolean;
  actions: RowActions;
}

/** One activity. It is drawn again only when something of its own has changed. */
export class Row extends Component<RowProps> {
  override shouldComponentUpdate(next: Readonly<RowProps>): boolean {
    return (Object.keys(next) as (keyof RowProps)[]).some((name) => next[name] !== this.props[name]);
  }

  render({ activity, index, top, isCursor, isSelected, hasLeft, maySelect, actions }: RowProps) {
    const look = lookOf(activity);
    const id = activity.agent_id;
    return (
      <div
        class={`row${isCursor ? " is-cursor" : ""}${isSelected ? " is-selected" : ""}${hasLeft ? " has-left" : ""}${activity.ended_at !== null ? " is-ended" : ""}`}
        role="row"
        aria-rowindex={index + 2}
        data-id={id}
        style={{ transform: `translateY(${top}px)` }}
        onClick={openRow}
      >
        {maySelect && (
          <span class="cell cell-select" role="cell">
            <input
              type="checkbox"
              aria-label={`Select ${activity.agent_type}`}
              checked={isSelected}
              onClick={(event) => actions.onSelect(id, event.currentTarget.checked, event.shiftKey)}
            />
          </span>
        )}
        <span class="cell cell-status" role="cell" title={hasLeft ? "Does not meet the filters any longer" : undefined}>
          <StatusBadge look={look} percentage={activity.latest_percentage} />
        </span>
        <span class="cell cell-type" role="cell">
          <span class="line">
            <a class="ellipsis" href={actions.hrefOf(id)} onFocus={() => actions.onFocus(id)}>
              {activity.agent_type}
            </a>
            {activity.attempt > 1 && <span class="attempt">attempt {activity.attempt}</span>}
          </span>
          <Tags metadata={activity.metadata} onFilter={actions.onFilter} />
        </span>
        <span class="cell cell-log" role="cell">
          <Message activity={activity} />
        </span>
        <span class="cell cell-progress" role="cell">
          <Progress percentage={activity.latest_percentage} look={look} label={`Progress of ${activity.agent_type}`} />
        </span>
        <span class="cell cell-duration" role="cell">
          <Duration activity={activity} />
        </span>
        <span class="cell cell-created" role="cell">
          <Ago time={activity.created_at} />
          <Tokens activity={activity} />
        </span>
      </div>
    );
  }
}

/** A click anywhere on a row, but not on its controls or on selected text, opens the activity. */
function openRow(event: MouseEvent & { currentTarget: HTMLElement }): void {
  const target = event.target as Element;
  if (target.closest("a, button, input, .cell-select") !== null || getSelection()?.toString()) return;
  event.currentTarget.querySelector("a")?.dispatchEvent(new MouseEvent("click", event));
}

function Tags({ metadata, onFilter }: { metadata: Activity["metadata"]; onFilter: RowActions["onFilter"] }) {
  const entries = Object.entries(metadata ?? {});
  if (entries.length === 0) return null;
  return (
    <span class="tags" title={entries.map(([key, value]) => `${key}=${shown(value)}`).join("\n")}>
      {entries.slice(0, MOST_TAGS).map(([key, value]) => {
        const filter = metadataFilter(key, value);
        return (
          <button
            key={key}
            type="button"
            class="tag"
            tabIndex={-1}
            disabled={filter === null}
            onClick={() => filter !== null && onFilter(filter)}
          >
            <span class="tag-key">{key}=</span>
            {shown(value)}
          </button>
        );
      })}
    </span>
  );
}

const shown = (value: unknown): string => (typeof value === "string" ? value : JSON.stringify(value));

/** The latest log, and below it what the run waits for or why it has failed. */
function Message({ activity: { status, waiting, reason, error_type, latest_log } }: { activity: Activity }) {
  const wait = status === "RUNNING" && waiting ? waitOf(waiting) : null;
  const saysIt = wait !== null && latest_log?.startsWith(wait) === true;
  return (
    <>
      <span class={saysIt ? "message is-waiting ellipsis" : "message ellipsis"} title={latest_log ?? undefined}>
        {latest_log}
      </span>
      {wait !== null && !saysIt && <span class="remark is-waiting ellipsis">{wait}</span>}
      {status === "ERROR" && reason !== null && (
        <span class="remark is-error ellipsis" title={error_type ?? undefined}>
          {words(reason)} <span class="remark-type">{error_type?.split(".").at(-1)}</span>
        </span>
      )}
    </>
  );
}

function waitOf(waiting: Waiting): string {
  const tools = waiting.items?.map((item) => item.tool).filter(Boolean) ?? [];
  return `Waiting for ${waiting.for ?? "approval"}${tools.length > 0 ? `: ${tools.join(", ")}` : ""}`;
}

function Duration({ activity }: { activity: Activity }) {
  const { status, created_at, started_at, ended_at, updated_at, queued_seconds } = activity;
  if (status === "QUEUED")
    return (
      <>
        <Elapsed since={created_at} until={null} />
        <span class="row-note">in the queue</span>
      </>
    );
  if (started_at === null) return null;
  const isActive = status === "RUNNING";
  return (
    <>
      <Elapsed since={started_at} until={isActive ? null : (ended_at ?? updated_at)} />
      {isSlow(activity) ? (
        <span class="row-note is-slow" title={`Usually at most ${duration((slowFrom(activity.agent_type) ?? 0) / 2)} (p95 of this type)`}>
          <Icon name="clock" />
          slower than usual
        </span>
      ) : (
        (queued_seconds ?? 0) >= NOTABLE_WAIT_SECONDS && <span class="row-note">queued {duration(queued_seconds)}</span>
      )}
    </>
  );
}

function Tokens({ activity: { input_tokens, output_tokens } }: { activity: Activity }) {
  if (input_tokens === null && output_tokens === null) return null;
  const [input, output] = [input_tokens ?? 0, output_tokens ?? 0];
  return (
    <span class="row-note" title={`${grouped(input)} input and ${grouped(output)} output tokens`}>
      {compact(input + output)} tokens
    </span>
  );
}

