"""`agentexec-otel cancel`, `retry` and `reap`."""

from datetime import UTC, datetime
from uuid import UUID

import pytest
from sqlalchemy import create_engine, select, update
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel.activity import Activity, Status
from tests.cli.terminal import Terminal, run
from tests.databases import Database

pytestmark = pytest.mark.one_python


def statuses(url: str, *agent_ids: UUID) -> list[Status]:
    engine = create_engine(url)
    with Session(engine) as session:
        found = {row.agent_id: row.status for row in session.execute(select(Activity.agent_id, Activity.status))}
    engine.dispose()
    return [found[agent_id] for agent_id in agent_ids]


def test_life_of_a_command_on_each_database(database: Database) -> None:
    """Cancel by filter, retry by id, cancel by id: as the API does, in the database that the URL names."""
    ax.configure(database.url)
    ids = [ax.activity.create("research") for _ in range(3)]
    ax.shutdown()
    assert run("cancel", "--type", "research", "--yes", "--json", url=database.url).json == {
        "canceled": 3,
        "refused": {},
    }
    done = run("retry", str(ids[0]), "--yes", "--json", url=database.url)
    assert done.json == {"retried": {str(ids[0]): 2}, "refused": {}}
    assert run("cancel", str(ids[0]), "-y", url=database.url).out == f"{ids[0]}  canceled\n"
    assert statuses(database.url, *ids) == [Status.CANCELED] * 3
    assert run("reap", "--json", url=database.url).json == {"reaped": 0}


def test_question_and_count(url: str, some: dict[str, UUID]) -> None:
    """What will be canceled is shown and counted first. Any answer but yes leaves it alone, with exit code 1."""
    for answer, code, left in (("n\r", 1, Status.QUEUED), ("\r", 1, Status.QUEUED), ("y\r", 0, Status.CANCELED)):
        with Terminal("cancel", "-m", "tenant=acme", url=url) as terminal:
            shown = terminal.wait_for("Cancel 2 activities? [y/N]")
            assert str(some["queued"])[:8] in shown
            assert str(some["running"])[:8] in shown
            terminal.type(answer)
            assert terminal.end() == code
            assert ("2 activities canceled" in terminal.text) is (code == 0)
        assert statuses(url, some["queued"]) == [left]
    assert statuses(url, *some.values()) == [
        *(Status.CANCELED, Status.CANCELED, Status.COMPLETE, Status.ERROR, Status.CANCELED)
    ]


def test_without_a_terminal_nothing_is_asked(url: str, some: dict[str, UUID]) -> None:
    """A script that forgets `--yes` changes nothing, and is told so."""
    for arguments in (["cancel", "--all"], ["cancel", str(some["queued"])], ["retry", "--all"]):
        done = run(*arguments, url=url)
        assert (done.code, done.out) == (1, "")
        assert done.err == "agentexec-otel: there is no terminal to ask: give --yes\n"
    assert statuses(url, some["queued"], some["error"]) == [Status.QUEUED, Status.ERROR]


@pytest.mark.parametrize(
    "arguments",
    [
        ["cancel"],
        ["retry"],
        ["cancel", "--all", "--type", "research"],
        ["cancel", "abcd", "--all"],
        ["retry", "abcd", "--type", "research"],
        ["cancel", "--all", "--message", "Enough"],
        ["cancel", "--older-than", "1h", "--updated-until", "1h"],
        ["cancel", "--older-than", "soon"],
    ],
    ids=" ".join,
)
def test_exactly_one_way_to_choose(url: str, some: dict[str, UUID], arguments: list[str]) -> None:
    """A forgotten filter does not mean everything, and a contradiction is a usage error."""
    done = run(*arguments, "--yes", url=url)
    assert (done.code, done.out) == (2, "")
    assert statuses(url, some["queued"], some["error"]) == [Status.QUEUED, Status.ERROR]


def test_cancel_by_id(url: str, some: dict[str, UUID]) -> None:
    """Each id is reported; one that had ended already gives exit code 1, and the others are canceled."""
    ended, queued = some["complete"], some["queued"]
    done = run("cancel", str(ended), str(queued)[:8], str(queued), "--message", "Enough", "--yes", url=url)
    assert (done.code, done.out) == (1, f"{queued}  canceled\n")
    assert done.err == f"{ended}  it had ended already\n"
    assert "Enough" in run("show", str(queued), url=url).out
    assert run("cancel", "12345678-1234-4234-8234-123456789abc", "-y", url=url).code == 1


def test_cancel_old_ones(url: str, some: dict[str, UUID]) -> None:
    """`--older-than` means without a log for that long; only what is queued or running is canceled."""
    assert run("cancel", "--older-than", "1h", "-y", "--json", url=url).json["canceled"] == 0
    assert run("cancel", "--older-than", "0s", "--status", "error", "-y", "--json", url=url).json["canceled"] == 0
    assert run("cancel", "--older-than", "0s", "--status", "queued", "-y", "--json", url=url).json["canceled"] == 1
    assert run("cancel", "--all", "-y", url=url).err == "1 activity canceled\n"
    assert run("cancel", "--all", "-y", url=url).err == "no activity matches\n"


def test_retry_many(url: str, some: dict[str, UUID]) -> None:
    """With filters, those that have failed are re-opened, unless a status is named; their ids go to stdout."""
    done = run("retry", "--type", "research", "--message", "Once more", "--yes", url=url)
    assert (done.code, done.out, done.err) == (0, f"{some['error']}  attempt 2\n", "1 activity retried\n")
    assert statuses(url, some["error"], some["canceled"]) == [Status.QUEUED, Status.CANCELED]
    done = run("retry", "--status", "canceled", "--status", "running", "--yes", "--json", url=url)
    assert done.json == {"retried": {str(some["canceled"]): 2}, "refused": {}}
    done = run("retry", str(some["running"]), "--yes", url=url)
    assert (done.code, done.out) == (1, "")
    assert str(some["running"]) in done.err


def test_reap(url: str, some: dict[str, UUID]) -> None:
    """What a lost worker has left ends as ERROR; no other command does that by the way."""
    ax.shutdown()
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(
            update(Activity)
            .where(Activity.agent_id == some["running"])
            .values(worker_id="gone", lease_expires_at=datetime(2020, 1, 1, tzinfo=UTC))
        )
    engine.dispose()
    assert run("cancel", str(some["queued"]), "-y", url=url).code == 0
    assert statuses(url, some["running"]) == [Status.RUNNING]
    assert run("reap", url=url).err == "1 activity ended as lost\n"
    assert statuses(url, some["running"]) == [Status.ERROR]
    assert run("reap", url=url).err == "no activity ended as lost\n"
