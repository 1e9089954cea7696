"""The other process of the live benchmark: ``python -m benchmarks._reader KIND DSN LOG_TABLE``, orders on stdin."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from benchmarks._drivers import connect

_SLEEP = 0.0002
_PATIENCE = 60.0


def main(kind: str, dsn: str, table: str) -> None:
    """For each order, poll until its lines are there, and print how long each was on its way."""
    place = "?" if kind == "sqlite" else "%s"
    columns = f"SELECT seq, message FROM {table} WHERE activity_id = {place}"
    statement = f"{columns} AND seq > {place} ORDER BY seq"
    with connect(kind, dsn) as connection:
        if kind == "postgres":
            connection.autocommit = True
        for line in sys.stdin:
            order = json.loads(line)
            found = connection.execute(statement, (order["row_id"], 0)).fetchall()
            print(json.dumps("polling"), flush=True)
            print(
                json.dumps(_watch(connection, statement, order, max((seq for seq, _ in found), default=0))), flush=True
            )


def _watch(connection: Any, statement: str, order: dict[str, object], last: int) -> list[int]:
    waits: list[int] = []
    give_up = time.monotonic() + _PATIENCE
    wanted = int(str(order["lines"]))
    while len(waits) < wanted and time.monotonic() < give_up:
        rows = connection.execute(statement, (order["row_id"], last)).fetchall()
        now_ns = time.time_ns()
        for seq, message in rows:
            last = seq
            waits.append(now_ns - int(message.rpartition(" ")[2]))
        time.sleep(_SLEEP)
    return waits


if __name__ == "__main__":
    main(*sys.argv[1:])
