"""The same functions for asyncio. They never block the event loop.

Without a session, a life-cycle call waits in a thread. With an `AsyncSession` as ``session=`` (by name), it runs on
that session, like the queries.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

from sqlalchemy.orm import Session

from agentexec_otel._model.text import type_name
from agentexec_otel.activity import _feed, _lifecycle, _query, _stats
from agentexec_otel.activity._follow import follow_async as follow
from agentexec_otel.activity._follow import follow_feed_async as follow_feed
from agentexec_otel.activity._retention.archive import archive_async as archive
from agentexec_otel.activity._retention.archive import restore_async as restore

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

__all__ = [
    "archive",
    "cancel",
    "cancel_pending",
    "complete",
    "count_active",
    "create",
    "detail",
    "error",
    "feed",
    "follow",
    "follow_feed",
    "get",
    "list",
    "logs",
    "reap",
    "restore",
    "retry",
    "retry_many",
    "stats",
    "update",
]

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _asynchronous(session: AsyncSession) -> AsyncSession:
    if not hasattr(type(session), "run_sync"):  # its class cannot be imported without greenlet
        raise TypeError(
            f"session must be an AsyncSession here, got {type_name(session)}: a Session is for ax.activity itself"
        )
    return session


def _lifecycle_twin(
    function: Callable[_P, _R], alone: Callable[..., Coroutine[Any, Any, _R]] | None = None, *, reports: bool = False
) -> Callable[_P, Coroutine[Any, Any, _R]]:
    """Return the asynchronous twin of a life-cycle call.

    Args:
        alone: Used without a session, instead of a thread.
        reports: The call reports on an existing activity, so events that were reported before are stored first.
    """

    @wraps(function)
    async def twin(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        session = cast("AsyncSession | None", kwargs.pop("session", None))
        if session is None:
            return await (alone or partial(asyncio.to_thread, function))(*args, **kwargs)
        session = _asynchronous(session)
        if reports:
            await _lifecycle.store_pending(session, args[0] if args else kwargs.get("agent_id"))
        return await session.run_sync(lambda own: cast(Any, function)(*args, session=own, **kwargs))

    return twin


def _query_twin(
    function: Callable[Concatenate[Session, _P], _R],
) -> Callable[Concatenate[AsyncSession, _P], Coroutine[Any, Any, _R]]:
    async def twin(session: AsyncSession, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        return await _asynchronous(session).run_sync(function, *args, **kwargs)

    # functools.wraps is typed to keep the wrapped function's parameters.
    return cast(Callable[Concatenate["AsyncSession", _P], Coroutine[Any, Any, _R]], wraps(function)(twin))


create = _lifecycle_twin(_lifecycle.create, _lifecycle.create_async)
update = _lifecycle_twin(_lifecycle.update, reports=True)
complete = _lifecycle_twin(_lifecycle.complete, reports=True)
error = _lifecycle_twin(_lifecycle.error, reports=True)
cancel = _lifecycle_twin(_lifecycle.cancel, reports=True)
retry = _lifecycle_twin(_lifecycle.retry)
retry_many = _lifecycle_twin(_lifecycle.retry_many)
cancel_pending = _lifecycle_twin(_lifecycle.cancel_pending)
reap = _lifecycle_twin(_lifecycle.reap)

detail = _query_twin(_query.detail)
get = _query_twin(_query.get)
list = _query_twin(_query.list)
logs = _query_twin(_query.logs)
feed = _query_twin(_feed.feed)
count_active = _query_twin(_query.count_active)
stats = _query_twin(_stats.stats)
