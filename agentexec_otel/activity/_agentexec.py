"""The methods that agentexec's users call on `Activity`: in a `Session` as in its 0.1, in an `AsyncSession` as in 0.3.

`Activity` inherits them, so the queries on it are imported when they are called.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast, overload
from uuid import UUID

from sqlalchemy import RowMapping
from sqlalchemy.orm import Session

from agentexec_otel._model.event import Status

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from agentexec_otel.activity._sessions import AnySession
    from agentexec_otel.activity.models import Activity

_Metadata: TypeAlias = Mapping[str, Any] | None
_R = TypeVar("_R")


class AgentexecMethods:
    """Methods of agentexec's model. Each takes the session first; with an `AsyncSession` it returns a coroutine."""

    @overload
    @classmethod
    def create(
        cls, session: Session, agent_id: UUID | str, task_name: str, message: str, metadata: _Metadata = None
    ) -> Activity: ...

    @overload
    @classmethod
    def create(
        cls, session: AsyncSession, agent_id: UUID | str, task_name: str, message: str, metadata: _Metadata = None
    ) -> Coroutine[Any, Any, Activity]: ...

    @classmethod
    def create(
        cls, session: AnySession, agent_id: UUID | str, task_name: str, message: str, metadata: _Metadata = None
    ) -> Activity | Coroutine[Any, Any, Activity]:
        """Create an activity as `ax.activity.create` does, and return its row."""
        from agentexec_otel.activity._query import row_with_logs

        def work(own: Session) -> Activity:
            created = _package().create(task_name, message, agent_id, session=own, metadata=metadata)
            return cast("Activity", row_with_logs(own, created))

        return _within(session, work)

    @overload
    @classmethod
    def append_log(
        cls, session: Session, agent_id: UUID | str, message: str, status: Status, percentage: int | None = None
    ) -> bool: ...

    @overload
    @classmethod
    def append_log(
        cls, session: AsyncSession, agent_id: UUID | str, message: str, status: Status, percentage: int | None = None
    ) -> Coroutine[Any, Any, bool]: ...

    @classmethod
    def append_log(
        cls, session: AnySession, agent_id: UUID | str, message: str, status: Status, percentage: int | None = None
    ) -> bool | Coroutine[Any, Any, bool]:
        """Add a log as `ax.activity.update` does."""
        update = _package().aio.update if _is_async(session) else _package().update
        return cast("bool | Coroutine[Any, Any, bool]", update(agent_id, message, percentage, status, session=session))

    @overload
    @classmethod
    def get_by_agent_id(
        cls, session: Session, agent_id: UUID | str, metadata_filter: _Metadata = None
    ) -> Activity | None: ...

    @overload
    @classmethod
    def get_by_agent_id(
        cls, session: AsyncSession, agent_id: UUID | str, metadata_filter: _Metadata = None
    ) -> Coroutine[Any, Any, Activity | None]: ...

    @classmethod
    def get_by_agent_id(
        cls, session: AnySession, agent_id: UUID | str, metadata_filter: _Metadata = None
    ) -> Activity | Coroutine[Any, Any, Activity | None] | None:
        """Return the row with its logs. None if it does not exist or its metadata does not match."""
        from agentexec_otel.activity._query import row_with_logs

        return _within(session, lambda own: row_with_logs(own, agent_id, metadata_filter))

    @overload
    @classmethod
    def get_list(
        cls, session: Session, page: int = 1, page_size: int = 50, metadata_filter: _Metadata = None
    ) -> list[RowMapping]: ...

    @overload
    @classmethod
    def get_list(
        cls, session: AsyncSession, page: int = 1, page_size: int = 50, metadata_filter: _Metadata = None
    ) -> Coroutine[Any, Any, list[RowMapping]]: ...

    @classmethod
    def get_list(
        cls, session: AnySession, page: int = 1, page_size: int = 50, metadata_filter: _Metadata = None
    ) -> list[RowMapping] | Coroutine[Any, Any, list[RowMapping]]:
        """Return a page of mappings with agentexec's keys. RUNNING come first, then QUEUED, then the others.

        This order has no index: `ax.activity.list` is faster, with the newest first.
        """
        from agentexec_otel.activity._query import list_active_first

        return _within(session, lambda own: list_active_first(own, page, page_size, metadata_filter))

    @overload
    @classmethod
    def get_pending_ids(cls, session: Session) -> list[UUID]: ...

    @overload
    @classmethod
    def get_pending_ids(cls, session: AsyncSession) -> Coroutine[Any, Any, list[UUID]]: ...

    @classmethod
    def get_pending_ids(cls, session: AnySession) -> list[UUID] | Coroutine[Any, Any, list[UUID]]:
        """Return the ``agent_id`` of each activity that is QUEUED or RUNNING."""
        from agentexec_otel.activity._query import active_ids

        return _within(session, active_ids)

    @overload
    @classmethod
    def get_active_count(cls, session: Session) -> int: ...

    @overload
    @classmethod
    def get_active_count(cls, session: AsyncSession) -> Coroutine[Any, Any, int]: ...

    @classmethod
    def get_active_count(cls, session: AnySession) -> int | Coroutine[Any, Any, int]:
        """Count the activities that are QUEUED or RUNNING."""
        from agentexec_otel.activity._query import count_active

        return _within(session, count_active)


def _package() -> Any:
    """`agentexec_otel.activity`. If this module imported it, queries would depend on what writes."""
    return sys.modules["agentexec_otel.activity"]


def _within(session: AnySession, work: Callable[[Session], _R]) -> _R | Coroutine[Any, Any, _R]:
    if _is_async(session):
        return cast("AsyncSession", session).run_sync(work)
    return work(cast(Session, session))


def _is_async(session: object) -> bool:
    return hasattr(type(session), "run_sync")  # Its class cannot be imported without greenlet.
