"""Every block of README.md and docs/ works: Python is run, data is parsed, commands and their variables exist."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.core import TyperGroup
from typer.main import get_command

from agentexec_otel._config import Settings
from agentexec_otel.cli._app import app
from tests.docs import page as activity_page
from tests.docs.blocks import ROOT, Block, blocks_of, pages

pytestmark = pytest.mark.one_python

PAGES = pages()
# The blocks of the activity page are run one by one, by test_page_*.py.
SCRIPTS = [
    page for page in PAGES if page != activity_page.PATH and any(b.language == "python" for b in blocks_of(page))
]
BLOCKS = [block for page in PAGES for block in blocks_of(page)]
PARSERS: dict[str, Callable[[str], Any]] = {"json": json.loads, "toml": tomllib.loads, "yaml": yaml.safe_load}
SHELLS = ("bash", "console")
ONLY_SHOWN = ("", "text", "sql", "mermaid", "diff", "dockerfile")
MOST_SKIPS = 8
SCRIPT = """
```python
import asyncio

import agentexec_otel as ax
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

async with ax.activity.run("job") as run:
    await asyncio.to_thread(run.update, "half way", 50)
```

<!-- test: skip because it has no end -->
```python
while True: ...
```

```python title="other.py"
raise SystemExit(3)
```

```python
engine = create_engine(ax.CONF.database_url)
with Session(engine) as session:
    detail = ax.activity.detail(session, run.agent_id)
    print(detail.status, detail.agent_type, "done")
engine.dispose()
```
"""

_TARGET = re.compile(r"^([a-z][\w-]*):", re.MULTILINE)
_VARIABLE = re.compile(r"\bAGENTEXEC_[A-Z0-9_]+")
_ASSIGNMENT = re.compile(r"^[A-Z_][A-Z0-9_]*=")
_EXTRAS = re.compile(r"agentexec-otel\[([^\]]*)\]")


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def each(blocks: list[Block]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("block", [pytest.param(block, id=block.where) for block in blocks])


def of(*languages: str) -> list[Block]:
    return [block for block in BLOCKS if block.language in languages]


def commands(block: Block) -> Iterator[list[str]]:
    """Each simple command of the block, without the variables set in front of it."""
    lines = block.code.replace("\\\n", " ").splitlines()
    if block.language == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    for line in lines:
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        command: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set(";&|()"):
                if command:
                    yield command
                command = []
            elif command or not _ASSIGNMENT.match(word):
                command.append(word)


class Runner:
    """Runs pages, each in a process of its own, with a database that has tables and without a key."""

    def __init__(self, folder: Path) -> None:
        self._errors = folder / "errors.txt"
        environment = {name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"}
        with self._errors.open("wb") as errors:
            self._server = subprocess.Popen(
                [sys.executable, "-W", "error", str(ROOT / "tests" / "docs" / "run_blocks.py")],
                cwd=folder,
                env={**environment, "AGENTEXEC_DATABASE_URL": "sqlite:///docs.db", "PYTHONPATH": str(ROOT)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def run(self, page: Path, folder: Path) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of the page's Python, run in `folder`."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(f"{page}\t{folder}\n")
        self._server.stdin.flush()
        code = self._server.stdout.readline()
        assert code, self._errors.read_text(encoding="utf-8")
        out, err = (folder / name for name in ("stdout.txt", "stderr.txt"))
        return int(code), out.read_text(encoding="utf-8"), err.read_text(encoding="utf-8")

    def close(self) -> None:
        with self._server:
            pass


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """One server for all pages: the large packages are imported once."""
    runner = Runner(tmp_path_factory.mktemp("docs"))
    yield runner
    runner.close()


@pytest.mark.parametrize("page", SCRIPTS, ids=named)
def test_python_runs(page: Path, runner: Runner, tmp_path: Path) -> None:
    """The Python blocks of a page run one after the other, offline, without a warning."""
    code, stdout, stderr = runner.run(page, tmp_path)
    assert code == 0, f"{stdout}\n{stderr}"


def test_a_page_is_run_as_one_script(runner: Runner, tmp_path: Path) -> None:
    """Blocks share their names, may await, find a database with tables, and are skipped where the page says so."""
    page = tmp_path / "page.md"
    page.write_text(SCRIPT, encoding="utf-8")
    assert runner.run(page, tmp_path) == (0, "COMPLETE job done\n", "")


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("import urllib.request\nurllib.request.urlopen('http://example.com')", r"reaches out to example\.com"),
        ("import warnings\nwarnings.warn('old')", r'page\.md", line 3, in <module>\n(?s:.*)\nUserWarning: old'),
    ],
    ids=["network", "warning"],
)
def test_a_page_that_does_not_work_is_found_out(code: str, complaint: str, runner: Runner, tmp_path: Path) -> None:
    """A block that leaves this machine, or warns, fails its page, and the line is named."""
    page = tmp_path / "page.md"
    page.write_text(f"```python\n{code}\n```\n", encoding="utf-8")
    status, _, stderr = runner.run(page, tmp_path)
    assert status == 1
    assert re.search(complaint, stderr)


def test_skips_are_few_and_say_why() -> None:
    """Skipping stays the exception, has a reason, and does not excuse a syntax error."""
    skipped = [block for block in BLOCKS if block.skip is not None]
    assert len(skipped) <= MOST_SKIPS, [block.where for block in skipped]
    for block in skipped:
        assert len((block.skip or "").split()) >= 3, f"{block.where}: write `<!-- test: skip because ... -->`"
        if block.language == "python":
            block.compiled()


@each(of(*PARSERS))
def test_data_parses(block: Block) -> None:
    """Configuration files and messages that a page shows are well-formed."""
    assert PARSERS[block.language](block.code) is not None


@each(BLOCKS)
def test_every_block_has_a_language_that_is_checked_or_only_shown(block: Block) -> None:
    """No block escapes these tests by a language that they do not know, such as `py` or `shell`."""
    assert block.language in ("python", *PARSERS, *SHELLS, *ONLY_SHOWN), block.where


@each(of(*SHELLS))
def test_commands_exist(block: Block) -> None:
    """A make target, a script of ours or a sub-command of `agentexec-otel` that a page tells to run is there."""
    for command in commands(block):
        if check := COMMANDS.get(Path(command[0]).name):
            check(command[1:])


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_variables_exist(page: Path) -> None:
    """Every environment variable of ours that a page mentions is read somewhere; a prefix (`..._*`) has one."""
    known = {f"AGENTEXEC_{name.upper()}" for name in Settings.model_fields}
    for source in ("tests/databases.py", "benchmarks/__main__.py", "agentexec_otel/tasks/_agentexec.py"):
        known |= set(_VARIABLE.findall((ROOT / source).read_text(encoding="utf-8")))
    for found in _VARIABLE.findall(page.read_text(encoding="utf-8")):
        matching = [name for name in known if name == found or (found.endswith("_") and name.startswith(found))]
        assert matching, f"{named(page)} names {found}, which nothing reads"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_extras_exist(page: Path) -> None:
    """Every extra that a page tells to install is one that we have."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extras in _EXTRAS.findall(page.read_text(encoding="utf-8")):
        assert set(re.split(r"\s*,\s*", extras)) <= set(project["optional-dependencies"]), extras


def make(arguments: list[str]) -> None:
    targets = set(_TARGET.findall((ROOT / "Makefile").read_text(encoding="utf-8")))
    asked = {argument for argument in arguments if not argument.startswith("-") and "=" not in argument}
    assert asked <= targets, f"make has no {asked - targets}"


def python(arguments: list[str]) -> None:
    if arguments and arguments[0].startswith(("examples/", "benchmarks/")):
        assert (ROOT / arguments[0]).is_file(), arguments[0]
    elif arguments[:1] == ["-m"] and arguments[1].split(".")[0] in ("agentexec_otel", "benchmarks", "examples"):
        folder = ROOT / Path(*arguments[1].split("."))
        assert folder.with_suffix(".py").is_file() or (folder / "__main__.py").is_file(), arguments[1]


def cli(arguments: list[str]) -> None:
    command: Any = get_command(app)
    for argument in arguments:
        if argument.startswith("-"):
            known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | {"--help"}
            assert argument.partition("=")[0] in known, f"{command.name} has no option {argument}"
        elif isinstance(command, TyperGroup):
            assert argument in command.commands, f"{command.name} has no command {argument}"
            command = command.commands[argument]
        elif not command.allow_interspersed_args:  # what follows is the program's
            return


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "agentexec-otel": cli,
    "make": make,
    "python": python,
    "python3": python,
}


def test_commands_are_read_out_of_shell_blocks() -> None:
    """Commands are found behind variables, in lists of commands, over two lines, and not in what a console answers."""
    text = "```bash\nA=1 make demo && pip install x # not: make y\n"
    text += "make \\\n  test ARGS='-k a b'; python examples/a.py\n```\n"
    text += "```console\n$ make wheel\nmake: nothing\n```\n"
    bash, console = blocks_of(Path("page.md"), text)
    assert list(commands(bash)) == [
        ["make", "demo"],
        ["pip", "install", "x"],
        ["make", "test", "ARGS=-k a b"],
        ["python", "examples/a.py"],
    ]
    assert list(commands(console)) == [["make", "wheel"]]


@pytest.mark.parametrize(
    ("check", "arguments"),
    [
        (make, ["nonsense"]),
        (python, ["examples/nonsense.py"]),
        (cli, ["nonsense"]),
        (cli, ["db", "nonsense"]),
        (cli, ["list", "--nonsense=1"]),
    ],
)
def test_what_is_not_there_is_found_out(check: Callable[[list[str]], None], arguments: list[str]) -> None:
    """The checks above can fail."""
    with pytest.raises(AssertionError, match="nonsense"):
        check(arguments)
