import { useCallback, useEffect, useState } from "preact/hooks";

import { type Activity, isEnded } from "../api";
import { go, href, route } from "../route";
import { copy } from "../shared/copy";
import { useKeys } from "../shared/keys";
import { say } from "../shared/notice";
import { session } from "../shared/session";
import { LABELS, lookOf } from "../shared/status";
import { title } from "../shared/title";
import { Facts } from "./facts";
import { type Entry, type Feed, openFeed } from "./feed";
import { Header } from "./header";
import { LogPanel } from "./log";
import { digitsOf, visible } from "./text";
import { Timeline } from "./timeline";

export function Detail({ agentId }: { agentId: string }) {
  const [feed, setFeed] = useState<Feed | null>(null);
  useEffect(() => {
    const opened = openFeed(agentId);
    setFeed(opened);
    return opened.close;
  }, [agentId]);
  useKeys({ Escape: () => go(href(null, route.value.search)) });
  useTitle(feed?.activity.value ?? null);
  const activity = feed?.activity.value ?? null;
  if (feed !== null && feed.problem.value !== null) return <Problem text={feed.problem.value} />;
  if (feed === null || activity === null) return <main class="detail" aria-busy="true" />;
  return <Found feed={feed} activity={activity} />;
}

function Found({ feed, activity }: { feed: Feed; activity: Activity }) {
  const logs = feed.logs.value;
  const [follows, setFollows] = useState(true);
  const [picked, setPicked] = useState<{ seq: number } | null>(null);
  const onPick = useCallback((log: Entry) => {
    setFollows(false);
    setPicked({ seq: log.seq });
  }, []);
  useEffect(() => document.querySelector<HTMLElement>(".detail h1")?.focus({ preventScroll: true }), []);
  useKeys({
    f: () => setFollows((before) => !before),
    c: () => void copy(activity.agent_id).then(() => say("Copied the id.")),
    "/": (event) => {
      event.preventDefault();
      document.querySelector<HTMLElement>(".log-search input")?.focus();
    },
  });
  const isHidden = !session.value.may_see_content;
  const from = Date.parse(activity.created_at);
  return (
    <main class="detail">
      <Header activity={activity} queuedAt={queuedAt(activity, logs)} refresh={feed.refresh} />
      <Timeline activity={activity} logs={logs} onPick={onPick} />
      <div class="panels">
        <LogPanel
          logs={logs}
          from={from}
          digits={digitsOf((logs.at(-1)?.at ?? from) - from, isEnded(activity))}
          isHidden={isHidden}
          picked={picked}
          follows={follows}
          onFollow={setFollows}
        />
        <Facts activity={activity} isHidden={isHidden} />
      </div>
    </main>
  );
}

function Problem({ text }: { text: string }) {
  return (
    <main class="detail">
      <div class="detail-problem">
        <h1>This activity cannot be shown</h1>
        <p dir="auto">{visible(text)}</p>
        <a class="button" href={href(null, route.value.search)}>
          All activities
        </a>
      </div>
    </main>
  );
}

/** When the current attempt was queued: the first log of the attempt says so. */
function queuedAt(activity: Activity, logs: readonly Entry[]): string {
  if (activity.attempt === 1) return activity.created_at;
  return logs.find((log) => log.attempt === activity.attempt)?.created_at ?? activity.started_at ?? activity.updated_at;
}

function useTitle(activity: Activity | null): void {
  const own = activity && `${visible(activity.agent_type)} · ${LABELS[lookOf(activity)].toLowerCase()}`;
  useEffect(() => {
    title.value = own;
    return () => void (title.value = null);
  }, [own]);
}
