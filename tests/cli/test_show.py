"""`agentexec-otel show`."""

import re
from uuid import UUID

import pytest
from opentelemetry.sdk.trace import TracerProvider
from sqlalchemy import create_engine, make_url

import agentexec_otel as ax
from tests.cli.terminal import Terminal, run
from tests.databases import Database

pytestmark = pytest.mark.one_python


def test_what_is_known(url: str, some: dict[str, UUID]) -> None:
    """Status, reason, times and metadata, then the logs."""
    done = run("show", str(some["error"]), url=url)
    assert (done.code, done.err) == (0, "")
    head, *rest = done.lines
    assert head.split() == ["research", str(some["error"])]
    fields = dict(line.split(maxsplit=1) for line in rest[: rest.index("")])
    assert fields["status"] == "ERROR"
    assert fields["reason"] == "timeout (TimeoutError)"
    assert fields["created"].endswith("ago)")
    assert rest[-1].endswith("ERROR  -  Task failed: no answer in 30 s")


def test_attempts_and_late_logs(url: str, some: dict[str, UUID]) -> None:
    """A terminal shows where an attempt begins; late logs only if asked for."""
    agent_id = str(some["error"])
    ax.activity.retry(agent_id, "Once more")
    ax.activity.complete(agent_id)
    ax.activity.update(agent_id, "Too late")
    ax.flush()
    assert "Too late" not in run("show", agent_id, url=url).out
    with Terminal("show", agent_id, "--late", url=url) as terminal:
        assert terminal.end() == 0
        shown = [line for line in terminal.lines if line]
    assert shown.index("── attempt 2") == next(at for at, line in enumerate(shown) if line.endswith("Once more")) - 1
    assert shown[-1].endswith("Too late (late)")


def test_what_it_waits_for(url: str) -> None:
    """A run that waits says for what; `list` finds it, and `cancel --older-than` spares it unless asked."""
    with ax.activity.run("pay_invoice") as activity:
        activity.waiting(items=[{"tool": "send_money", "call_id": "call_1"}])
    ax.activity.create("research")
    ax.flush()
    done = run("show", str(activity.agent_id), url=url)
    assert "waits for approval of send_money" in done.lines
    assert run("list", "-q", "--waiting", url=url).lines == [str(activity.agent_id)]
    assert len(run("list", "-q", "--not-waiting", url=url).lines) == 1
    assert run("cancel", "--older-than", "0s", "--yes", "--json", url=url).json["canceled"] == 1
    assert run("cancel", "--older-than", "0s", "--waiting", "--yes", "--json", url=url).json["canceled"] == 1


def test_link_to_the_trace(url: str, tracer_provider: TracerProvider) -> None:
    """By `AGENTEXEC_TRACE_URL_TEMPLATE`: as a line and in JSON; on a terminal the ids are links, also in a list."""
    ax.configure(url, tracer_provider=tracer_provider)
    agent_id = ax.activity.create("research")
    ax.activity.complete(agent_id)
    ax.flush()
    assert not any(line.startswith("link") for line in run("show", str(agent_id), url=url).lines)
    ax.CONF.trace_url_template = template = "jaeger:http://localhost:16686"
    shown = run("show", str(agent_id), "--json", url=url).json
    link = f"http://localhost:16686/trace/{shown['trace_id']}?uiFind={shown['span_id']}"
    assert shown["trace_url"] == run("list", "--json", url=url).json["items"][0]["trace_url"] == link
    fields = dict(line.split(maxsplit=1) for line in run("show", str(agent_id), url=url).lines if " " in line)
    assert (fields["trace"], fields["link"]) == (shown["trace_id"], link)
    for command, text in ((("show", str(agent_id)), shown["trace_id"]), (("list",), str(agent_id)[:8])):
        with Terminal(*command, url=url, variables={"AGENTEXEC_TRACE_URL_TEMPLATE": template}) as terminal:
            assert terminal.end() == 0
            assert re.search(rf"\x1b]8;[^;]*;{re.escape(link)}\x1b\\{text}".encode(), terminal.written)


def test_latest_logs(url: str) -> None:
    """A long history is cut at its beginning, with the option that shows it."""
    agent_id = ax.activity.create("research")
    for step in range(50):
        ax.activity.update(agent_id, f"Step {step}")
    ax.flush()
    done = run("show", str(agent_id), "--lines", "2", url=url)
    *_, remark, first, last = done.lines
    assert "49 earlier logs: --lines 51" in remark
    assert first.endswith("Step 48")
    assert last.endswith("Step 49")
    assert "Step" not in run("show", str(agent_id), "-n", "0", url=url).out


def test_long_messages_are_wrapped_between_words(url: str) -> None:
    """In a terminal, a message continues below itself, and no word is broken."""
    agent_id = ax.activity.create("research")
    message = "The agent compares the annual reports of all competitors, and writes what it finds into a table."
    ax.activity.update(agent_id, f"{message}\nSecond line", 10)
    ax.flush()
    with Terminal("show", str(agent_id), url=url) as terminal:
        assert terminal.end() == 0
        lines = terminal.lines
    at = next(number for number, line in enumerate(lines) if "The agent" in line)
    first, second, third = lines[at : at + 3]
    start = first.index("The agent")
    assert second[:start].strip() == ""
    assert f"{first[start:]} {second[start:]}" == message
    assert third[start:] == "Second line"


def test_json_has_all_logs(url: str, some: dict[str, UUID]) -> None:
    """`--json` prints the schema of `detail`."""
    found = run("show", str(some["complete"]), "--json", "-n", "1", url=url).json
    detail = ax.activity.ActivityDetailSchema.model_validate(found)
    assert [log.percentage for log in detail.logs] == [None, 50, 100]


def test_the_start_of_an_id_is_enough(database: Database) -> None:
    """On each database, commands take the first characters of an id, in any case and with dashes."""
    check_starts(database.url)


@pytest.mark.parametrize("empty_database", ["mariadb"], indirect=True)
def test_the_start_of_an_id_of_mariadb(empty_database: Database) -> None:
    """SQLAlchemy's dialect for MariaDB stores UUIDs in a type of its own, with an order of its own."""
    url = make_url(empty_database.url).set(drivername="mariadb+pymysql")
    engine = create_engine(url)
    ax.Base.metadata.create_all(engine)
    check_starts(url.render_as_string(hide_password=False))
    engine.dispose()


def check_starts(url: str) -> None:
    ax.configure(url)
    one, other = UUID("abcd1234-0000-4000-8000-00000000000f"), UUID("abcd1234-ffff-4000-8000-000000000000")
    for agent_id in (one, other):
        ax.activity.create("research", agent_id=agent_id)
    for text in (str(one), "ABCD1234-0000", "abcd12340"):
        assert run("show", text, "--json", url=url).json["agent_id"] == str(one)
    assert "several activities have an agent_id that starts with abcd" in run("show", "abcd", url=url).err
    assert "no activity has an agent_id that starts with abce" in run("show", "abce", url=url).err


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("12345678-1234-4234-8234-123456789abc", 1, "no activity has"),
        ("abc", 2, "is no id"),
        ("' OR 1=1", 2, "is no id"),
    ],
)
def test_no_such_activity(url: str, text: str, code: int, words: str) -> None:
    """One sentence; usage errors have the exit code of usage errors."""
    done = run("show", text, url=url)
    assert (done.code, done.out) == (code, "")
    assert words in done.complaint
