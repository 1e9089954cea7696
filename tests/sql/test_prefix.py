"""The table prefix, from the environment of a process."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, inspect
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel.activity.models import Status
from tests.databases import Database
from tests.sql.processes import Peer
from tests.sql.remote import life, names_in_metadata

pytestmark = pytest.mark.one_python

PREFIX = "my_application_0123456789_0123456789_012"


@pytest.fixture(scope="module")
def prefixed() -> Iterator[Peer]:
    """A process whose environment sets the prefix: the longest one that is allowed."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AGENTEXEC_TABLE_PREFIX", PREFIX)
        peer = Peer(None)
        peer.call(names_in_metadata)
    yield peer
    peer.close()


def names_in_database(engine: Engine, tables: tuple[str, str]) -> list[str]:
    inspector = inspect(engine)
    names: list[str | None] = []
    for table in tables:
        names += [one["name"] for one in inspector.get_indexes(table)]
        names += [one["name"] for one in inspector.get_unique_constraints(table)]
        names += [one["name"] for one in inspector.get_foreign_keys(table)]
        names += [one["name"] for one in inspector.get_check_constraints(table)]
    return [name for name in names if name is not None]


def test_life_beside_another_prefix(database: Database, prefixed: Peer) -> None:
    """Two applications share a database: each has its own tables, and neither sees the other's activities."""
    tables = (f"{PREFIX}activity", f"{PREFIX}activity_log")
    assert prefixed.call(life, database.url) == (Status.COMPLETE, 100, 4)
    try:
        assert set(tables) <= set(inspect(database.engine).get_table_names())
        with Session(database.engine) as session:
            assert ax.activity.list(session).total == 0
        names = names_in_database(database.engine, tables)
        assert len(names) >= 9
        assert all(PREFIX[:30] in name for name in names), names
        assert not set(names) & set(
            names_in_database(database.engine, ("agentexec_activity", "agentexec_activity_log"))
        )
    finally:
        prefixed.call(life, database.url, drop=True)


def test_names_are_short_enough(prefixed: Peer) -> None:
    """With the longest prefix all names differ, and none is longer than PostgreSQL's 63 characters."""
    names = prefixed.call(names_in_metadata)
    assert len(PREFIX) == 40
    assert len(names) == len(set(names)) >= 10
    assert max(map(len, names)) <= 63
    assert {f"{PREFIX}activity", f"{PREFIX}activity_log"} <= set(names)


def test_shorter_prefix_is_kept_whole() -> None:
    """With the default prefix every name of ours has it whole."""
    assert all("agentexec_" in name for name in names_in_metadata())


def test_default_names(database: Database) -> None:
    """Without a setting the names are the documented ones."""
    names = names_in_database(database.engine, ("agentexec_activity", "agentexec_activity_log"))
    assert {"ix_agentexec_activity_agent_id", "ix_agentexec_activity_log_activity_id"} <= set(names)
    (foreign_key,) = inspect(database.engine).get_foreign_keys("agentexec_activity_log")
    assert foreign_key["referred_table"] == "agentexec_activity"
    assert foreign_key.get("options", {}).get("ondelete") == "CASCADE"


BAD = ['x"; drop table t; --', "Upper_", "x" * 41, "a_\n", "1_"]

REFUSED = f"""
import json, os, sys
for prefix in {BAD!r}:
    os.environ["AGENTEXEC_TABLE_PREFIX"] = prefix
    try:
        import agentexec_otel
    except Exception as refusal:
        print(json.dumps([type(refusal).__name__, str(refusal)]))
    else:
        print(json.dumps(["accepted", prefix]))
    for name in [name for name in sys.modules if name.startswith("agentexec_otel")]:
        del sys.modules[name]
"""


def test_bad_prefix_is_refused_in_one_sentence() -> None:
    """Anything else ends the import with one sentence that names the variable, the value and what is allowed."""
    result = subprocess.run(
        [sys.executable, "-c", REFUSED], env=dict(os.environ), capture_output=True, text=True, check=True, timeout=60
    )
    answers: list[tuple[str, str]] = [json.loads(line) for line in result.stdout.splitlines()]
    assert [kind for kind, _ in answers] == ["ConfigurationError"] * len(BAD)
    for prefix, (_, message) in zip(BAD, answers, strict=True):
        assert message.startswith(f"AGENTEXEC_TABLE_PREFIX={prefix!r}")
        assert "a-z" in message
        assert "\n" not in message


def test_prefix_cannot_be_changed_after_the_import() -> None:
    """Assigning another prefix raises one sentence that names the variable, and changes nothing."""
    with pytest.raises(ax.ConfigurationError, match=r"table_prefix cannot be changed: .*AGENTEXEC_TABLE_PREFIX before"):
        ax.CONF.table_prefix = "other_"
    assert ax.CONF.table_prefix == "agentexec_"
