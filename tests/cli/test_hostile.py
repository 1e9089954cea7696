"""Text that other programs have stored: it cannot steer the terminal, break a table, or flood the screen."""

import json
import unicodedata
from uuid import UUID

import pytest
from rich.cells import cell_len
from sqlalchemy import create_engine, update

import agentexec_otel as ax
from agentexec_otel.activity import Activity, ActivityLog
from tests.cli.terminal import Terminal, run

pytestmark = pytest.mark.one_python

ESCAPES = "\x1b[2J\x1b[31mred\x1b]0;title\x07\x1bP1$tx\x1b\\ \x9b1A\x9d \x08\x08\x7f \x0e\r over\x0b\x0c"
HOSTILE = {
    "escapes": ESCAPES,
    "directions": "abc \u202edlrow\u202c \u2066x\u2069 \u200f\u061c",
    "separators": "one\u2028two\u2029three\x85four",
    "markup": "[bold red]x[/] [link=file:///etc]y[/link] :smile: {task} %s",
    "wide": "漢字" * 100 + "👩‍👩‍👧‍👦" * 50 + "é" * 100,
    "tags": "a\U000e0041\U000e007f",
    "lines": "\n" * 50 + "below\t\t\ttabs",
    "megabyte": "A" * 1_000_000,
    "hostile megabyte": ESCAPES * 20_000,
    "empty": "",
}
UNSAFE = {"\u061c", "\u200e", "\u200f", *map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A)))}


@pytest.fixture(params=HOSTILE.values(), ids=list(HOSTILE))
def hostile(request: pytest.FixtureRequest, url: str) -> tuple[UUID, str]:
    """An activity whose latest message, and its type, another program has written as they are."""
    agent_id = ax.activity.create("research", metadata={"note": "\x1b[2J"})
    ax.activity.update(agent_id, "first")
    ax.shutdown()
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(update(ActivityLog).where(ActivityLog.message == "first").values(message=request.param))
        connection.execute(update(Activity).values(agent_type=request.param[:255] or "x"))
    engine.dispose()
    return agent_id, request.param


def harmful(text: str) -> set[str]:
    """Characters that a terminal obeys. Newlines are ours."""
    kinds = ("Cc", "Cs", "Zl", "Zp")
    return {one for one in text if one != "\n" and (one in UNSAFE or unicodedata.category(one) in kinds)}


def test_pipe(hostile: tuple[UUID, str], url: str) -> None:
    """Nothing that a terminal obeys reaches a pipe, which may end in one; a row is a line; 1 MB is cut."""
    agent_id, message = hostile
    for arguments in (
        ["list"],
        ["show", str(agent_id)],
        ["tail", "--since", "1h"][:0] or ["show", str(agent_id), "-n", "1"],
    ):
        done = run(*arguments, url=url)
        assert (done.code, done.err) == (0, "")
        assert harmful(done.out) == set()
        assert len(done.out) < 30_000
    assert len(run("list", url=url).lines) == 2
    if len(message) > 8_192:
        assert "characters]" in run("list", url=url).out


def test_json_is_lossless(hostile: tuple[UUID, str], url: str) -> None:
    """As JSON the text is complete, and what a terminal obeys is escaped."""
    agent_id, message = hostile
    done = run("show", str(agent_id), "--json", url=url)
    assert harmful(done.out) == set()
    assert json.loads(done.out)["logs"][-1]["message"] == message


def test_terminal(hostile: tuple[UUID, str], url: str) -> None:
    """In a terminal, a table keeps its columns, and the only escapes are ours."""
    with Terminal("list", url=url) as terminal:
        assert terminal.end() == 0
        lines = [line for line in terminal.lines if line]
        written = terminal.written.decode()
    assert len(lines) == 2
    assert lines[1].startswith(str(hostile[0])[:8])
    assert all(cell_len(line) <= 80 for line in lines)
    assert terminal.screen.title == ""
    ours = written.replace("\r\n", "").replace("\x1b[", "")
    assert harmful(ours) == set()
