"""What a request may see and do."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeVar

from fastapi import HTTPException, Request
from pydantic import BaseModel

from agentexec_otel.activity import ActivityFilters, ActivityLogSchema

__all__ = ["Scope", "public"]


@dataclass(frozen=True)
class Scope:
    """What the caller of a request may see and do.

    Attributes:
        metadata_filter: Only activities with these metadata exist for the caller. None: all of them.
        may_act: Whether the caller may cancel and retry.
        may_see_content: Whether the caller sees messages, errors and metadata. Without it they are empty, and filters
            that would reveal them are refused.
    """

    metadata_filter: Mapping[str, Any] | None = None
    may_act: bool = False
    may_see_content: bool = True


Authorize: TypeAlias = Callable[[Request], Scope | Awaitable[Scope | None] | None]

_Shown = TypeVar("_Shown", bound=BaseModel)


def public(request: Request) -> Scope:
    """Authorize every request to see and do everything. Only for a network that you trust."""
    return Scope(may_act=True)


async def scope_of(authorize: Authorize, request: Request) -> Scope:
    """Ask the application. Raises HTTPException if it refuses."""
    answer = authorize(request)
    scope = await answer if inspect.isawaitable(answer) else answer
    if scope is None:
        raise HTTPException(403, "You are not allowed to see these activities.")
    return scope


async def acting_scope(authorize: Authorize, request: Request) -> Scope:
    """Ask the application about a change. Raises HTTPException if it refuses, or if another site may have sent it."""
    scope = await scope_of(authorize, request)
    if not scope.may_act:
        raise HTTPException(403, "You are not allowed to cancel or retry activities.")
    if ACTION_HEADER not in request.headers:
        raise HTTPException(403, f"Send the header {ACTION_HEADER} with a change, with any value.")
    return scope


ACTION_HEADER = "X-AgentExec-Action"
"""A page of another site cannot add a header without the permission of CORS."""

_REVEALING = ("text", "error_type", "metadata_filter")


def scoped(filters: ActivityFilters, scope: Scope) -> ActivityFilters:
    """Add the scope to the filters of a request. Raises HTTPException if the request asks for more than it allows."""
    revealing = [name for name in _REVEALING if filters.get(name) is not None]
    if revealing and not scope.may_see_content:
        raise HTTPException(403, "You are not allowed to filter by messages, errors or metadata.")
    own, wanted = scope.metadata_filter or {}, filters.get("metadata_filter") or {}
    for name in own.keys() & wanted.keys():
        if wanted[name] != own[name]:
            raise HTTPException(403, f"You are not allowed to see activities with another {name!r}.")
    if own or wanted:
        return {**filters, "metadata_filter": {**wanted, **own}}
    return filters


_CONTENT: Final = {"latest_log": None, "error_type": None, "metadata": None}


def shown(activity: _Shown, scope: Scope) -> _Shown:
    """The activity as the scope may see it."""
    if scope.may_see_content:
        return activity
    hidden: dict[str, Any] = {name: value for name, value in _CONTENT.items() if name in type(activity).model_fields}
    if logs := getattr(activity, "logs", None):
        hidden["logs"] = [shown_log(log, scope) for log in logs]
    return activity.model_copy(update=hidden)


def shown_log(log: ActivityLogSchema, scope: Scope) -> ActivityLogSchema:
    """The log as the scope may see it."""
    return log if scope.may_see_content else log.model_copy(update={"message": ""})
