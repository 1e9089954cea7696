"""Ids sort as they were made, never repeat over threads and forks, and only real agent ids are taken."""

import gc
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from uuid import RFC_4122, UUID, SafeUUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentexec_otel._model.ids import parse_agent_id, uuid7

SOME_ID = "0198c7e2-4b1a-7def-8abc-0123456789ab"


def milliseconds(value: UUID) -> int:
    return value.int >> 80


def test_uuid7_is_a_version_7_uuid_of_now() -> None:
    """The id is an ordinary UUID of version 7 that holds the present millisecond."""
    before = time.time_ns() // 1_000_000
    made = uuid7()
    assert (type(made), made.version, made.variant, made.is_safe) == (UUID, 7, RFC_4122, SafeUUID.unknown)
    assert before <= milliseconds(made) <= time.time_ns() // 1_000_000 + 1
    assert UUID(str(made)) == made
    assert hash(UUID(str(made))) == hash(made)


def test_uuid7_takes_a_clock_reading() -> None:
    """A reading that the caller has already taken is the id's time."""
    later = time.time_ns() + 20_000_000
    assert milliseconds(uuid7(later)) == later // 1_000_000


@given(st.lists(st.integers(min_value=-(10**12), max_value=10**7), max_size=50))
def test_uuid7_sorts_whatever_the_clock_does(steps_ns: list[int]) -> None:
    """Ids sort as they were made, also when the clock stands still or steps back."""
    now = time.time_ns()
    made = [uuid7(now + step) for step in steps_ns]
    assert all(first < second for first, second in pairwise(made))


def test_a_clock_that_steps_back_goes_on_from_the_last_id() -> None:
    """After a step back by an hour the time of the last id is kept, and only the counter moves."""
    last = uuid7()
    made = uuid7(time.time_ns() - 3_600 * 10**9)
    assert made > last
    assert milliseconds(made) == milliseconds(last)


def made_as_the_clock_runs(direction: int) -> list[UUID]:
    now = time.time_ns()
    return [uuid7(now + direction * step) for step in range(0, 10**7, 2_000)]


def test_uuid7_over_threads() -> None:
    """Threads that interrupt each other everywhere get ids that are unique, and sorted within each thread."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    # Before Python 3.12 a collection, and with it Python code such as Hypothesis' callback, may begin in the middle of
    # a call into C: an id that is made there meanwhile loses its place if the clock steps back in the same moment.
    gc.disable()
    try:
        with ThreadPoolExecutor(4) as pool:
            made = list(pool.map(made_as_the_clock_runs, (-1, 1, -1, 1)))
    finally:
        gc.enable()
        sys.setswitchinterval(interval)
    assert all(first < second for ids in made for first, second in pairwise(ids))
    assert len({one for ids in made for one in ids}) == sum(map(len, made))


FORKS = """
import ctypes, os, sys, time
from agentexec_otel._model.ids import uuid7

fork = {"python": os.fork, "c": ctypes.PyDLL(None).fork}[sys.argv[1]]
now = time.time_ns()
uuid7(now)
for _ in range(3):
    fork()
ids = "".join(f"{uuid7(now)}\\n" for _ in range(200))
os.write(1, ids.encode())
os._exit(0)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no fork on Windows")
@pytest.mark.parametrize("kind", ["python", "c"])
def test_uuid7_over_forks(kind: str) -> None:
    """Eight processes forked in the same millisecond share no id, also where C forked and no hook of Python ran."""
    with subprocess.Popen([sys.executable, "-c", FORKS, kind], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ids = process.stdout.read().split()
    assert len(ids) == 1_600
    assert len(set(ids)) == 1_600


@pytest.mark.parametrize("value", [SOME_ID, SOME_ID.upper(), SOME_ID.replace("-", ""), UUID(SOME_ID)])
def test_agent_ids_that_are_taken(value: UUID | str) -> None:
    """A UUID, or its text in either case, with or without dashes, names the same activity."""
    assert parse_agent_id(value) == UUID(SOME_ID)


class TextId(str):
    def __str__(self) -> str:
        raise RuntimeError("not to be called")


class DriverUUID(UUID):
    """As asyncpg has its own."""


def test_subclasses_become_plain_uuids() -> None:
    """A driver's own UUID class, or a string class, ends as a plain UUID."""
    assert {type(parse_agent_id(value)) for value in (DriverUUID(SOME_ID), TextId(SOME_ID))} == {UUID}
    assert parse_agent_id(DriverUUID(SOME_ID)) == parse_agent_id(TextId(SOME_ID)) == UUID(SOME_ID)


def test_a_uuid_is_passed_through() -> None:
    """A plain UUID is returned as it is."""
    given_id = uuid4()
    assert parse_agent_id(given_id) is given_id


class Foreign:
    def __repr__(self) -> str:
        raise RuntimeError("not to be called")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("", "''"),
        ("research", "'research'"),
        (f"{{{SOME_ID}}}", f"'{{{SOME_ID}}}'"),
        (f"urn:uuid:{SOME_ID}", f"'urn:uuid:{SOME_ID}'"),
        (f" {SOME_ID}", f"' {SOME_ID}'"),
        (f"{SOME_ID}\n", f"'{SOME_ID}\\n'"),
        (SOME_ID[:-1], f"'{SOME_ID[:-1]}'"),
        (SOME_ID + "0", f"'{SOME_ID}0'"),
        ("0198c7e24b1a-7def-8abc-0123456789ab", "'0198c7e24b1a-7def-8abc-0123456789ab'"),
        ("\uff10" * 32, f"'{chr(0xFF10) * 32}'"),
        ("' or 1=1", '"\' or 1=1"'),
        ("\x1b[2J\u202e", r"'\x1b[2J\u202e'"),
        ("\ud800", r"'\ud800'"),
        (b"\x00" * 16, str(b"\x00" * 16)),
        (None, "None"),
        (42, "42"),
        pytest.param(10**5000, "<int>", id="huge"),
        (Foreign(), "<Foreign>"),
    ],
)
def test_agent_ids_that_are_refused(value: object, shown: str) -> None:
    """Anything else raises one sentence that names the value and the fix, without calling the value's own methods."""
    with pytest.raises(ValueError, match="agent_id must be a UUID") as refused:
        parse_agent_id(value)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert f"not {shown}: pass the id that activity.create() returned" in str(refused.value)


def test_a_huge_value_is_not_quoted_whole() -> None:
    """The sentence quotes at most 80 characters of the value."""
    with pytest.raises(ValueError, match="agent_id must be") as refused:
        parse_agent_id("x" * 100_000_000)
    assert len(str(refused.value)) < 250


@given(st.text())
def test_no_text_does_more_than_raise_value_error(value: str) -> None:
    """Whatever text comes, it is a UUID or a ValueError."""
    try:
        assert parse_agent_id(value).hex == value.replace("-", "").lower()
    except ValueError as refused:
        assert "agent_id must be" in str(refused)  # noqa: PT017  # either outcome is right
