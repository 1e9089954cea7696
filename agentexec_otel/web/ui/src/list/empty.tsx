import { CopyButton } from "../shared/copy";
import { clearFilters } from "./toolbar";

const SNIPPET = `# pip install agentexec-otel
import agentexec_otel as ax

ax.configure("sqlite:///app.db", create_tables=True)  # the database of this page

with ax.activity.run("research_company") as run:
    run.update("Reading the annual report", percentage=20)
    run.update("Analyzing competitors...", percentage=50)`;

/** No activity exists yet: how to record the first. */
export function Welcome() {
  return (
    <section class="empty">
      <h2>No activities yet</h2>
      <p>This page is live: the first activity appears as soon as an agent reports. Record one:</p>
      <div class="snippet">
        <pre tabIndex={0} aria-label="Example">
          <code>{SNIPPET}</code>
        </pre>
        <CopyButton text={SNIPPET} label="Copy" />
      </div>
    </section>
  );
}

export function NothingFound() {
  return (
    <section class="empty">
      <h2>No activity meets these filters</h2>
      <p>One that does appears here by itself.</p>
      <button type="button" class="button" onClick={clearFilters}>
        Clear filters
      </button>
    </section>
  );
}

export function Failed({ error, onRetry }: { error: Error; onRetry: () => void }) {
  return (
    <section class="empty" role="alert">
      <h2>The activities could not be loaded</h2>
      <p>{error.message}</p>
      <button type="button" class="button" onClick={onRetry}>
        Try again
      </button>
    </section>
  );
}
