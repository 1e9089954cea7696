"""Workers are killed in mid-run: a real receiver of OTLP gets exactly one span for each activity."""

import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import Engine, select

import agentexec_otel as ax
from agentexec_otel.activity.models import Activity
from tests.chaos.conftest import ONE_FIRST
from tests.chaos.processes import Program, await_that
from tests.databases import Database
from tests.e2e.collector import Collector
from tests.e2e.rotel import plain, rotel

pytestmark = [
    pytest.mark.one_python,
    pytest.mark.skipif(sys.version_info >= (3, 14), reason="Rotel has no wheel for Python 3.14"),
]
WORKERS = 10
LEASE = "2"


@ONE_FIRST
def test_ten_killed_workers_leave_one_span_each(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the sweep, Rotel has passed on one span for each activity, which its child named as parent before."""
    with rotel(tmp_path) as receiver, ExitStack() as stack:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.http)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        ax.configure(database.url)
        ids = [ax.activity.create("research", metadata={"number": number}) for number in range(WORKERS)]
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.http, "AGENTEXEC_LEASE_SECONDS": LEASE}
        workers = [
            stack.enter_context(
                Program(tmp_path / str(agent_id), "traced_worker", database.url, str(agent_id), **environment)
            )
            for agent_id in ids
        ]
        for worker in workers:
            worker.says("running")
        for worker in workers:
            worker.kill()
        reaped = 0

        def sweep() -> bool:
            nonlocal reaped
            reaped += ax.activity.reap()
            return reaped == WORKERS

        await_that(sweep, 30, "the end of ten lost activities")
        await_that(lambda: all_exported(database.engine), 30, "the export of ten spans")
        assert ax.replay() == 0
        await_that(lambda: len(Collector.spans) >= 2 * WORKERS, 30, "ten spans and their children")
        assert_one_each(ids, database.engine)


def all_exported(engine: Engine) -> bool:
    with engine.connect() as connection:
        return None not in connection.scalars(select(Activity.span_exported_at)).all()


def assert_one_each(ids: list[UUID], engine: Engine) -> None:
    spans = list(Collector.spans)
    activities = [span for span in spans if span.name == "research"]
    children = [span for span in spans if span.name == "tool"]
    of = Counter(str(plain(span.attributes)["agentexec.agent_id"]) for span in activities)
    assert of == Counter(map(str, ids))
    assert sorted(child.parent_span_id for child in children) == sorted(span.span_id for span in activities)
    assert {child.trace_id for child in children} == {span.trace_id for span in activities}
    with engine.connect() as connection:
        stored = connection.execute(select(Activity.trace_id, Activity.span_id)).all()
    assert sorted(stored) == sorted((span.trace_id.hex(), span.span_id.hex()) for span in activities)
    for span in activities:
        attributes = plain(span.attributes)
        assert (attributes["agentexec.status"], attributes["agentexec.reason"]) == ("ERROR", "lost")
        assert [plain(event.attributes)["agentexec.log.message"] for event in span.events] == [
            "Waiting to start.",
            "Task started.",
            "half of it",
            "The worker was lost.",
        ]
