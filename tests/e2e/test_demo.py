"""`make demo`: what the README promises to somebody who has just cloned the repository."""

import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from rich.style import Style
from rich.text import Text

pytestmark = pytest.mark.one_python

ROOT = Path(__file__).resolve().parents[2]
WIDTH = 80


@dataclass(frozen=True, slots=True)
class Shown:
    """What the demo has printed, and what came before the two tables."""

    live: str
    afterwards: str
    stderr: str
    exit_code: int

    @property
    def trace(self) -> str:
        """The tree of spans."""
        return self.afterwards.partition("Trace ─")[2].partition("\n\n")[2]

    @property
    def database(self) -> Path:
        """The file that the last line names."""
        return Path(self.afterwards.splitlines()[-1])


@dataclass(frozen=True, slots=True)
class Terminal:
    """What the demo has sent to a terminal of 80 columns, with its control codes."""

    output: str
    exit_code: int

    @property
    def lines(self) -> list[Text]:
        """Every line that has stood on the screen, with its colors; a bar counts as often as it was drawn."""
        return list(Text.from_ansi(re.sub(r"\r|\x1b\[[\d;?]*[A-Za-ln-z]", "\n", self.output)).split())


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Shown, Terminal]:
    """Two demos at once, without a key and with every warning on: one prints into a file, one on a terminal."""
    folder = tmp_path_factory.mktemp("demo")
    terminals: list[Terminal] = []
    thread = threading.Thread(target=lambda: terminals.append(run_on_terminal(folder)))
    thread.start()
    done = subprocess.run(
        command(),
        env=environment(folder),
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
        timeout=100,
        check=False,
    )
    thread.join()
    live, _, afterwards = done.stdout.partition("List ─")
    return Shown(live, afterwards, done.stderr, done.returncode), terminals[0]


@pytest.fixture(scope="module")
def shown(both: tuple[Shown, Terminal]) -> Shown:
    return both[0]


@pytest.fixture(scope="module")
def terminal(both: tuple[Shown, Terminal]) -> Terminal:
    return both[1]


def command() -> list[str]:
    return [sys.executable, "-W", "always", str(ROOT / "examples" / "demo.py")]


def environment(folder: Path, **more: str) -> dict[str, str]:
    unwanted = ("OPENAI_API_KEY", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
    inherited = {name: value for name, value in os.environ.items() if name not in unwanted}
    return {**inherited, "TMPDIR": str(folder), "PYTHONIOENCODING": "utf-8", **more}


def run_on_terminal(folder: Path) -> Terminal:
    """Run the demo on a terminal of its own, and read it to the end."""
    ours, theirs = pty.openpty()
    more = {"TERM": "xterm-256color", "COLUMNS": str(WIDTH), "LINES": "24"}
    with subprocess.Popen(
        command(), env=environment(folder, **more), cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        output = b"".join(iter(lambda: read(ours), b""))
        os.close(ours)
    return Terminal(output.decode(), process.returncode)


def read(descriptor: int) -> bytes:
    """What is next, or nothing when the other side is closed, which Linux reports as an error."""
    try:
        return os.read(descriptor, 65536)
    except OSError:
        return b""


def rows(live: str, task: str) -> list[str]:
    return [line for line in live.splitlines() if re.match(rf" *\d+\.\d\d s  {task} ", line)]


def test_it_succeeds_without_noise(shown: Shown) -> None:
    """Exit code 0, nothing on stderr, and no control codes where the output is no terminal."""
    assert (shown.exit_code, shown.stderr) == (0, "")
    assert re.search(r"[\x00-\x09\x0b-\x1f\x7f]", shown.live + shown.afterwards) is None


def test_two_at_once(shown: Shown, terminal: Terminal) -> None:
    """Two demos with the same temporary folder succeed, each with a database of its own that only its user can read."""
    assert (shown.exit_code, terminal.exit_code) == (0, 0)
    assert shown.database.is_file()
    assert str(shown.database) not in terminal.output
    assert shown.database.parent.stat().st_mode & 0o077 == 0


def test_words_stay_whole(shown: Shown, terminal: Terminal) -> None:
    """No line is longer than 80 columns, where a terminal breaks it in a word; only the path of the database may be."""
    printed = [*shown.live.splitlines(), *shown.afterwards.splitlines(), *(line.plain for line in terminal.lines)]
    assert [line for line in printed if len(line.rstrip()) > WIDTH and "agentexec-otel-demo-" not in line] == []
    for message in ("Found 4 articles, reading the best two", "Canceled by the process that watches."):
        assert message in shown.live


def test_only_an_error_is_red(terminal: Terminal) -> None:
    """Red is for ERROR, in its log and its bar: not for a run that works, succeeds or is canceled."""
    red = [line.plain for line in terminal.lines if any(is_red(span.style) for span in line.spans)]
    assert len(red) >= 2
    assert [line for line in red if "ERROR" not in line] == []


def is_red(style: Style | str) -> bool:
    """Whether red outweighs the other two in the color of a text."""
    assert isinstance(style, Style)
    if style.color is None:
        return False
    red, green, blue = style.color.get_truecolor()
    return red > 2 * green and red > 2 * blue


def test_progress_is_seen_before_the_end(shown: Shown) -> None:
    """The second process has seen logs of every run while they were new, in order, and the ends behind them."""
    assert int(re.findall(r"(\d+) logs seen live", shown.live)[0]) >= 20
    for task, end in (("research_market", "COMPLETE"), ("check_facts", "ERROR"), ("read_archive", "CANCELED")):
        lines = [line for line in rows(shown.live, task) if "(late)" not in line]
        assert "Waiting to start." in lines[0]
        percentages = [int(found) for found in re.findall(r" (\d+)% ", "\n".join(lines))]
        assert len(percentages) >= 5
        assert percentages == sorted(percentages)
        assert end in lines[-1]


def test_a_late_log_is_explained(shown: Shown) -> None:
    """The canceled agent reports once more. The log is marked, and the words below say what the mark means."""
    last = shown.live[shown.live.rindex(" read_archive ") :].splitlines()
    assert "(late)" in " ".join(last[:2])  # a long one takes two lines
    assert "(late): reported after the run had ended." in shown.live


def test_the_delay_is_measured(shown: Shown) -> None:
    """A number of milliseconds from one process to the other: well under a second, also on a busy machine."""
    (median,) = re.findall(r"median (\d+) ms", shown.live)
    assert int(median) < 1000


def test_all_ends_are_in_the_list(shown: Shown) -> None:
    """One run of each kind, with its reason."""
    found = {row[0]: row for row in re.findall(r"│ (\w+) +│ (\w+) +│ ([\d %]*?) *│ (\w*)", shown.afterwards)}
    assert found["research_market"] == ("research_market", "COMPLETE", "100 %", "")
    assert found["check_facts"][1::2] == ("ERROR", "max_turns")
    assert found["read_archive"][1] == "CANCELED"


def test_the_trace_has_one_span_per_run(shown: Shown) -> None:
    """Each beneath the request that created it, with the runs' logs in it and the tools' spans beneath."""
    assert re.search(r"^POST /research ", shown.trace, re.MULTILINE)
    assert re.findall(r"^[├└]── (\w+) .* (COMPLETE|ERROR|CANCELED)$", shown.trace, re.MULTILINE) == [
        ("research_market", "COMPLETE"),
        ("check_facts", "ERROR"),
        ("read_archive", "CANCELED"),
    ]
    assert re.search(r"^│   ├── \+\d\.\d\d s  Searching the archive$", shown.trace, re.MULTILINE)
    assert "│   ├── search archive " in shown.trace


def test_the_trace_is_as_the_words_above_it_say(shown: Shown) -> None:
    """It has all logs of the run's own process, the late one too, but not the other process's; ids are the same."""
    history = re.findall(r"s │ \w+ +│ [\d %]*? +│ (.*?) +│", shown.afterwards)
    assert len(history) >= 9
    assert [log for log in history if log not in shown.trace] == []
    # Which of its logs is late depends on when the agent notices the cancellation. A long one takes two lines.
    last = " ".join(shown.live[shown.live.rindex(" read_archive ") :].split())
    late = re.search(r"CANCELED (?:\d+% )?(.*?) \(late\)", last)
    assert late is not None
    assert late[1] in " ".join(re.sub("[│├└─]", " ", shown.trace).split())
    assert "Canceled by the process that watches." not in shown.trace
    assert re.findall(r"race id:? (\w{32})", shown.afterwards) == 2 * [re.findall(r"trace id (\w+)", shown.trace)[0]]


def test_dashboard(tmp_path: Path) -> None:
    """With `--dashboard`, all runs are on its page until Ctrl-C."""
    shown = tmp_path / "shown.txt"
    with (
        shown.open("w") as output,
        subprocess.Popen(
            [*command(), "--dashboard"],
            env=environment(tmp_path),
            cwd=tmp_path,
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        deadline = time.monotonic() + 100
        while "Stop with Ctrl-C." not in shown.read_text():
            assert process.poll() is None, shown.read_text()
            assert time.monotonic() < deadline, shown.read_text()
            time.sleep(0.1)
        (url,) = re.findall(r"http://127\.0\.0\.1:\d+/", shown.read_text())
        page = httpx.get(f"{url}api/activities", trust_env=False).json()
        process.send_signal(signal.SIGINT)
    assert process.returncode == 130
    assert "Traceback" not in shown.read_text()
    statuses = {item["agent_type"]: item["status"] for item in page["items"]}
    assert statuses == {"research_market": "COMPLETE", "check_facts": "ERROR", "read_archive": "CANCELED"}
