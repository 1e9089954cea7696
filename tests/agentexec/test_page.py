"""What docs/how-to/coming-from-agentexec.md claims of the program and of the names that it shows."""

import importlib
import re
from pathlib import Path

import pytest

import agentexec_otel as ax
from agentexec_otel import Pool
from agentexec_otel.activity.models import Activity
from tests.docs.blocks import ROOT, blocks_of

pytestmark = pytest.mark.one_python

PAGE = ROOT / "docs" / "how-to" / "coming-from-agentexec.md"


def test_the_program_differs_in_the_import_name_alone() -> None:
    """The first two Python blocks; the second one is run by tests/docs."""
    before, after, *_ = (block for block in blocks_of(PAGE) if block.language == "python")
    assert before.skip is not None
    assert after.skip is None
    assert re.sub(r"^(import|from) agentexec\b", r"\1 agentexec_otel", before.code, flags=re.MULTILINE) == after.code


def names_of(page: Path, heading: str) -> list[tuple[str, str]]:
    """The rows of the first table below that heading."""
    section = page.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| (.+?) \| (.+?) \|$", section, re.MULTILINE)[1:]


def test_what_is_the_same_is_there() -> None:
    """Each name of a row that says "the same" exists here."""
    owners = {"ax": ax, "activity": ax.activity, "Activity": Activity, "pool": Pool, "Status": ax.activity}
    found: set[str] = set()
    for theirs, ours in names_of(PAGE, "Names"):
        owner = ""
        for before, name in re.findall(r"`(?:(\w+)\.)?(\w+)", theirs) if ours.startswith("the same") else ():
            owner = before or owner or name  # "`activity.create`, `update`" are both of `activity`.
            if owner in owners:
                assert hasattr(owners[owner], name), f"{owner}.{name}"
                found.add(name)
    assert {"Base", "Pool", "add_task", "complete", "gather", "get_active_count", "ActivityListSchema"} <= found


@pytest.mark.parametrize("name", ["BaseAgentRunner", "Pipeline", "Priority", "Tracker"])
def test_what_is_not_there_says_where_to_look(name: str) -> None:
    """One sentence that names this page, which has a row for it."""
    with pytest.raises(AttributeError, match=f"has no {name}: {PAGE.relative_to(ROOT)} says"):
        getattr(importlib.import_module("agentexec_otel"), name)
    assert f"`ax.{name}`" in " ".join(theirs for theirs, _ in names_of(PAGE, "Names"))
