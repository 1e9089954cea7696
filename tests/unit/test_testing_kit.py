"""`agentexec_otel.testing`: the public kit, used as an application's tests would."""

from collections.abc import Callable
from uuid import uuid4

import pytest

import agentexec_otel as ax
from agentexec_otel.activity.models import Status
from agentexec_otel.export import Refusal, Reject
from agentexec_otel.testing import InMemoryActivityExporter
from tests.sql.rows import event, opening


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


def test_second_creation_is_refused(memory: InMemoryActivityExporter) -> None:
    """An id is created once, and an activity that was never created is unknown, as in a database."""
    agent_id = ax.activity.create("task")
    (twice, unknown) = memory.export([opening(agent_id), event(uuid4(), expects_row=True)])
    assert isinstance(twice, Reject)
    assert isinstance(unknown, Reject)
    assert (twice.refusal, unknown.refusal) == (Refusal.EXISTS, Refusal.UNKNOWN)
    assert len(memory.events) == 1


def test_calls_that_need_a_database_say_so(memory: InMemoryActivityExporter) -> None:
    """`cancel_pending` and `reap` look for activities: without a database they say in a sentence what to configure."""
    agent_id = ax.activity.create("task")
    ax.activity.error(agent_id)
    assert ax.activity.retry(agent_id) == 2, "the kit decides this as a database does"
    calls: list[Callable[[], int]] = [ax.activity.cancel_pending, ax.activity.reap]
    for call in calls:
        with pytest.raises(ax.ConfigurationError, match=r"needs a database: call ax\.configure"):
            call()


def test_everything_public_is_there() -> None:
    """The kit's names are its `__all__`."""
    import agentexec_otel.testing as kit

    assert kit.__all__ == sorted(kit.__all__)
    for name in kit.__all__:
        assert getattr(kit, name).__doc__
