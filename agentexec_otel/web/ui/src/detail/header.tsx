import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";

import { type Activity, apiUrl, cancel, isEnded, retry } from "../api";
import { href, route } from "../route";
import { CopyButton } from "../shared/copy";
import { Dialog } from "../shared/dialog";
import { words } from "../shared/format";
import { Icon } from "../shared/icons";
import { say, sayError } from "../shared/notice";
import { Progress } from "../shared/progress";
import { session } from "../shared/session";
import { lookOf, StatusBadge } from "../shared/status";
import { Ago, Elapsed } from "../shared/time";
import { visible } from "./text";

interface Props {
  activity: Activity;
  /** When the current attempt was queued. */
  queuedAt: string;
  refresh: () => Promise<void>;
}

/** What the activity is, how it stands, and what can be done with it. */
export function Header({ activity, queuedAt, refresh }: Props) {
  const look = lookOf(activity);
  return (
    <header class="detail-head">
      <a class="detail-back" href={href(null, route.value.search)}>
        <Icon name="back" />
        All activities
      </a>
      <div class="detail-title">
        <h1 tabIndex={-1}>
          <bdi>{visible(activity.agent_type)}</bdi>
        </h1>
        <StatusBadge look={look} percentage={activity.latest_percentage} />
        <Outcome activity={activity} />
        <Actions activity={activity} refresh={refresh} />
      </div>
      <dl class="numbers">
        <Measure name="Progress" kind="progress">
          <Progress percentage={activity.latest_percentage} look={look} label="Progress" />
          {activity.latest_percentage === null && <None />}
        </Measure>
        <Measure name="Duration">
          {activity.started_at === null ? <None /> : <Elapsed since={activity.started_at} until={activity.ended_at} />}
        </Measure>
        <Measure name="Queue wait">
          {activity.started_at === null && isEnded(activity) ? (
            <None />
          ) : (
            <Elapsed since={queuedAt} until={activity.started_at} />
          )}
        </Measure>
        <Measure name="Attempt">{activity.attempt}</Measure>
        <Measure name="Started">{activity.started_at === null ? <None /> : <Ago time={activity.started_at} />}</Measure>
        <Measure name="Ended">{activity.ended_at === null ? <None /> : <Ago time={activity.ended_at} />}</Measure>
      </dl>
    </header>
  );
}

const None = () => <span class="none">–</span>;

function Measure({ name, kind = "", children }: { name: string; kind?: string; children: ComponentChildren }) {
  return (
    <div class={`number ${kind && `is-${kind}`}`}>
      <dt>{name}</dt>
      <dd>{children}</dd>
    </div>
  );
}

const REASONS: Record<string, string> = {
  max_turns: "It used up its turns.",
  guardrail_input: "A guardrail refused the input.",
  guardrail_output: "A guardrail refused the output.",
  tool: "A tool failed.",
  model_behavior: "The model gave an answer that could not be used.",
  model_unavailable: "The model was not available.",
  rate_limit: "The model's rate limit was reached.",
  auth: "The credentials were refused.",
  connection: "A connection failed.",
  timeout: "It took too long.",
  usage_limit: "The usage limit was reached.",
  lost: "Its worker was lost.",
  enqueue: "It could not be handed to a worker.",
  other: "It raised an error.",
};

/** Why it ended as it did, or what it waits for. */
function Outcome({ activity }: { activity: Activity }) {
  const { waiting, reason, error_type: error } = activity;
  if (lookOf(activity) === "waiting" && waiting !== null) {
    const tools = (waiting.items ?? []).map((item) => item.tool).filter((tool) => tool !== undefined);
    return (
      <p class="outcome is-waiting">
        Waits for <bdi>{visible(words(waiting.for ?? "something"))}</bdi>
        {tools.length > 0 && ": "}
        {tools.map((tool, i) => (
          <span key={i}>
            {i > 0 && ", "}
            <code>{visible(tool)}</code>
          </span>
        ))}
        {waiting.since !== undefined && (
          <>
            {" for "}
            <Elapsed since={waiting.since} until={null} />
          </>
        )}
      </p>
    );
  }
  const isKnown = reason === null || reason === activity.status.toLowerCase();
  if (!isEnded(activity) || (isKnown && error === null)) return null;
  return (
    <p class={`outcome is-${activity.status.toLowerCase()}`}>
      {reason !== null && !isKnown && (REASONS[reason] ?? words(reason))} {error !== null && <code>{visible(error)}</code>}
    </p>
  );
}

function Actions({ activity, refresh }: { activity: Activity; refresh: () => Promise<void> }) {
  const [asks, setAsks] = useState(false);
  const [busy, setBusy] = useState(false);
  const act = async (change: () => Promise<string>) => {
    setAsks(false);
    setBusy(true);
    try {
      say(await change());
      await refresh();
    } catch (error) {
      sayError(error);
    } finally {
      setBusy(false);
    }
  };
  const cancelIt = async () =>
    (await cancel(activity.agent_id)).canceled ? "Canceled." : "Not canceled: it had ended before.";
  const retryIt = async () => `Retried: attempt ${(await retry(activity.agent_id)).attempt}.`;
  return (
    <div class="actions">
      {session.value.may_act && !isEnded(activity) && (
        <button type="button" class="button" disabled={busy} onClick={() => setAsks(true)}>
          <Icon name="stop" />
          Cancel
        </button>
      )}
      {session.value.may_retry && isEnded(activity) && (
        <button type="button" class="button" disabled={busy} onClick={() => void act(retryIt)}>
          <Icon name="retry" />
          Retry
        </button>
      )}
      <CopyButton text={activity.agent_id} label="Copy id" />
      <a class="button is-quiet" href={apiUrl(`activities/${activity.agent_id}`)}>
        JSON
      </a>
      {asks && (
        <Dialog title="Cancel this activity?" onClose={() => setAsks(false)}>
          <p>
            <bdi>{visible(activity.agent_type)}</bdi> stops at its next step. What it has done so far stays.
          </p>
          <div class="dialog-actions">
            <button type="button" class="button" onClick={() => setAsks(false)}>
              Keep running
            </button>
            <button type="button" class="button is-danger" onClick={() => void act(cancelIt)}>
              Cancel activity
            </button>
          </div>
        </Dialog>
      )}
    </div>
  );
}
