import type { Look } from "./status";

/** A bar with its number. Without a percentage, an active run has an empty bar, so that nothing moves when it gets one. */
export function Progress({ percentage, look, label }: { percentage: number | null; look: Look; label: string }) {
  if (percentage === null) return <span class="progress" />;
  return (
    <span class={`progress is-${look}`}>
      <span class="progress-bar" role="progressbar" aria-label={label} aria-valuenow={percentage} aria-valuemin={0} aria-valuemax={100}>
        <span class="progress-fill" style={{ transform: `scaleX(${percentage / 100})` }} />
      </span>
      <span class="progress-number">{percentage}%</span>
    </span>
  );
}
