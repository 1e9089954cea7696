"""What callers hand in arrives, as safe text and in range, on every database."""

import math
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel._model.text import clean_message
from agentexec_otel.activity.models import Status
from tests.databases import Database
from tests.sql.rows import count_rows, lines, row

pytestmark = pytest.mark.one_python

only_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)

LIMIT = 8_192
HOSTILE = [
    "'; DROP TABLE agentexec_activity; --",
    '"; DROP TABLE agentexec_activity; --',
    "`; DROP TABLE agentexec_activity; -- `",
    "%s %(x)s {0} {x!r} :name ? $1 \\ \\' \\0",
    "' OR 1=1 /*",
    "${jndi:ldap://x}",
]


@pytest.fixture(autouse=True)
def configured(database: Database) -> None:
    ax.configure(database.url)


def stored_messages(database: Database, agent_id: UUID) -> list[str]:
    assert ax.flush()
    return [log.message for log in lines(database.engine, agent_id)]


BAD_IDS: list[Any] = [
    "", " ", "1", "{12345678-1234-5678-1234-567812345678}", "urn:uuid:12345678-1234-5678-1234-567812345678",
    "12345678-1234-5678-1234-56781234567", "12345678-1234-5678-1234-5678123456789", "1234567812345678-1234567812345678",
    "\uff11\uff12\uff13\uff14\uff15\uff16\uff17\uff18-1234-5678-1234-567812345678",
    "' or 1=1", "g2345678-1234-5678-1234-567812345678",
    " 12345678-1234-5678-1234-567812345678", "12345678-1234-5678-1234-567812345678\n", "1234\x005678", "\ud800",
    None, 0, 1.5, True, b"1234567812345678", object(), ["12345678-1234-5678-1234-567812345678"],
]  # fmt: skip


def calls_with(bad: Any, session: Session) -> list[Callable[[], object]]:
    calls: list[Callable[[], object]] = [
        lambda: ax.activity.update(bad, "x"),
        lambda: ax.activity.complete(bad),
        lambda: ax.activity.error(bad),
        lambda: ax.activity.cancel(bad),
        lambda: ax.activity.retry(bad),
        lambda: ax.activity.detail(session, bad),
        lambda: ax.activity.logs(session, bad),
    ]
    return calls if bad is None else [*calls, lambda: ax.activity.create("task", agent_id=bad)]


@only_sqlite
def test_bad_ids_are_refused_at_the_call(database: Database) -> None:
    """Whatever is no UUID is a ValueError of the call that was made, which says so; no database is asked."""
    with Session(database.engine) as session:
        for bad in BAD_IDS:
            for call in calls_with(bad, session):
                with pytest.raises(ValueError, match="agent_id must be a UUID"):
                    call()
        assert not session.in_transaction()
    assert count_rows(database.engine) == (0, 0)


@only_sqlite
def test_good_ids_in_any_form(database: Database) -> None:
    """A UUID, its text in any case, with all dashes or none, all name the same activity."""
    agent_id = ax.activity.create("task")
    forms: list[UUID | str] = [str(agent_id), str(agent_id).upper(), agent_id.hex, UUID(str(agent_id))]
    for number, form in enumerate(forms):
        assert ax.activity.update(form, "x")
        assert ax.flush()
        with Session(database.engine) as session:
            assert len(ax.activity.logs(session, form)) == number + 2


PERCENTAGES: list[tuple[Any, int | None]] = [
    (None, None), (0, 0), (100, 100), (-5, 0), (250, 100), (33.7, 33), (99.999, 99), (10**30, 100), (-(10**30), 0),
    ("50", 50), (" 7.5 ", 7), ("fifty", None), ("", None), ("NaN", None), ("\u0665\u0660", None),
    (True, None), (False, None),
    (math.nan, None), (math.inf, None), (-math.inf, None), (1e308, 100), (5e-324, 0), (object(), None), (b"50", None),
    ([50], None), (10**5000, 100),
]  # fmt: skip


def test_percentages(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    """Any percentage is stored as an integer of 0 to 100 or as none, with one warning; it never fails a line."""
    agent_id = ax.activity.create("task")
    for given_value, _ in PERCENTAGES:
        assert ax.activity.update(agent_id, "line", given_value)
        assert ax.activity.update(agent_id, "line", given_value)
    assert ax.flush()
    stored = [log.percentage for log in lines(database.engine, agent_id)[1::2]]
    assert stored == [expected for _, expected in PERCENTAGES]
    assert all(type(one) is int or one is None for one in stored)
    assert row(database.engine, agent_id).latest_percentage == 100
    warnings = [record.getMessage() for record in caplog.records if "percentage" in record.getMessage()]
    assert len(warnings) == len(set(warnings)) >= 9


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_fractions(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    """A loop that reports 0.1, 0.2, … for 10 %, 20 %, … is warned of that once, and stored as it was."""
    agent_id = ax.activity.create("task")
    for number in range(1, 10):
        assert ax.activity.update(agent_id, "line", number / 10)
    assert ax.flush()
    assert row(database.engine, agent_id).latest_percentage == 0
    assert [record.getMessage() for record in caplog.records] == [
        "percentage is a fraction below 1: it is stored as 0; pass 50 for 50 %"
    ]


def test_percentages_of_every_call(database: Database) -> None:
    """`complete` and `error` clamp as `update` does, and `complete(percentage=None)` leaves the latest one."""
    first, second, third = (ax.activity.create("task") for _ in range(3))
    ax.activity.update(third, "x", 70)
    ax.activity.complete(first, percentage=250)
    ax.activity.error(second, percentage=math.nan)
    ax.activity.complete(third, percentage=None)
    assert [row(database.engine, one).latest_percentage for one in (first, second, third)] == [100, None, 70]
    assert [row(database.engine, one).status for one in (first, second)] == [Status.COMPLETE, Status.ERROR]


def test_database_refuses_other_percentages(database: Database) -> None:
    """The tables themselves hold no percentage out of range and no unknown status, whoever writes."""
    agent_id = ax.activity.create("task")
    assert row(database.engine, agent_id).latest_percentage is None
    for change in ("latest_percentage = 101", "latest_percentage = -1", "status = 'DONE'"):
        with pytest.raises(Exception, match=r"(?i)constraint"), database.engine.begin() as connection:
            connection.execute(text(f"UPDATE agentexec_activity SET {change}"))
    for change in ("percentage = 101", "status = 'DONE'"):
        with pytest.raises(Exception, match=r"(?i)constraint"), database.engine.begin() as connection:
            connection.execute(text(f"UPDATE agentexec_activity_log SET {change}"))


MESSAGES: list[tuple[Any, str]] = [
    ("a\x00b", "a\u2400b"),
    ("a\ud800b\udfff", "a\ufffdb\ufffd"),
    ("\x1b[31mred\r\n", "\\x1b[31mred\\r\n"),
    ("tab\tand\nline", "tab\tand\nline"),
    ("\u202eevil", "\\u202eevil"),
    ("", ""),
    (" spaces kept ", " spaces kept "),
    ("\U0001d518 😀 e\u0301 नमस्ते", "\U0001d518 😀 e\u0301 नमस्ते"),
    (None, "<NoneType>"),
    (12, "<int>"),
    (b"bytes", "<bytes>"),
    *((one, one) for one in HOSTILE),
]


def test_messages(database: Database) -> None:
    """NUL, surrogates and controls become visible; braces, quotes and 4-byte characters stay as they are."""
    agent_id = ax.activity.create("task")
    for message, _ in MESSAGES:
        assert ax.activity.update(agent_id, message)
    assert stored_messages(database, agent_id)[1:] == [expected for _, expected in MESSAGES]


def test_long_messages(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages are cut at the limit of bytes, on a whole character, and say how much is missing."""
    agent_id = ax.activity.create("task")
    given_messages = [
        "x" * 100_000,
        "x" * LIMIT,
        "x" * (LIMIT + 1),
        *("y" * shift + "😀" * 3_000 for shift in range(4)),
    ]
    for message in given_messages:
        ax.activity.update(agent_id, message)
    stored = stored_messages(database, agent_id)[1:]
    assert all(len(one.encode()) <= LIMIT for one in stored)
    assert stored[1] == given_messages[1]
    assert stored[0].startswith("x" * 8_000)
    assert stored[0].endswith(" bytes]")
    for message, one in zip(given_messages[3:], stored[3:], strict=True):
        kept, _, rest = one.partition("…[+")
        assert message.startswith(kept)
        assert len(message.encode()) == len(kept.encode()) + int(rest.removesuffix(" bytes]"))
    monkeypatch.setattr(ax.CONF, "message_limit", 61_440)
    ax.activity.update(agent_id, "😀" * 20_000)
    assert 61_400 < len(stored_messages(database, agent_id)[-1].encode()) <= 61_440


class UnprintableError(Exception):
    """An error whose text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_error_texts(database: Database) -> None:
    """An error's text is put in as it is: braces, percent signs, none at all, or one that cannot be told."""
    ids: list[UUID] = []
    for error in (KeyError("{0.__class__}"), ValueError("100 %s {error} {}"), RuntimeError(), UnprintableError()):
        run = ax.activity.run("task")
        with pytest.raises(type(error)), run:
            raise error
        ids.append(run.agent_id)
    assert [stored_messages(database, one)[-1] for one in ids] == [
        "Task failed: KeyError: '{0.__class__}'",
        "Task failed: 100 %s {error} {}",
        "Task failed: RuntimeError",
        "Task failed: UnprintableError",
    ]


def test_hostile_text_in_every_field(database: Database) -> None:
    """SQL in any string is text: stored as it is, found by it, and nothing else happens."""
    for hostile in HOSTILE:
        agent_id = ax.activity.create(hostile, hostile, metadata={"key": hostile, hostile: "value"})
        ax.activity.update(agent_id, hostile, 10)
        ax.activity.error(agent_id, hostile)
        with Session(database.engine) as session:
            found = ax.activity.detail(session, agent_id, metadata_filter={"key": hostile})
            assert found is not None
            assert (found.agent_type, found.metadata) == (hostile, {"key": hostile, hostile: "value"})
            assert {log.message for log in found.logs} == {hostile}
            assert ax.activity.list(session, agent_type=hostile).total == 1
            assert ax.activity.list(session, metadata_filter={"key": hostile}).total == 1
            with pytest.raises(ValueError, match=r"metadata_filter"):
                ax.activity.list(session, metadata_filter={hostile: "value"})
            with pytest.raises(ValueError, match="is no status"):
                ax.activity.list(session, status=hostile)
        with pytest.raises(ValueError, match="metadata_filter"):
            ax.activity.cancel_pending(metadata_filter={hostile: "value"})
        with pytest.raises(ValueError, match="is no status"):
            ax.activity.update(agent_id, "x", status=hostile)
        assert ax.activity.cancel_pending(agent_type=hostile, worker_id=hostile) == 0
    assert count_rows(database.engine) == (len(HOSTILE), 3 * len(HOSTILE))


NAMES = ["a\x00b", "lone \ud800", "\x1b[31m", "x" * 300, "😀" * 300, "tür\r\n"]


def test_task_names(database: Database) -> None:
    """Any task name is stored as safe text of the column's length, the same on every database, and found again."""
    for name in NAMES:
        agent_id = ax.activity.create(name)
        stored = row(database.engine, agent_id).agent_type
        assert len(stored) <= 255
        assert stored == clean_message(stored)
        assert stored[:2] == clean_message(name)[:2]
        with Session(database.engine) as session:
            joined = ax.activity.create(name, session=session)
            assert ax.activity.list(session, agent_type=stored).total == 2
        assert row(database.engine, joined).agent_type == stored
    with ax.activity.run(NAMES[0]) as run:
        pass
    assert row(database.engine, run.agent_id).status is Status.COMPLETE


@only_sqlite
def test_bad_task_names(database: Database) -> None:
    """A task name that is empty or no string is refused at the call."""
    names: list[Any] = ["", "  ", None, 5, b"task"]
    for name in names:
        with pytest.raises(ValueError, match="task_name must be a non-empty string"):
            ax.activity.create(name)
    assert count_rows(database.engine) == (0, 0)


def test_odd_text_in_a_query(database: Database) -> None:
    """A query for text that no row can hold finds nothing, and breaks nothing."""
    ax.activity.create("task", metadata={"key": "value"})
    with Session(database.engine) as session:
        for odd in ("a\x00b", "\ud800", "x" * 10_000):
            assert ax.activity.list(session, agent_type=odd).total == 0
            assert ax.activity.list(session, metadata_filter={"key": odd}).total == 0
        assert ax.activity.list(session).total == 1


def test_usage_that_is_no_count(database: Database) -> None:
    """A run ends as it ended, whatever its token counts are: what no column can hold is left out."""
    usages: list[Any] = [(10**30, 1), (-1, 5), (1.5, 2), (math.nan, None), ("7", 3), (True, 1)]
    for usage in usages:
        with ax.activity.run("task") as run:
            run.record_usage(*usage)
        stored = row(database.engine, run.agent_id)
        assert stored.status is Status.COMPLETE
        assert stored.input_tokens is None
        assert stored.output_tokens == usage[1]


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(max_size=200), min_size=15, max_size=25))
def test_any_text_comes_back(database: Database, messages: list[str]) -> None:
    """Whatever text is written comes back as `clean_message` shows it, in order and complete."""
    agent_id = ax.activity.create("task")
    for message in messages:
        assert ax.activity.update(agent_id, message)
    assert stored_messages(database, agent_id)[1:] == [clean_message(message) for message in messages]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.text(max_size=20), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
), max_size=6))  # fmt: skip
def test_any_metadata_is_stored_alike(database: Database, metadata: dict[str, Any]) -> None:
    """Whatever metadata is accepted comes back as it was cleaned, the same from every database."""
    from agentexec_otel._model.text import prepare_metadata

    agent_id = ax.activity.create("task", agent_id=uuid4(), metadata=metadata)
    with Session(database.engine) as session:
        found = ax.activity.detail(session, agent_id)
    assert found is not None
    assert found.metadata == prepare_metadata(metadata)
