"""The activity page's environment variables take effect when a shell sets them as written."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from agentexec_otel._config import Settings
from tests.docs.blocks import ROOT, Block
from tests.docs.page import runs

TABLES = """
import agentexec_otel as ax
from sqlalchemy import create_engine, inspect

engine = create_engine("sqlite://")
with engine.begin() as connection:
    ax.Base.metadata.create_all(connection)
    found = inspect(connection)
    print(json.dumps({table: {
        "indexes": [index["name"] for index in found.get_indexes(table)],
        "foreign_keys": [(key["name"], key["referred_table"]) for key in found.get_foreign_keys(table)],
        "unique": [constraint["name"] for constraint in found.get_unique_constraints(table)],
        "checks": [constraint["name"] for constraint in found.get_check_constraints(table)],
    } for table in found.get_table_names()}))
engine.dispose()
"""

MESSAGES = """
import agentexec_otel as ax
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

engine = create_engine("sqlite:///activities.db")
ax.Base.metadata.create_all(engine)
ax.configure("sqlite:///activities.db")
good, bad = ax.activity.create("good"), ax.activity.create("bad")
with ax.activity.run(good):
    pass
try:
    with ax.activity.run(bad):
        raise OSError("no {0} left {on} {error} device")
except OSError:
    pass
assert ax.flush()
with Session(engine) as session:
    print(json.dumps([[log.message for log in ax.activity.detail(session, id).logs] for id in (good, bad)]))
ax.shutdown()
engine.dispose()
"""


def in_a_shell_with(block: Block, program: str, folder: Path) -> Any:
    """What `program` prints as JSON in a bash that has exported the variables of the block, as written."""
    script = f'set -eua\n{block.code}\nexec "$0" -c "$1"'
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(folder / "state")}
    finished = subprocess.run(
        ["bash", "-c", script, sys.executable, f"import json\n{program}"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    return json.loads(finished.stdout)


@runs("Table Prefix")
def test_table_prefix(block: Block, tmp_path: Path) -> None:
    """The tables that the comment names are created, and no name in the database has the default prefix left."""
    (comment,) = [line for line in block.code.splitlines() if line.startswith("# Creates: ")]
    found = in_a_shell_with(block, TABLES, tmp_path)
    assert sorted(found) == sorted(comment.removeprefix("# Creates: ").split(", "))
    assert "ix_myapp_activity_agent_id" in found["myapp_activity"]["indexes"]
    assert "ix_myapp_activity_log_activity_id" in found["myapp_activity_log"]["indexes"]
    ((foreign_key, referred),) = found["myapp_activity_log"]["foreign_keys"]
    assert (foreign_key.split("myapp_")[0], referred) == ("fk_", "myapp_activity")
    assert "agentexec" not in json.dumps(found)


@runs("Custom Activity Messages")
def test_custom_messages(block: Block, tmp_path: Path) -> None:
    """Runs speak with the words that the variables give; `{error}` becomes the error's text, braces and all."""
    assert in_a_shell_with(block, MESSAGES, tmp_path) == [
        ["Queued for processing", "Agent is working...", "Successfully finished"],
        ["Queued for processing", "Agent is working...", "Failed: no {0} left {on} {error} device"],
    ]


@pytest.mark.parametrize("prefix", ["Robert'); DROP TABLE--", "9lives_", "MyApp_", "a" * 41])
def test_a_prefix_that_is_no_identifier_is_refused(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prefix that would need quoting somewhere is refused, by the setting's name."""
    monkeypatch.setenv("AGENTEXEC_TABLE_PREFIX", prefix)
    with pytest.raises(ValidationError, match="table_prefix"):
        Settings()  # type: ignore[call-arg]
