import { useEffect, useState } from "preact/hooks";

import { getSession, getStats } from "./api";
import { Detail } from "./detail/detail";
import { List } from "./list/list";
import { href, onClick, route } from "./route";
import { now } from "./shared/clock";
import { Dialog } from "./shared/dialog";
import { ticking } from "./shared/format";
import { Icon } from "./shared/icons";
import { useKeys } from "./shared/keys";
import { Notice } from "./shared/notice";
import { running } from "./shared/running";
import { session } from "./shared/session";
import { title } from "./shared/title";
import { connection } from "./stream";

const TITLE = document.title;
/** What the page shows comes first. */
const FIRST_COUNT_MS = 1_000;
const COUNT_MS = 10_000;

export function App() {
  // Without it, what the viewer may do would appear in rows that are already shown.
  const [isReady, setIsReady] = useState(false);
  const [asksForHelp, setAsksForHelp] = useState(false);
  const isLost = connection.value.lost !== null;
  useKeys({ "?": () => setAsksForHelp(true) });
  useEffect(() => {
    if (isLost) return;
    void getSession()
      .then(
        (found) => (session.value = found),
        () => {},
      )
      .finally(() => setIsReady(true));
    const first = setTimeout(countRunning, FIRST_COUNT_MS);
    const timer = setInterval(countRunning, COUNT_MS);
    return () => {
      clearTimeout(first);
      clearInterval(timer);
    };
  }, [isLost]);
  useTitle(isLost ? null : running.value, title.value);
  const { agentId } = route.value;
  return (
    <div class={isLost ? "app is-lost" : "app"} onClick={onClick}>
      <header class="header">
        <a class="brand" href={href(null)}>
          <Mark />
          <span class="ellipsis">{TITLE}</span>
        </a>
        <Connection />
        <button type="button" class="button is-quiet is-icon" aria-label="Keyboard shortcuts" title="Keyboard shortcuts (?)" onClick={() => setAsksForHelp(true)}>
          <Icon name="help" />
        </button>
      </header>
      {isReady && (agentId === null ? <List /> : <Detail key={agentId} agentId={agentId} />)}
      <Notice />
      {asksForHelp && <Help onClose={() => setAsksForHelp(false)} />}
    </div>
  );
}

function countRunning(): void {
  if (document.hidden && running.peek() !== null) return;
  void getStats({ status: "RUNNING" }).then(
    (found) => (running.value = found.by_status.RUNNING ?? 0),
    () => {},
  );
}

/** The title and the icon of the tab show how many activities run. */
function useTitle(count: number | null, own: string | null): void {
  useEffect(() => {
    document.title = own ?? (count ? `${count} running · ${TITLE}` : TITLE);
    const icon = document.querySelector<HTMLLinkElement>("link[rel=icon]");
    if (icon) icon.href = icon.href.replace(/favicon(-live)?\.svg/, count ? "favicon-live.svg" : "favicon.svg");
  }, [count, own]);
}

function Mark() {
  return (
    <svg width="24" height="24" viewBox="0 0 32 32" aria-hidden="true">
      <rect class="plate" width="32" height="32" rx="8" />
      <path class="bars" d="M8 21V11m8 12V7m8 11v-4" />
    </svg>
  );
}

function Connection() {
  const { lost, isOpen } = connection.value;
  if (lost !== null)
    return (
      <span class="connection is-lost" role="status">
        <span>
          Connection lost<span aria-hidden="true"> {ticking(Math.max(0, (now.value - lost) / 1000))} ago</span>
        </span>
      </span>
    );
  return <span class={isOpen ? "connection" : "connection is-opening"}>{isOpen ? "Live" : "Connecting"}</span>;
}

const KEYS: readonly [readonly string[], string][] = [
  [["j", "k"], "Next, previous activity"],
  [["Enter"], "Open the activity"],
  [["x"], "Select the activity"],
  [["/"], "Search"],
  [["f"], "Follow the log"],
  [["c"], "Copy the id"],
  [["Esc"], "Back, or clear the selection and the search"],
  [["?"], "Show this help"],
];

function Help({ onClose }: { onClose: () => void }) {
  return (
    <Dialog title="Keyboard shortcuts" onClose={onClose}>
      <dl class="keys">
        {KEYS.map(([keys, action]) => [
          <dt key={action}>
            {keys.map((key) => (
              <kbd key={key}>{key}</kbd>
            ))}
          </dt>,
          <dd key={`${action} text`}>{action}</dd>,
        ])}
      </dl>
      <div class="dialog-actions">
        <button type="button" class="button" onClick={onClose}>
          Close
        </button>
      </div>
    </Dialog>
  );
}
