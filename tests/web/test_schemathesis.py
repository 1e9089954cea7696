"""schemathesis: whatever is sent, each answer is one that the OpenAPI document describes."""

from collections.abc import Callable
from typing import Any, TypeVar
from uuid import UUID

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance  # pyright: ignore[reportUnknownVariableType]
from starlette.types import Receive, Scope, Send

import agentexec_otel as ax
from tests.databases import Database

pytestmark = [
    pytest.mark.one_python,
    # schemathesis uses `random` in its strategies.
    pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisDeprecationWarning"),
]

NAMES = ["queued", "running", "complete", "error", "canceled", "waiting"]
IDS = {name: UUID(int=number) for number, name in enumerate(NAMES, 1)}
ENDED = [IDS["complete"], IDS["error"], IDS["canceled"]]


class Served:
    """The application of the running test, for a schema that is read when tests are collected."""

    def __init__(self) -> None:
        self.app = self.over(None)

    @staticmethod
    def over(database: Database | None) -> FastAPI:
        """An application with the router on a database, which hands nothing to a worker."""
        app = FastAPI()
        engine = None if database is None else database.engine
        app.include_router(
            ax.web.router(authorize=ax.web.public, database=engine, on_retry=lambda item: None), prefix="/api"
        )
        return app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        await self.app(scope, receive, send)


Test = TypeVar("Test", bound=Callable[..., None])

served = Served()
# The stream of a list has no end: see test_streams.py.
whole: Any = schemathesis.openapi.from_asgi("/openapi.json", served)
schema: Any = whole.exclude(path="/api/events")


def parametrize(test: Test) -> Test:
    """Run a test for each operation. schemathesis has no type for it."""
    made: Test = schema.parametrize()(test)
    return made


PATIENT = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much]


def map_path_parameters(ctx: Any, path_parameters: Any) -> Any:
    """Take an activity that exists for most of the ids; of those that are streamed, one that has ended."""
    try:
        number = UUID(path_parameters["agent_id"]).int
    except (AttributeError, KeyError, TypeError, ValueError):
        return path_parameters
    streamed = ctx.operation.path.endswith(("/events", "/agui"))
    known = [*(ENDED if streamed else IDS.values()), UUID(int=99)]
    return {**path_parameters, "agent_id": str(known[number % len(known)])}


schema.hook(map_path_parameters)


@pytest.fixture
def activities(database: Database) -> None:
    """An activity of each status, with metadata."""
    ax.configure(database.url)
    for name, agent_id in IDS.items():
        ax.activity.create(name, agent_id=agent_id, metadata={"tenant": "acme", "priority": 5})
        if name != "queued":
            ax.activity.update(agent_id, "Reading.", 20)
    ax.activity.complete(IDS["complete"])
    ax.activity.error(IDS["error"], "No answer.")
    ax.activity.cancel(IDS["canceled"])
    with ax.activity.run(IDS["waiting"]) as run:
        run.waiting("approval", [{"tool": "pay", "call_id": "1"}])
    ax.flush()
    served.app = served.over(database)


def validate(case: Any) -> None:
    """Send a request, and apply all checks but one: a schema cannot say that a cursor excludes a page."""
    case.call_and_validate(excluded_checks=[positive_data_acceptance])


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@parametrize
@settings(max_examples=10, suppress_health_check=PATIENT, deadline=None)
def test_any_request(case: Any, activities: None) -> None:
    """No error of the server, and no answer that the document does not describe."""
    validate(case)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("database", ["sqlite", "postgres", "mariadb"], indirect=True)
@parametrize
@settings(max_examples=200, suppress_health_check=PATIENT, deadline=None)
def test_many_requests(case: Any, activities: None) -> None:
    """The same with more requests, on each database."""
    validate(case)
