"""What Arize Phoenix and MLflow show of runs: the tree, its kinds, endings, tokens and conversation.

The backends are real, each in an environment of its own: `make test-receivers`.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.chaos.processes import environment_with
from tests.receivers import produce
from tests.receivers.backends import ENVIRONMENTS, Backend, Phoenix, SeenSpan, mlflow, phoenix

pytestmark = [pytest.mark.receivers, pytest.mark.slow, pytest.mark.one_python, pytest.mark.timeout(900)]

TOKENS = 26  # of the two calls of a model, 10 in and 3 out each
LIBRARIES = ("none", "official", "openinference")
EVENTS = (
    "Waiting to start.",
    "Task started.",
    "Turn 1: Researcher",
    "Calling look_up",
    "Turn 2: Researcher",
    "Task completed successfully.",
)

Rows = dict[str, dict[str, Any]]


@pytest.fixture(scope="module", params=["phoenix", "mlflow"])
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """One of the backends, at work."""
    if not (ENVIRONMENTS / request.param).exists():
        pytest.skip(f"{ENVIRONMENTS / request.param} does not exist: `make receivers` creates it")
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "phoenix":
        with phoenix(folder) as running:
            yield running
    else:
        with mlflow(folder) as server:
            yield server


@pytest.fixture(scope="module", params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> str:
    """What is instrumented beside us."""
    return str(request.param)


@pytest.fixture(scope="module")
def rows(backend: Backend, library: str, tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """The activities of a process that has sent their spans to the backend, by their types."""
    folder = tmp_path_factory.mktemp("app")
    arguments = backend.endpoint, json.dumps(backend.headers), library, str(folder)
    variables = {"AGENTEXEC_EVENT_NAME": "message", "AGENTEXEC_TRACE_URL_TEMPLATE": backend.template}
    done = subprocess.run(
        [sys.executable, "-m", produce.__name__, *arguments],
        env=environment_with(variables),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def seen(backend: Backend, row: dict[str, Any], at_least: int = 1) -> list[SeenSpan]:
    """The spans of an activity's trace, once they are there: backends store them a moment later."""
    deadline = time.monotonic() + 60
    while len(found := backend.spans(row["trace_id"])) < at_least:
        assert time.monotonic() < deadline, f"{found} are all"
        time.sleep(0.2)
    return found


def test_a_run_is_an_agent_above_its_steps(backend: Backend, rows: Rows, library: str) -> None:
    """The activity's span is the root, of the kind AGENT, with its logs; agents, tools and models are below it."""
    found = seen(backend, rows["Researcher"], 1 if library == "none" else 6)
    (root,) = [span for span in found if span.parent is None]
    assert (root.name, root.kind, root.status == "ERROR") == ("Researcher", "AGENT", False)
    assert root.events == EVENTS
    kinds = [span.kind for span in found]
    models = [kind for kind in kinds if kind in ("LLM", "CHAT_MODEL")]
    assert (len(models), kinds.count("TOOL")) == ((0, 0) if library == "none" else (2, 1))
    assert all(span.parent is not None for span in found if span is not root)


def test_tokens_are_not_counted_twice(backend: Backend, rows: Rows, library: str) -> None:
    """Beside spans of models the total is that of the run.

    Phoenix counts spans of models only, so it has none for a run without them; MLflow counts the topmost span that has
    tokens.
    """
    seen(backend, rows["Researcher"], 1 if library == "none" else 6)
    expected = 0 if isinstance(backend, Phoenix) and library == "none" else TOKENS
    assert backend.tokens(rows["Researcher"]["trace_id"]) == expected
    assert rows["Researcher"]["input_tokens"] + rows["Researcher"]["output_tokens"] == TOKENS


def test_endings(backend: Backend, rows: Rows) -> None:
    """A failure is an error, a cancellation is not; both are agents with the reason as their last event."""
    (failed,) = seen(backend, rows["failing"])
    assert failed == SeenSpan(
        "failing", "AGENT", None, "ERROR", ("Waiting to start.", "Task started.", "Task failed: no answer in 30 s")
    )
    (canceled,) = seen(backend, rows["canceled"])
    assert (canceled.kind, canceled.status == "ERROR") == ("AGENT", False)
    assert canceled.events == ("Waiting to start.", "Not needed.")


def test_conversation(backend: Backend, rows: Rows) -> None:
    """The run is in the session that the application has named, which other runs may join."""
    seen(backend, rows["Researcher"])
    assert backend.session(rows["Researcher"]["trace_id"]) == "chat 7"
    assert backend.session(rows["canceled"]["trace_id"]) is None
