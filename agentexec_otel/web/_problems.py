"""Errors as problem details (RFC 9457)."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from http import HTTPStatus
from typing import Any, Final

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.exceptions import HTTPException

import agentexec_otel as ax


class Problem(BaseModel):
    """Problem details, as RFC 9457 has them."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    errors: list[dict[str, Any]] | None = None


_STATUSES: Final[Mapping[type[Exception], int]] = {
    ax.ActivityNotFoundError: 404,
    ax.ActivityStateError: 409,
    ax.UnknownTaskError: 409,
    ax.TaskResultError: 503,
    ax.ActivityNotStoredError: 503,
    ax.ConfigurationError: 503,
    ValueError: 422,
}

PROBLEM_TYPE: Final = "application/problem+json"


class ProblemRoute(APIRoute):
    """A route that answers errors with problem details, whatever handlers the application has."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap FastAPI's handler."""
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as exc:
                errors = [{name: error[name] for name in ("loc", "msg", "type")} for error in exc.errors()]
                first = errors[0]
                where = ".".join(str(part) for part in first["loc"])
                return problem(422, f"{where}: {first['msg']}", errors=errors)
            except HTTPException as exc:
                return problem(exc.status_code, str(exc.detail), headers=exc.headers)
            except tuple(_STATUSES) as exc:
                status = next(status for kind, status in _STATUSES.items() if isinstance(exc, kind))
                return problem(status, str(exc))

        return handled


def problem(
    status: int, detail: str, *, errors: list[dict[str, Any]] | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """A response with problem details."""
    content = Problem(title=HTTPStatus(status).phrase, status=status, detail=detail, errors=errors)
    return JSONResponse(content.model_dump(exclude_none=True), status, headers, media_type=PROBLEM_TYPE)
