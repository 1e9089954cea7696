"""Metadata filters find the rows whose value equals the one given: the same ones on every database."""

import math
import random
import struct
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

import agentexec_otel as ax
from tests.databases import Database

pytestmark = pytest.mark.one_python

# Each is stored under the key "value" of one activity, named by its place.
VALUES: list[Any] = [
    "acme", "Acme", "5", 5, 5.0, 5.5, "5.5", True, "true", 1, "1", False, 0, "", None, "null", [5], {"a": 5}, -1, 2**62,
    2**31, 0.1, 1e300, 0.1 + 0.2, 0.3, 1 / 3, 123456789.12345678, 5e-324, 1.7976931348623157e308, 1e-05, -0.0, 0.0,
    1e16, 10**16, 1e22, 2.0**53, 2**53, 2**53 + 1, 2.0**60, 2**60, 1152921504606847000, 2.0**62, 2.0**63, -(2.0**63),
    -(2**63), "tür 😀", "it's", "%", "a\\b", '"quoted"', " acme", "acme ",
]  # fmt: skip


@pytest.fixture(autouse=True)
def configured(database: Database) -> None:
    ax.configure(database.url)


def same(stored: Any, wanted: Any) -> bool:
    """Equality of JSON values: numbers by value, and a boolean is no number."""
    if isinstance(stored, bool) or isinstance(wanted, bool):
        return stored is wanted
    if isinstance(stored, int | float) and isinstance(wanted, int | float):
        return stored == wanted
    return type(stored) is type(wanted) and stored == wanted


def test_each_type_finds_its_own(database: Database) -> None:
    """A string finds that string, a number that number, a boolean that boolean; other rows' types do no harm."""
    for place, value in enumerate(VALUES):
        ax.activity.create(str(place), metadata={"value": value, "other": place})
    ax.activity.create("none")
    with Session(database.engine) as session:
        for wanted in VALUES:
            if not isinstance(wanted, str | bool | int | float):
                continue
            found = ax.activity.list(session, metadata_filter={"value": wanted})
            expected = [str(place) for place, stored in enumerate(VALUES) if same(stored, wanted)]
            assert sorted(item.agent_type for item in found.items) == sorted(expected), wanted
            assert found.total == len(expected)


def test_all_keys_have_to_match(database: Database) -> None:
    """Several keys are joined by AND; a key that is missing matches nothing; an empty filter matches everything."""
    one = ax.activity.create("one", metadata={"tenant": "acme", "user": 7, "beta": True})
    ax.activity.create("two", metadata={"tenant": "acme", "user": 8})
    with Session(database.engine) as session:
        matching = ax.activity.list(session, metadata_filter={"tenant": "acme", "user": 7, "beta": True})
        assert [item.agent_id for item in matching.items] == [one]
        assert ax.activity.list(session, metadata_filter={"tenant": "acme"}).total == 2
        assert ax.activity.list(session, metadata_filter={"absent": "acme"}).total == 0
        assert ax.activity.list(session).total == 2
        assert ax.activity.detail(session, one, metadata_filter={"user": 7}) is not None
        assert ax.activity.detail(session, one, metadata_filter={"user": 8}) is None
        assert ax.activity.detail(session, one, metadata_filter={"user": "7"}) is None
    assert ax.activity.cancel_pending(metadata_filter={"user": 8}) == 1


def test_keys_with_every_allowed_character(database: Database) -> None:
    """A key with dots, slashes, colons, dashes and spaces is that key, and no path into nested values."""
    keys = ["a.b", "a/b", "a:b", "a-b", "a b", "0", "_x", "K" * 128]
    ax.activity.create("flat", metadata=dict.fromkeys(keys, "yes"))
    ax.activity.create("nested", metadata={"a": {"b": "yes"}})
    with Session(database.engine) as session:
        for key in keys:
            found = ax.activity.list(session, metadata_filter={key: "yes"})
            assert [item.agent_type for item in found.items] == ["flat"], key


BAD: list[Any] = [
    {"": "x"}, {"a'b": "x"}, {'a"b': "x"}, {"a$": "x"}, {"a[0]": "x"}, {"a,b": "x"}, {"{a}": "x"}, {"\x00": "x"},
    "", [], "tenant", {1: "x"},
    {"K" * 129: "x"}, {"a\n": "x"}, {"a": None}, {"a": [1]}, {"a": {"b": 1}}, {"a": b"x"}, {"a": object()},
]  # fmt: skip


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_bad_filters(database: Database) -> None:
    """Another key, or a value that is no string, number or boolean, is a ValueError before any database is asked."""
    with Session(database.engine) as session:
        for bad in BAD:
            with pytest.raises(ValueError, match="metadata_filter"):
                ax.activity.list(session, metadata_filter=bad)
            with pytest.raises(ValueError, match="metadata_filter"):
                ax.activity.cancel_pending(session, metadata_filter=bad)
        assert not session.in_transaction()


def test_numbers_that_no_row_can_hold(database: Database) -> None:
    """NaN, infinities and integers beyond 64 bits are stored as text: a filter for the number finds nothing."""
    numbers: list[tuple[float, str]] = [(float("nan"), "NaN"), (float("inf"), "Infinity"), (10**30, str(10**30))]
    for number, text in numbers:
        ax.activity.create("task", metadata={"n": number, "m": 1})
        with Session(database.engine) as session:
            assert ax.activity.list(session, metadata_filter={"n": number}).total == 0
            assert ax.activity.list(session, metadata_filter={"n": -number}).total == 0
            assert ax.activity.list(session, metadata_filter={"n": text, "m": 1}).total == 1


def test_integers_that_no_float_holds(database: Database) -> None:
    """Ids beyond 2**53, as other services number their tenants, find their own row and not their neighbour's."""
    ids = [2**53 - 1, 2**53, 2**53 + 1, 2**62 + 1, 2**63 - 1, -(2**53) - 1, -(2**63)]
    for number in ids:
        ax.activity.create(str(number), metadata={"tenant": number})
    for number in ids:
        with Session(database.engine) as session:
            found = ax.activity.list(session, metadata_filter={"tenant": number}).items
        assert [item.agent_type for item in found] == [str(number)]


@pytest.mark.parametrize("in_session", [False, True])
def test_an_endpoint_of_a_tenant_needs_no_check(database: Database, in_session: bool) -> None:
    """`cancel`, `retry` and `logs` with the filter of another tenant treat the activity as one that does not exist."""
    mine = ax.activity.create("task", metadata={"tenant": "acme", "user": 7})
    acme: dict[str, Any] = {"tenant": "acme", "user": 7}
    globex: dict[str, Any] = {"tenant": "globex"}
    with Session(database.engine) as session:
        given = session if in_session else None
        for agent_id, wanted in ((mine, globex), (uuid4(), acme)):
            with pytest.raises(ax.ActivityNotFoundError):
                ax.activity.cancel(agent_id, session=given, metadata_filter=wanted)
            session.rollback()
            with pytest.raises(ax.ActivityNotFoundError):
                ax.activity.logs(session, agent_id, metadata_filter=wanted)
            with pytest.raises(ax.ActivityNotFoundError):
                ax.activity.retry(agent_id, metadata_filter=wanted)
        assert len(ax.activity.logs(session, mine, metadata_filter=acme)) == 1
        assert ax.activity.logs(session, mine, after_seq=1, metadata_filter=acme) == []
        session.rollback()
        assert ax.activity.cancel(mine, session=given, metadata_filter=acme)
        session.rollback()
    with pytest.raises(ax.ActivityNotFoundError):
        ax.activity.retry(mine, metadata_filter=globex)
    assert ax.activity.retry(mine, metadata_filter=acme) == 2
    with pytest.raises(ValueError, match="metadata_filter"):
        ax.activity.cancel(mine, metadata_filter={})


async def test_a_tenant_on_an_event_loop(database: Database) -> None:
    """The coroutines take the filter as well, with and without a session."""
    mine = await ax.activity.aio.create("task", metadata={"tenant": "acme"})
    with pytest.raises(ax.ActivityNotFoundError):
        await ax.activity.aio.cancel(mine, metadata_filter={"tenant": "globex"})
    assert await ax.activity.aio.cancel(mine, metadata_filter={"tenant": "acme"})
    assert await ax.activity.aio.retry_many(status="CANCELED", metadata_filter={"tenant": "globex"}) == {}
    assert await ax.activity.aio.retry_many(status="CANCELED", metadata_filter={"tenant": "acme"}) == {mine: 2}


def test_doubles_and_their_neighbours(database: Database) -> None:
    """Any finite float finds its own row, and not that of the next float."""
    digits = random.Random(13)
    doubles = (struct.unpack("<d", digits.randbytes(8))[0] for _ in range(100))
    scores = [digits.random() for _ in range(10)] + [one for one in doubles if math.isfinite(one)][:20]
    for number in (near for score in scores for near in (score, math.nextafter(score, math.inf))):
        ax.activity.create(repr(number), metadata={"score": number})
    with Session(database.engine) as session:
        for score in scores:
            found = ax.activity.list(session, metadata_filter={"score": score}).items
            assert [item.agent_type for item in found] == [repr(score)]


async def test_numbers_with_an_asynchronous_driver(database: Database) -> None:
    """The drivers of asyncio send the same statements."""
    ax.activity.create("task", metadata={"score": 0.1 + 0.2, "tenant": 2**53 + 1, "beta": True})
    engine = create_async_engine(database.async_url)
    async with AsyncSession(engine) as session:
        for wanted, total in ((0.1 + 0.2, 1), (0.3, 0)):
            found = await ax.activity.aio.list(session, metadata_filter={"score": wanted, "tenant": 2**53 + 1})
            assert found.total == total
        assert (await ax.activity.aio.list(session, metadata_filter={"beta": 1})).total == 0
    await engine.dispose()
