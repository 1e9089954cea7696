"""The feed: the logs of all activities behind a cursor, none missed although transactions commit out of id order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any, Final, TypedDict, Unpack, cast

from sqlalchemy import ColumnElement, Integer, RowMapping, bindparam, or_, select, union_all
from sqlalchemy.orm import Session

from agentexec_otel._model.text import describe, plain_int, plain_str
from agentexec_otel.activity._criteria import ACTIVITY, LOG, ActivityFilters, criteria_of
from agentexec_otel.activity._feed_cursor import FeedCursor, Walk, without_settled
from agentexec_otel.activity._feed_fence import Settlement
from agentexec_otel.activity._sessions import AnySelect, execute, synchronous
from agentexec_otel.activity.schemas import ActivityFeedLogSchema, ActivityFeedSchema, ActivityLogSchema

NOW: Final = "now"
_MOST_PER_PAGE: Final = 10_000
_WINDOW: Final = 5_000
_MOST_WINDOWS: Final = 10
"""With filters, a call looks at up to 50,000 logs to fill its page."""
_NEWEST: Final = 100
"""Where the feed starts now, it looks for gaps among so many logs."""


def _logs_of(wanted: ColumnElement[bool]) -> AnySelect:
    """The logs with these ids, with their activities."""
    # The limit cuts no log. It keeps planners from beginning with the activities that meet the criteria.
    window = select(LOG).where(wanted).order_by(LOG.c.id).limit(bindparam("id_count")).subquery()
    columns = (window.c[name] for name in ActivityLogSchema.model_fields)
    joined = select(*columns, ACTIVITY.c.agent_id, ACTIVITY.c.agent_type).select_from(window)
    return joined.join(ACTIVITY, ACTIVITY.c.id == window.c.activity_id).order_by(window.c.id)


_IN_GAPS: Final = _logs_of(LOG.c.id.in_(bindparam("ids", expanding=True)))
_BEHIND: Final = _logs_of(LOG.c.id.between(bindparam("first_id"), bindparam("final_id"))).limit(bindparam("row_count"))
_NEWEST_IDS: Final = select(LOG.c.id).order_by(LOG.c.id.desc()).limit(_NEWEST)


class ActivityFeedFilters(TypedDict, total=False):
    """The filters of the feed as keyword arguments: what does not change while an activity runs.

    Attributes:
        agent_type: One task name, or several.
        metadata_filter: Keys and the values that they must equal.
        created_after: Logs of activities that were created then or later. A naive datetime means UTC.
        created_before: Logs of activities that were created earlier.
    """

    agent_type: str | Iterable[str] | None
    metadata_filter: Mapping[str, Any] | None
    created_after: datetime | None
    created_before: datetime | None


def feed(
    session: Session, after: str | None = None, *, limit: int = 1_000, **filters: Unpack[ActivityFeedFilters]
) -> ActivityFeedSchema:
    """Return the next logs of all activities behind a cursor, those of an activity in the order of ``seq``.

    A reader that continues with the ``next_cursor`` of each page, or with the ``cursor`` of a log, gets each committed
    log once: also one whose transaction is committed after that of a log with a higher id. Late logs are among them,
    with ``late=True``. Logs that are deleted before they are read are left out.

    Args:
        after: Where to continue: a ``next_cursor`` or a log's ``cursor``. None or ``""`` starts with the oldest log.
            ``"now"`` returns no log, and the cursor behind those that are committed now.
        limit: Most logs to return, 1 to 10,000.
        filters: See `ActivityFeedFilters`. A cursor belongs to no filter.

    Raises:
        TypeError: There is no filter of this name.
        ValueError: A malformed cursor, limit or filter.
    """
    criteria, most, session = feed_criteria(filters), _checked_limit(limit), synchronous(session)
    return read_page(session, start_of(after), criteria, most)


def feed_criteria(filters: ActivityFeedFilters) -> list[ColumnElement[bool]]:
    """Return the criteria. Raises as `feed`."""
    known = ActivityFeedFilters.__annotations__
    unknown = sorted(filters.keys() - known.keys())
    if unknown:
        raise TypeError(
            f"the feed has no filter {unknown[0]!r}: use {', '.join(known)}, which do not change while an activity runs"
        )
    return criteria_of(cast(ActivityFilters, filters))


def start_of(after: object) -> FeedCursor | None:
    """Return the cursor to start from. None for ``"now"``. Raises ValueError for what is no cursor."""
    return None if plain_str(after) == NOW else FeedCursor.parse(after)


def read_page(
    session: Session, cursor: FeedCursor | None, criteria: Sequence[ColumnElement[bool]], most: int
) -> ActivityFeedSchema:
    """Return the next logs that meet the criteria, up to `most`. Without a cursor, return the present one."""
    settlement = Settlement(session)
    if cursor is None:
        return ActivityFeedSchema(logs=[], next_cursor=str(settlement.fenced(_present(session, settlement))))
    reader = _Reader(session, settlement, cursor, criteria)
    for _ in range(_MOST_WINDOWS):
        reader.read_window(most)
        if len(reader.logs) == most or reader.at_end or reader.is_full:
            break
    reached = settlement.fenced(reader.cursor)
    has_more = not reader.at_end and reached != cursor and (not reader.is_full or reached.settled > 0)
    return ActivityFeedSchema(logs=reader.logs, next_cursor=str(reached), has_more=has_more)


class _Reader:
    """Reads a page, window after window.

    Attributes:
        logs: What was found.
        cursor: Behind what was examined.
        at_end: No id is left.
        is_full: The cursor has no room for the gaps before the next id.
    """

    def __init__(
        self, session: Session, settlement: Settlement, cursor: FeedCursor, criteria: Sequence[ColumnElement[bool]]
    ) -> None:
        self._session = session
        self._settlement = settlement
        self._criteria = criteria
        self.logs: list[ActivityFeedLogSchema] = []
        self.cursor = cursor
        self.at_end = False
        self.is_full = False

    def read_window(self, most: int) -> None:
        """Examine the next ids. With filters they are more than the logs that are left to find, up to `most`."""
        wanted = most - len(self.logs)
        size = max(wanted, _WINDOW) if self._criteria else wanted
        ids = _visible_ids(self._session, self.cursor, size + 1)
        rows, examined = _rows(self._session, self.cursor, ids[:size], self._criteria, wanted)
        settled = self._settlement.settled(self.cursor, examined)
        walk = Walk(self.cursor, settled)
        passed = self._pass_ids(walk, examined, rows)
        self.is_full = passed < len(examined)
        self.at_end = passed == len(ids)
        in_gaps_left = not self.at_end and ids[passed] <= self.cursor.last
        self.cursor = walk.cursor if in_gaps_left else without_settled(walk.cursor, settled)

    def _pass_ids(self, walk: Walk, ids: Sequence[int], rows: Mapping[int, RowMapping]) -> int:
        """Move over the ids, as far as there is room, and return over how many."""
        for passed, number in enumerate(ids):
            if not walk.pass_id(number):
                return passed
            if (row := rows.get(number)) is not None:
                self.logs.append(ActivityFeedLogSchema(**row, cursor=walk.text))
        return len(ids)


def _visible_ids(session: Session, cursor: FeedCursor, count: int) -> list[int]:
    """The next ids in the gaps of the cursor and behind it, in order. One statement: they are of one moment.

    An activity's logs take their ids in the order of ``seq``, each after the commit of the one before.
    """
    gaps = cursor.gaps
    parameters: dict[str, int] = {"last": cursor.last, "row_count": count}
    room = 0
    if gaps:
        room = 1 << (len(gaps) - 1).bit_length()
        parameters["first"] = gaps[0][0]
        for at in range(room):
            parameters[f"low_{at}"], parameters[f"high_{at}"] = gaps[min(at, len(gaps) - 1)]
    return sorted(execute(session, _ids_statement(room), **parameters).scalars())[:count]


@cache
def _ids_statement(room: int) -> AnySelect:
    """The ids behind the cursor, and those in so many gaps."""
    count = bindparam("row_count", type_=Integer)
    behind = select(LOG.c.id).where(LOG.c.id > bindparam("last")).order_by(LOG.c.id).limit(count)
    if not room:
        return behind
    each = (LOG.c.id.between(bindparam(f"low_{at}"), bindparam(f"high_{at}")) for at in range(room))
    # The outer bounds serve planners that make no use of the alternatives.
    within = LOG.c.id.between(bindparam("first"), bindparam("last"))
    inside = select(LOG.c.id).where(within, or_(*each)).order_by(LOG.c.id).limit(count)
    return select(union_all(*(select(part.subquery().c.id) for part in (inside, behind))).subquery().c.id)


def _rows(
    session: Session, cursor: FeedCursor, ids: list[int], criteria: Sequence[ColumnElement[bool]], most: int
) -> tuple[dict[int, RowMapping], list[int]]:
    """Return up to `most` rows that meet the criteria, and the ids that were examined for them."""
    in_gaps = [number for number in ids if number <= cursor.last]
    behind = ids[len(in_gaps) :]
    rows: list[RowMapping] = []
    if in_gaps:
        rows += execute(session, _IN_GAPS.where(*criteria), ids=in_gaps, id_count=len(in_gaps)).mappings()
    if behind and len(rows) < most:
        first, final = behind[0], behind[-1]
        place = {"first_id": first, "final_id": final, "id_count": final - first + 1}
        rows += execute(session, _BEHIND.where(*criteria), **place, row_count=most - len(rows)).mappings()
    if len(rows) >= most:
        # Behind the last row the criteria were not tested.
        rows = rows[:most]
        ids = [number for number in ids if number <= rows[-1]["id"]]
    # A row that was committed after the ids were read is left to the next page, with those that belong before it.
    return {row["id"]: row for row in rows}, ids


def _present(session: Session, settlement: Settlement) -> FeedCursor:
    """The cursor behind the last log, with the gaps of the latest ones."""
    ids = sorted(execute(session, _NEWEST_IDS).scalars())
    if not ids:
        return FeedCursor()
    first = FeedCursor(ids[0])
    walk = Walk(first, settlement.settled(first, ids))
    for number in ids[1:]:
        walk.pass_id(number)
    return walk.cursor


def _checked_limit(limit: object) -> int:
    most = plain_int(limit)
    if most is None or not 1 <= most <= _MOST_PER_PAGE:
        raise ValueError(f"limit is {describe(limit)}: ask for 1 to {_MOST_PER_PAGE:,} logs")
    return most
