"""The best SQL by hand for what `ax.activity.stats` answers: counts, percentiles, and percentiles by type."""

from __future__ import annotations

from typing import Final

from benchmarks._databases import ACTIVITY

_POINTS: Final = (50, 90, 95, 99)
_ENDED: Final = "status IN ('COMPLETE', 'ERROR', 'CANCELED')"
_COUNTS: Final = f"SELECT status, reason, count(*) FROM {ACTIVITY} {{where}} GROUP BY status, reason"
_OF_A_TYPE: Final = (
    "count(*) AS total, count(*) FILTER (WHERE status IN ('QUEUED', 'RUNNING')),"
    " count(*) FILTER (WHERE status = 'ERROR'), count(duration) AS n, sum(duration), max(duration)"
)


def stats_by_hand(kind: str, where: str = "") -> tuple[str, ...]:
    """The statements for a kind of database, with a WHERE clause of the caller."""
    made = _postgres() if kind == "postgres" else _sqlite()
    return tuple(statement.format(where=where) for statement in (_COUNTS, *made))


def _postgres() -> tuple[str, ...]:
    # Durations are intervals, which need no conversion.
    duration = f"CASE WHEN {_ENDED} THEN coalesce(ended_at, updated_at) - started_at END AS duration"
    queued = "CASE WHEN attempt = 1 THEN started_at - created_at END AS queued"

    def percentiles(value: str) -> str:
        points = ", ".join(f"{point / 100}" for point in _POINTS)
        return f"percentile_disc(ARRAY[{points}]) WITHIN GROUP (ORDER BY {value})"

    measures = ", ".join(
        f"count({value}), sum({value}), max({value}), {percentiles(value)}"
        for value in ("duration", "queued", "input_tokens", "output_tokens")
    )
    rows = f"(SELECT {duration}, {queued}, input_tokens, output_tokens FROM {ACTIVITY} {{where}}) AS m"
    rows_of_types = f"(SELECT agent_type, status, {duration} FROM {ACTIVITY} {{where}}) AS m"
    types = (
        f"SELECT agent_type, {_OF_A_TYPE}, {percentiles('duration')} FROM {rows_of_types}"
        " GROUP BY agent_type ORDER BY total DESC LIMIT 100"
    )
    return f"SELECT {measures} FROM {rows}", types


def _sqlite() -> tuple[str, ...]:
    # Milliseconds, as SQLite's own functions have them.
    duration = f"CASE WHEN {_ENDED} THEN julianday(coalesce(ended_at, updated_at)) - julianday(started_at) END"
    queued = "CASE WHEN attempt = 1 THEN julianday(started_at) - julianday(created_at) END"
    picked = ", ".join(
        f"(SELECT v FROM sorted LIMIT 1 OFFSET (SELECT max(0, (n * {point} + 99) / 100 - 1) FROM totals))"
        for point in _POINTS
    )
    reached = ", ".join(f"min(CASE WHEN place * 100 >= n * {point} THEN duration END)" for point in _POINTS)
    measures = (
        f"WITH found AS MATERIALIZED (SELECT {value} AS v FROM {ACTIVITY} {{where}}),"
        " sorted AS MATERIALIZED (SELECT v FROM found WHERE v IS NOT NULL ORDER BY v),"
        " totals AS MATERIALIZED (SELECT count(v) AS n, sum(v), max(v) FROM found)"
        f" SELECT totals.*, {picked} FROM totals"
        for value in (duration, queued, "input_tokens", "output_tokens")
    )
    types = (
        f"WITH found AS MATERIALIZED (SELECT agent_type, status, {duration} AS duration FROM {ACTIVITY} {{where}}),"
        f" totals AS (SELECT agent_type, {_OF_A_TYPE} FROM found GROUP BY agent_type ORDER BY total DESC LIMIT 100),"
        " ranks AS (SELECT agent_type, duration, row_number() OVER (PARTITION BY agent_type ORDER BY duration) AS place"
        " FROM found WHERE duration IS NOT NULL)"
        f" SELECT totals.*, {reached} FROM totals LEFT JOIN ranks USING (agent_type) GROUP BY totals.agent_type"
    )
    return (*measures, types)
