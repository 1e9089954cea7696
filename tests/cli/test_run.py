"""`agentexec-otel run`: programs that know nothing of us run as `python` runs them, and are recorded."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel.activity.schemas import ActivityListItemSchema
from agentexec_otel.cli import _run
from tests.cli import terminal
from tests.databases import Database

pytestmark = pytest.mark.one_python

COMMAND = Path(sys.executable).with_name("agentexec-otel")
LINE = "agentexec-otel: recording; see agentexec-otel list -d sqlite:///agentexec.db\n"

AGENTS = """
import asyncio, sys
from agents import Agent, Runner, function_tool
from agents.testing import ModelStep, ScriptedModel, assistant_message, function_call


@function_tool(failure_error_function=None)
def broken() -> str:
    raise ZeroDivisionError("the tool broke")


def research(name: str, *answers) -> None:
    model = ScriptedModel(list(answers))
    print(asyncio.run(Runner.run(Agent(name=name, model=model, tools=[broken]), "go")).final_output)


good = [assistant_message("Tea it is.")]
bad = [function_call("broken", {}, call_id="1")]
"""


def files(folder: Path, **code: str) -> None:
    for name, text in code.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")


def run(
    folder: Path, *arguments: str, command: Sequence[str | Path] = (COMMAND, "run"), **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in (*command, *arguments)],
        cwd=folder,
        env={**os.environ, "OPENAI_API_KEY": "", "COLUMNS": "80", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        stdin=subprocess.DEVNULL,
    )


def recorded(folder: Path) -> list[ActivityListItemSchema]:
    """The activities in agentexec.db, the oldest first."""
    engine = create_engine(f"sqlite:///{folder / 'agentexec.db'}")
    with Session(engine) as session:
        found = ax.activity.list(session, order="oldest").items
    engine.dispose()
    return found


def endings(folder: Path) -> list[tuple[str, str, str | None]]:
    return [(item.agent_type, item.status.value, item.reason) for item in recorded(folder)]


# -- as `python` does -----------------------------------------------------------------------------------------------

MIRROR = """
import os, sys
print(__name__, __file__, __spec__ and __spec__.name, sys.argv, sys.path, sys.flags)
print(sorted(name for name in sys.modules if name.startswith(("agentexec", "opentelemetry", "sqlalchemy", "agents"))))
if sys.argv[1:] == ["signal"]:
    os.kill(os.getpid(), 15)
if sys.argv[1:] == ["interrupt"]:
    raise KeyboardInterrupt
if sys.argv[1:] == ["raise"]:
    raise ZeroDivisionError("one line")
sys.exit(sys.argv[1] if sys.argv[1] == "words" else int(sys.argv[1]))
"""


@pytest.mark.parametrize(
    "program",
    [
        ("app.py", "7", "--help", "-m", "--", "--database"),
        ("app.py", "raise"),
        ("app.py", "signal"),
        ("./sub/app.py", "interrupt"),
        ("-m", "sub.app", "words", "-w"),
    ],
    ids=" ".join,
)
def test_program_runs_as_python_runs_it(tmp_path: Path, program: tuple[str, ...]) -> None:
    """Arguments, module path, `__main__`, modules, output, traceback and exit code are those of ``python app.py``."""
    (tmp_path / "sub").mkdir()
    files(tmp_path, app=MIRROR)
    files(tmp_path / "sub", app=MIRROR)
    expected = run(tmp_path, *program, command=[sys.executable])
    found = run(tmp_path, *program)
    assert (found.returncode, found.stdout) == (expected.returncode, expected.stdout)
    assert found.stderr == LINE + expected.stderr
    assert endings(tmp_path) == []


def test_process_is_replaced(tmp_path: Path) -> None:
    """The program is the process that was started: signals and supervisors reach it."""
    files(tmp_path, app="import os\nprint(os.getpid())")
    with subprocess.Popen([COMMAND, "run", "app.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as started:
        printed, _ = started.communicate(timeout=60)
    assert int(printed) == started.pid


def test_shadowed_sitecustomize_runs(tmp_path: Path) -> None:
    """A `sitecustomize` of the environment, and its PYTHONPATH, work as before, in the command and in the program."""
    (tmp_path / "library").mkdir()
    files(tmp_path / "library", sitecustomize="print('customized')", helper="name = __name__")
    files(tmp_path, app="import helper, sys\nprint(helper.name, sys.modules['sitecustomize'].__file__)")
    done = run(tmp_path, "app.py", PYTHONPATH=str(tmp_path / "library"))
    assert done.stdout == f"customized\ncustomized\nhelper {tmp_path}/library/sitecustomize.py\n", done.stderr


# -- what is recorded ------------------------------------------------------------------------------------------------


def test_runs_are_recorded(tmp_path: Path) -> None:
    """A program that knows nothing of us: each of its runs is an activity that ends as the run has ended."""
    files(tmp_path, app=f"{AGENTS}\nresearch('Good', good)\nresearch('Bad', bad)")
    done = run(tmp_path, "app.py")
    assert (done.returncode, done.stdout) == (1, "Tea it is.\n")
    assert done.stderr.startswith(LINE)
    assert "ZeroDivisionError: the tool broke" in done.stderr
    assert endings(tmp_path) == [("Good", "COMPLETE", None), ("Bad", "ERROR", "tool")]


def test_killed_program_is_lost(tmp_path: Path) -> None:
    """After a `kill -9` the run is RUNNING until its lease has expired; then the next program ends it as lost."""
    files(
        tmp_path,
        app=f"{AGENTS}\nimport time\n"
        "research('Killed', ModelStep.respond(lambda call: (print('runs', flush=True), time.sleep(60))))",
        later=f"{AGENTS}\nimport time\nresearch('Later', good)\ntime.sleep(3)",
    )
    lease = {"AGENTEXEC_LEASE_SECONDS": "1", "AGENTEXEC_SWEEP_INTERVAL": "0.5", "OPENAI_API_KEY": ""}
    with subprocess.Popen(
        [COMMAND, "run", "app.py"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | lease,
    ) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == b"runs\n"
        deadline = time.monotonic() + 20
        while endings(tmp_path) != [("Killed", "RUNNING", None)] and time.monotonic() < deadline:
            time.sleep(0.05)
        started.send_signal(signal.SIGKILL)
    assert endings(tmp_path) == [("Killed", "RUNNING", None)]
    time.sleep(1)
    assert run(tmp_path, "later.py", **lease).returncode == 0
    assert endings(tmp_path) == [("Killed", "ERROR", "lost"), ("Later", "COMPLETE", None)]


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_child_processes_are_recorded(tmp_path: Path, method: str) -> None:
    """Two processes of `multiprocessing`, which import the program anew or are forked, record into the same file."""
    main = f"""
import multiprocessing

if __name__ == "__main__":
    context = multiprocessing.get_context({method!r})
    children = [context.Process(target=research, args=(name, good)) for name in ("One", "Two")]
    for child in children:
        child.start()
    for child in children:
        child.join()
    sys.exit(sum(child.exitcode for child in children))
"""
    files(tmp_path, app=AGENTS + main)
    done = run(tmp_path, "app.py")
    assert (done.returncode, done.stdout) == (0, 2 * "Tea it is.\n"), done.stderr
    assert done.stderr.count(LINE) == 1
    assert sorted(endings(tmp_path)) == [("One", "COMPLETE", None), ("Two", "COMPLETE", None)]


def test_program_configures_itself(tmp_path: Path) -> None:
    """What the program itself sets up wins, wherever it imports our runner from."""
    own = """
import agentexec_otel as ax
from agentexec_otel.instrumentation.openai_agents import OpenAIRunner
ax.configure("sqlite:///own.db", create_tables=True)
"""
    files(tmp_path, app=f"{own}{AGENTS}\nresearch('Own', good)")
    assert run(tmp_path, "app.py").returncode == 0
    assert endings(tmp_path) == []
    (tmp_path / "own.db").replace(tmp_path / "agentexec.db")
    assert endings(tmp_path) == [("Own", "COMPLETE", None)]


@pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)
def test_named_database(tmp_path: Path, database: Database) -> None:
    """A database that is named by the option or the environment is used as it is, and its password is not shown."""
    files(tmp_path, app=f"{AGENTS}\nresearch('Elsewhere', good)")
    if database.kind == "sqlite":
        done = run(tmp_path, "-d", database.url, "app.py")
        assert done.stderr.startswith(f"agentexec-otel: recording to {database.url}; see agentexec-otel list -d ")
    else:
        done = run(tmp_path, "app.py", AGENTEXEC_DATABASE_URL=database.url.replace("root@", "root:hunter2@"))
        assert done.stderr.splitlines()[0].endswith("; see agentexec-otel list")
    assert "hunter2" not in done.stderr
    assert not (tmp_path / "agentexec.db").exists()
    with Session(database.engine) as session:
        assert [item.status.value for item in ax.activity.list(session).items] == ["COMPLETE"]


def test_package_of_the_same_name(tmp_path: Path) -> None:
    """A program with a package `agents` of its own runs; one line says that nothing is recorded."""
    files(tmp_path, agents="name = 'mine'", app="import agents\nprint(agents.name)")
    done = run(tmp_path, "app.py")
    assert (done.returncode, done.stdout) == (0, "mine\n")
    assert done.stderr.startswith(f"{LINE}runs of openai_agents are not recorded: ")
    assert len(done.stderr.splitlines()) == 2


def test_every_framework_is_instrumented() -> None:
    """What `ax.instrument` supports, `run` waits for the import of."""
    with pytest.raises(ValueError, match="does not support 'none'") as refused:
        ax.instrument("none")
    supported = re.findall(r"'(\w+)' \(pip", str(refused.value))
    assert supported
    code = (Path(_run.__file__).parent / "_bootstrap" / "sitecustomize.py").read_text(encoding="utf-8")
    assert [name for name in supported if f': "{name}"' not in code] == []


# -- pools and mistakes ----------------------------------------------------------------------------------------------


def test_mistakes_are_said_before_the_program_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing file, a folder that cannot be written, and options that do not fit: words, and an exit code not 0."""
    monkeypatch.chdir(tmp_path)
    files(tmp_path, app="print('ran')", local="import agentexec_otel as ax\npool = ax.Pool('sqlite:///x.db')")
    for arguments, words in [
        (["none.py"], "there is no file 'none.py'"),
        (["-w", "2", "app.py"], "--workers is for a pool"),
    ]:
        said = terminal.run("run", *arguments)
        assert (said.code, said.out) == (2, ""), arguments
        assert words in said.complaint
        assert "Traceback" not in said.err
    for arguments, words in [
        (["nowhere:pool"], "there is no module 'nowhere'"),
        (["-w", "1", "local:pool"], "this pool runs its tasks where they are enqueued"),
    ]:
        done = run(tmp_path, *arguments)
        assert (done.returncode, done.stdout) == (1, ""), arguments
        assert words in " ".join(done.stderr.split())
        assert "Traceback" not in done.stderr
    (tmp_path / "agentexec.db").unlink()
    (tmp_path / "agentexec.db").mkdir()
    said = terminal.run("run", "app.py")
    assert (said.code, said.out, len(said.err.splitlines())) == (1, "", 1)
    assert "the tables cannot be created" in said.err
    (tmp_path / "agentexec.db").rmdir()
    ax.db.upgrade(old := f"sqlite:///{tmp_path / 'agentexec.db'}")
    ax.db.downgrade(old)
    said = terminal.run("run", "app.py")
    assert (said.code, said.out, len(said.err.splitlines())) == (1, "", 1)
    assert "run agentexec-otel db upgrade" in said.err
