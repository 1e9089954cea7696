"""`cancel_pending()` with a thousand pending among many activities."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any, Final

import agentexec_otel as ax
from agentexec_otel._model.ids import uuid7
from benchmarks._activities import LOG_COLUMNS, History
from benchmarks._context import Context, Scale
from benchmarks._databases import ACTIVITY, LOG, Database
from benchmarks._measure import Row, Section, Table, Target, interleaved, seconds

_SIZES: Final = {Scale.SMOKE: 200, Scale.QUICK: 10_000, Scale.FULL: 100_000, Scale.MILLION: 1_000_000}
_PENDING: Final = {Scale.SMOKE: 20, Scale.QUICK: 1_000}
_LOGS: Final = 2
_NOW: Final = "2026-06-01 00:00:00.000000"
_MARK_MS: Final = 25.0

_FIND: Final = f"SELECT id, last_seq FROM {ACTIVITY} WHERE status IN ('QUEUED', 'RUNNING') ORDER BY id"
_CANCEL: Final = (
    f"UPDATE {ACTIVITY} SET status = 'CANCELED', reason = 'canceled', last_seq = last_seq + 1, updated_at = ?"
    " WHERE status IN ('QUEUED', 'RUNNING')"
)


def run(context: Context) -> Section:
    """Measure on every database: cancel them all, put them back, again."""
    return Section("cancel", "cancel_pending()", [_table(context, database) for database in context.databases])


def _table(context: Context, database: Database) -> Table:
    history = History(context.pick(_SIZES), _LOGS, context.pick(_PENDING))
    load = context.track(f"loading {history.activities:,} activities, {database.kind}", 1)
    load("")
    database.reset()
    history.load(database)
    ax.configure(database.url)
    try:
        ax.activity.cancel_pending()  # warm: connects, compiles its statements
        cases: dict[str, Callable[[], float]] = {
            "by hand": partial(_by_hand, database, history),
            "ours": partial(_ours, database, history),
        }
        steps = context.track(f"cancel {database.kind}", context.runs * len(cases))
        found = interleaved(cases, context.runs, steps)
    finally:
        ax.shutdown(30.0)
    rows = [
        Row("one UPDATE and one line each, by hand", "ms", found["by hand"]),
        Row("cancel_pending()", "ms", found["ours"], found["by hand"]),
        Row("cancel_pending(), against the mark", "ms", found["ours"], target=Target(_MARK_MS, of="value")),
    ]
    title = f"{database.title}, {history.pending:,} pending among {history.activities:,} activities"
    return Table(title, "SELECT, UPDATE and bulk insert of the lines by the raw driver", rows)


def _ours(database: Database, history: History) -> float:
    _put_back(database, history)
    changed = 0

    def cancel() -> None:
        nonlocal changed
        changed = ax.activity.cancel_pending()

    took = seconds(cancel) * 1e3
    assert changed == history.pending, f"{changed} of {history.pending} were canceled"
    ax.flush(30.0)
    return took


def _by_hand(database: Database, history: History) -> float:
    _put_back(database, history)
    with closing(database.connect()) as connection:
        return seconds(lambda: _cancel_by_hand(database, connection)) * 1e3


def _cancel_by_hand(database: Database, connection: Any) -> None:
    late = 0 if database.kind == "sqlite" else False
    found = connection.execute(f"{_FIND} FOR UPDATE" if database.kind == "postgres" else _FIND).fetchall()
    lines = [
        (row_id, "Task canceled.", "CANCELED", None, _NOW, seq + 1, database.value(uuid7()), 1, late)
        for row_id, seq in found
    ]
    database.load_in(connection, LOG, LOG_COLUMNS, lines)
    connection.execute(database.sql(_CANCEL), (_NOW,))
    connection.commit()


def _put_back(database: Database, history: History) -> None:
    """The pending activities as they were, without the lines of an earlier run."""
    with closing(database.connect()) as connection:
        connection.execute(database.sql(f"DELETE FROM {LOG} WHERE seq > ?"), (history.logs,))
        connection.execute(
            database.sql(
                f"UPDATE {ACTIVITY} SET status = 'RUNNING', last_seq = ?, reason = NULL, span_id = NULL,"
                " trace_id = NULL, sampled = NULL WHERE last_seq > ?"
            ),
            (history.logs, history.logs),
        )
        connection.commit()
    database.optimize()
    gc.collect()
