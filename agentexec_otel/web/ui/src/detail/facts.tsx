import type { ComponentChildren } from "preact";

import { type Activity, isEnded } from "../api";
import { CopyButton } from "../shared/copy";
import { grouped } from "../shared/format";
import { Ago, Left } from "../shared/time";
import { visible } from "./text";

/** What is known about an activity beside its logs. */
export function Facts({ activity, isHidden }: { activity: Activity; isHidden: boolean }) {
  return (
    <aside class="facts" aria-label="Facts">
      <Usage activity={activity} />
      <Metadata metadata={activity.metadata} isHidden={isHidden} />
      <Group title="Run">
        <Fact name="Agent id">
          <Id text={activity.agent_id} label="Copy agent id" />
        </Fact>
        {activity.worker_id !== null && (
          <Fact name="Worker">
            <Id text={activity.worker_id} label="Copy worker id" />
          </Fact>
        )}
        {activity.lease_expires_at !== null && (
          <Fact name="Lease">
            <Left until={activity.lease_expires_at} />
          </Fact>
        )}
        {activity.trace_id !== null && (
          <Fact name="Trace">
            <Id text={activity.trace_id} label="Copy trace id" href={webAddress(activity.trace_url)} />
          </Fact>
        )}
        {activity.span_id !== null && (
          <Fact name="Span">
            <Id text={activity.span_id} label="Copy span id" />
          </Fact>
        )}
        <Fact name="Created">
          <Ago time={activity.created_at} />
        </Fact>
        <Fact name="Updated">
          <Ago time={activity.updated_at} />
        </Fact>
      </Group>
    </aside>
  );
}

function Usage({ activity }: { activity: Activity }) {
  const counts: [string, number | null, string?][] = [
    ["Input tokens", activity.input_tokens],
    ["cached", activity.cached_input_tokens, "part"],
    ["Output tokens", activity.output_tokens],
    ["reasoning", activity.reasoning_tokens, "part"],
    ["Requests", activity.requests],
  ];
  const known = counts.filter(([, count]) => count !== null);
  const cost = activity.cost ?? null;
  const isKnown = known.length > 0 || cost !== null || activity.model !== null;
  const none = isEnded(activity) ? "Not reported." : "Known when the run ends.";
  return (
    <Group title="Usage" none={isKnown ? undefined : none}>
      {activity.model !== null && (
        <Fact name="Model">
          <bdi>{visible(activity.model)}</bdi>
        </Fact>
      )}
      {known.map(([name, count, kind]) => (
        <Fact key={name} name={name} kind={kind ?? "number"}>
          {grouped(count!)}
        </Fact>
      ))}
      {cost !== null && (
        <Fact name="Cost" kind="number">
          {String(cost)}
        </Fact>
      )}
    </Group>
  );
}

function Metadata({ metadata, isHidden }: { metadata: Activity["metadata"]; isHidden: boolean }) {
  if (isHidden) return null;
  const entries = Object.entries(metadata ?? {});
  return (
    <Group title="Metadata" none={entries.length === 0 ? "None." : undefined}>
      {entries.map(([key, value]) => (
        <Fact key={key} name={visible(key)}>
          {typeof value === "object" && value !== null ? (
            <pre tabIndex={0}>{visible(JSON.stringify(value, null, 2))}</pre>
          ) : (
            <bdi>{visible(String(value))}</bdi>
          )}
        </Fact>
      ))}
    </Group>
  );
}

/** Facts under a title; or, if there are none, a sentence. */
function Group({ title, none, children }: { title: string; none?: string | undefined; children: ComponentChildren }) {
  return (
    <section class="facts-group">
      <h2>{title}</h2>
      {none === undefined ? <dl>{children}</dl> : <p class="facts-none">{none}</p>}
    </section>
  );
}

function Fact({ name, kind, children }: { name: string; kind?: string; children: ComponentChildren }) {
  return (
    <div class={kind === undefined ? "fact" : `fact is-${kind}`}>
      <dt>
        <bdi>{name}</bdi>
      </dt>
      <dd>{children}</dd>
    </div>
  );
}

function Id({ text, label, href = null }: { text: string; label: string; href?: string | null }) {
  return (
    <span class="id">
      <bdi class="id-text" title={text}>
        {href === null ? (
          visible(text)
        ) : (
          <a href={href} target="_blank" rel="noreferrer">
            {visible(text)}
          </a>
        )}
      </bdi>
      <CopyButton text={text} label={label} isIcon />
    </span>
  );
}

/** The address if it is one of the web, and not a script. */
function webAddress(address: string | null | undefined): string | null {
  if (!address) return null;
  try {
    return ["http:", "https:"].includes(new URL(address).protocol) ? address : null;
  } catch {
    return null;
  }
}
