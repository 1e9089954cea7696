import { exact, grouped, plural } from "../shared/format";
import type { Series } from "./counts";

const WIDTH = 240;
const UP = 24;
const DOWN = 10;

/** Starts above a line and failures below it, so that they are told apart without their colors. */
export function Sparkline({ series }: { series: Series | null }) {
  if (series === null) return <figure class="spark" aria-hidden="true" />;
  const { start, end, bucket, buckets } = series;
  const started = sum(buckets.map((one) => one.started));
  const failed = sum(buckets.map((one) => one.failed));
  const step = bucket * 1000;
  const first = Math.floor(start / step) * step;
  const slots = Math.max(1, Math.ceil((end - first) / step));
  const width = WIDTH / slots;
  const most = Math.max(1, ...buckets.map((one) => one.started));
  const mostFailed = Math.max(most / 4, ...buckets.map((one) => one.failed));
  return (
    <figure class="spark">
      <figcaption>
        <span>{spanOf(end - start)}</span>
        <span>
          <b>{grouped(started)}</b> started
        </span>
        <span class={failed > 0 ? "spark-failed" : ""}>
          <b>{grouped(failed)}</b> failed
        </span>
      </figcaption>
      <svg viewBox={`0 0 ${WIDTH} ${UP + DOWN + 2}`} preserveAspectRatio="none" role="img" aria-label={`${plural(started, "start")} and ${plural(failed, "failure")} over time`}>
        <path class="spark-axis" d={`M0 ${UP + 1}H${WIDTH}`} />
        {buckets.map((one) => {
          const x = ((Date.parse(one.start) - first) / step) * width;
          const up = heightOf(one.started, most, UP);
          const down = heightOf(one.failed, mostFailed, DOWN);
          return (
            <g key={one.start}>
              <title>{`${exact(one.start)}: ${one.started} started, ${one.failed} failed`}</title>
              <rect class="spark-hit" x={x} y="0" width={width} height={UP + DOWN + 2} />
              <rect class="spark-started" x={x + width * 0.15} y={UP - up} width={width * 0.7} height={up} />
              <rect class="spark-bad" x={x + width * 0.15} y={UP + 2} width={width * 0.7} height={down} />
            </g>
          );
        })}
      </svg>
    </figure>
  );
}

/** At least a pixel and a half, so that one among many is seen. */
const heightOf = (count: number, most: number, height: number): number =>
  count === 0 ? 0 : Math.max(1.5, (count / most) * height);

const sum = (numbers: number[]): number => numbers.reduce((a, b) => a + b, 0);

function spanOf(milliseconds: number): string {
  const minutes = Math.round(milliseconds / 60_000);
  if (minutes < 90) return `Last ${minutes} min`;
  if (minutes < 48 * 60) return `Last ${Math.round(minutes / 60)} h`;
  return `${Math.round(minutes / 1440)} days`;
}
