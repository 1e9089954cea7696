"""How activities are retried: re-opened, and handed to something that runs them."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias, cast
from uuid import UUID

from fastapi import HTTPException

import agentexec_otel as ax
from agentexec_otel.activity import ActivityFilters, ActivityListItemSchema
from agentexec_otel.activity.models import Status
from agentexec_otel.web._database import Database
from agentexec_otel.web._schemas import RetriedMany
from agentexec_otel.web._scope import Scope

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from agentexec_otel import Pool

OnRetry: TypeAlias = Callable[[ActivityListItemSchema], Awaitable[object] | object]

_ENDED: Final = [status for status in Status if status.terminal]
_PAGE: Final = 1_000


class HandOver:
    """Re-opens activities in the database of the router, and hands them to the application."""

    def __init__(self, database: Database, on_retry: OnRetry) -> None:
        self._database = database
        self._on_retry = on_retry

    async def one(self, agent_id: UUID, message: str | None, scope: Scope) -> int:
        """Retry an activity that the scope allows. Return the number of the attempt.

        Raises:
            ActivityNotFoundError: There is none.
            ActivityStateError: It cannot be retried.
            HTTPException: It could not be handed to a worker, and has ended as ERROR.
        """
        attempt = await self._database.ask(partial(_reopen, agent_id=agent_id, message=message, scope=scope))
        await self._hand_over([agent_id])
        return attempt

    async def many(self, filters: ActivityFilters) -> RetriedMany:
        """Retry every activity that has ended and meets the filters. Default status: ERROR.

        Raises:
            HTTPException: Some could not be handed to a worker, and have ended as ERROR.
        """
        attempts = await self._database.ask(lambda session: ax.activity.retry_many(session, **filters))
        await self._hand_over(attempts)
        return RetriedMany(attempts=attempts)

    async def _hand_over(self, agent_ids: Iterable[UUID]) -> None:
        """Ask the application to run these activities. Any that it cannot run ends as ERROR again."""
        _check_sent([agent_id for agent_id in agent_ids if not await self._is_taken(agent_id)])

    async def _is_taken(self, agent_id: UUID) -> bool:
        activity = await self._database.ask(partial(ax.activity.get, agent_id=agent_id))
        if activity is None:
            return True
        try:
            done = self._on_retry(activity)
            if inspect.isawaitable(done):
                await done
        except Exception as exc:  # noqa: BLE001  # of the application
            text = f"The activity could not be handed to a worker: {type(exc).__name__}"
            await self._database.ask(lambda session: ax.activity.error(agent_id, text, session=session))
            return False
        return True


class PoolRetries:
    """Has a pool send tasks again whose context it has kept. Activities without a context are left as they are."""

    def __init__(self, database: Database, pool: Pool) -> None:
        self._database = database
        self._pool = pool

    async def one(self, agent_id: UUID, message: str | None, scope: Scope) -> int:
        """See `HandOver`."""
        query = partial(ax.activity.get, agent_id=agent_id, metadata_filter=scope.metadata_filter)
        if await self._database.ask(query) is None:
            raise ax.ActivityNotFoundError(agent_id)
        try:
            return (await self._pool.retry(agent_id, message)).attempt
        except ax.TaskNotSentError:
            _check_sent([agent_id])
            raise

    async def many(self, filters: ActivityFilters) -> RetriedMany:
        """See `HandOver`."""
        done = RetriedMany(attempts={})
        not_sent: list[UUID] = []
        for agent_id in await self._database.ask(partial(_ended, filters=filters)):
            try:
                done.attempts[agent_id] = (await self._pool.retry(agent_id)).attempt
            except (ax.ActivityStateError, ax.ActivityNotFoundError, ax.UnknownTaskError) as exc:
                done.refused[agent_id] = str(exc)
            except ax.TaskNotSentError:
                not_sent.append(agent_id)
        _check_sent(not_sent)
        return done


Retries: TypeAlias = HandOver | PoolRetries


def _reopen(session: Session, agent_id: UUID, message: str | None, scope: Scope) -> int:
    only = scope.metadata_filter
    opened = ax.activity.retry_many(session, message=message, agent_id=agent_id, status=_ENDED, metadata_filter=only)
    if agent_id in opened:
        return opened[agent_id]
    found = ax.activity.get(session, agent_id, only)
    if found is None:
        raise ax.ActivityNotFoundError(agent_id)
    raise ax.ActivityStateError(
        f"the activity {agent_id} is {found.status}: only an activity that has ended is retried"
    )


def _ended(session: Session, filters: ActivityFilters) -> list[UUID]:
    """The ids of the activities that have ended and meet the filters."""
    chosen = filters.get("status")
    statuses = [one for one in cast(list[Status], [Status.ERROR] if chosen is None else chosen) if one.terminal]
    wanted: ActivityFilters = {**filters, "status": statuses}
    found: list[UUID] = []
    cursor = "" if statuses else None
    while cursor is not None:
        page = ax.activity.list(session, page_size=_PAGE, cursor=cursor, **wanted)
        found += [item.agent_id for item in page.items]
        cursor = page.next_cursor
    return found


def _check_sent(not_sent: list[UUID]) -> None:
    """Raise HTTPException if there are any."""
    if not_sent:
        raise HTTPException(502, f"{len(not_sent)} activities could not be handed to a worker, and ended as ERROR.")
