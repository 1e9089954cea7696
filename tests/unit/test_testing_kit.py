"""`agentexec_otel.testing`: the public kit, used as an application's tests would."""

from collections.abc import Callable
from itertools import permutations
from uuid import UUID, uuid4

import pytest

import agentexec_otel as ax
from agentexec_otel._model.event import Status
from agentexec_otel._model.fold import fold
from agentexec_otel.export import Ack, Reject
from agentexec_otel.testing import InMemoryActivityExporter
from tests.sql.rows import event, opening
from tests.unit.test_fold import stub


@pytest.fixture
def memory() -> InMemoryActivityExporter:
    exporter = InMemoryActivityExporter()
    ax.configure(exporters=[exporter])
    return exporter


def test_application_under_test(memory: InMemoryActivityExporter) -> None:
    """Without a database: what the code reports is in a list, and `status` says where each activity stands."""
    with ax.activity.run("research", metadata={"tenant": "acme"}) as run:
        run.update("Half way.", 50)
    failed = ax.activity.create("other")
    ax.activity.error(failed, "No.")
    assert ax.flush()
    assert [one.message for one in memory.events if one.agent_id == run.agent_id] == [
        "Waiting to start.",
        "Task started.",
        "Half way.",
        "Task completed successfully.",
    ]
    assert memory.events[0].opening is not None
    assert memory.events[0].opening.metadata == {"tenant": "acme"}
    assert (memory.status(run.agent_id), memory.status(failed)) == (Status.COMPLETE, Status.ERROR)
    assert memory.status(uuid4()) is None
    memory.clear()
    assert memory.events == []
    assert memory.status(failed) is None


def test_nothing_is_left_on_the_disk(memory: InMemoryActivityExporter) -> None:
    """It keeps no spool: a test leaves nothing behind."""
    ax.activity.create("task")
    assert ax.health()["exporters"][0]["durability"] == "memory"


def test_first_ending_wins(memory: InMemoryActivityExporter) -> None:
    """It decides as a database does: `complete` after `cancel` is False, and the status stays."""
    agent_id = ax.activity.create("task")
    assert ax.activity.cancel(agent_id)
    assert not ax.activity.complete(agent_id)
    assert memory.status(agent_id) is Status.CANCELED


def test_decides_as_the_fold_does() -> None:
    """Every order of a life with a claim and a retry, everything told twice, is answered as the SQL exporter does."""
    agent_id = UUID(int=7)
    told = [
        opening(agent_id),
        event(agent_id, attempt=1, claims=True),
        event(agent_id, Status.COMPLETE),
        event(agent_id, Status.CANCELED, attempt=1),
        event(agent_id, Status.QUEUED, reopens=True),
    ]
    for order in permutations(told):
        memory, row, known = InMemoryActivityExporter(), stub(), dict[UUID, bool]()
        for one in (*order, *order):
            (answer,) = memory.export([one])
            _, _, (expected,) = fold({agent_id: row}, [one], known, row.updated_at)
            if isinstance(expected, Reject):
                assert isinstance(answer, Reject)
                continue
            assert isinstance(expected, Ack)
            assert isinstance(answer, Ack)
            known[one.event_id] = expected.late
            assert (answer.status, answer.attempt, answer.duplicate) == (
                expected.status, expected.attempt, expected.duplicate,
            ), [str(step.status) for step in order]  # fmt: skip
            assert answer.duplicate or answer.late == expected.late
        assert memory.status(agent_id) is row.status


def test_calls_that_need_a_database_say_so(memory: InMemoryActivityExporter) -> None:
    """`retry` and `cancel_pending` ask the store: without one they say in a sentence what to configure."""
    agent_id = ax.activity.create("task")
    ax.activity.error(agent_id)
    calls: list[Callable[[], int]] = [lambda: ax.activity.retry(agent_id), ax.activity.cancel_pending, ax.activity.reap]
    for call in calls:
        with pytest.raises(ax.ConfigurationError, match=r"needs a database: call ax\.configure"):
            call()


def test_everything_public_is_there() -> None:
    """The kit's names are its `__all__`."""
    import agentexec_otel.testing as kit

    assert kit.__all__ == sorted(kit.__all__)
    for name in kit.__all__:
        assert getattr(kit, name).__doc__
