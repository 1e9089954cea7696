"""A SQLite file with some activities, for tests that only look."""

from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

import agentexec_otel as ax
from tests.conftest import reset_runtime

LONG_TYPE = "research.competitors.analysis_of_everything_there_is"


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """A SQLite file with our tables; this process stores activities in it."""
    found = f"sqlite:///{tmp_path / 'app.db'}"
    ax.configure(found, create_tables=True)
    yield found
    reset_runtime()


@pytest.fixture
def some(url: str) -> dict[str, UUID]:
    """One activity in each status, by its name in lower case."""
    made = {
        "queued": ax.activity.create("summarize", metadata={"tenant": "acme"}),
        "running": ax.activity.create(LONG_TYPE, metadata={"tenant": "acme", "order": 7}),
        "complete": ax.activity.create("research", metadata={"tenant": "globex"}),
        "error": ax.activity.create("research"),
        "canceled": ax.activity.create("research"),
    }
    ax.activity.update(made["running"], "Analyzing competitors and everything else in the market", 55)
    ax.activity.update(made["complete"], "Half", 50)
    ax.activity.complete(made["complete"])
    try:
        raise TimeoutError("no answer in 30 s")
    except TimeoutError:
        ax.activity.error(made["error"])
    ax.activity.cancel(made["canceled"])
    assert ax.flush()
    return made
