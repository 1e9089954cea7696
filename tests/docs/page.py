"""The activity page's blocks, by heading, a record of which of them are run, and the history that they leave."""

from typing import Any, NamedTuple
from uuid import UUID

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel.activity.models import Activity, Status
from tests.docs.blocks import ROOT, Block, blocks_of

on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


class Line(NamedTuple):
    """A line of a history, as the page draws it."""

    status: Status
    message: str
    percentage: int | None = None


def _by_key() -> dict[str, Block]:
    """`Creating Activities/2` is the second block under that heading."""
    keyed: dict[str, Block] = {}
    for block in blocks_of(PATH):
        nth = 1
        while f"{block.heading}/{nth}" in keyed:
            nth += 1
        keyed[f"{block.heading}/{nth}"] = block
    return keyed


PATH = ROOT / "docs" / "reference" / "activity-tracking.md"
BLOCKS = _by_key()
RUN: set[str] = set()


def runs(heading: str, nth: int = 1) -> pytest.MarkDecorator:
    """Hand the page's block to the test as `block`, and record that it is run. KeyError where the page has none."""
    key = f"{heading}/{nth}"
    block = BLOCKS[key]
    RUN.add(key)
    return pytest.mark.parametrize("block", [pytest.param(block, id=key)])


def run_as_written(block: Block, names: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Run the block with the names that its page takes for granted, and return all names that it leaves behind."""
    namespace = {**names, **more}
    block.run(namespace)
    return namespace


def stored(engine: Engine, agent_id: UUID) -> tuple[Status, int | None, list[Line]]:
    """Status, percentage and history (without late lines) of an activity, as another session finds them."""
    assert ax.flush()
    with Session(engine) as session:
        activity = session.query(Activity).filter(Activity.agent_id == agent_id).one()
        lines = [Line(log.status, log.message, log.percentage) for log in activity.logs if not log.late]
        return activity.status, activity.latest_percentage, lines
