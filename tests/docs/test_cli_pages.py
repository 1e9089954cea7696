"""The pages on the command line: the reference is what the command says, and what the tour shows can be typed."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from uuid import UUID

import pytest

import agentexec_otel as ax
from tests.cli.terminal import run
from tests.docs.blocks import ROOT, blocks_of

pytestmark = pytest.mark.one_python

TOUR = ROOT / "docs" / "how-to" / "use-the-command-line.md"
COMMANDS = [
    line.split(" | ")[0]
    for block in blocks_of(TOUR)
    if block.language == "bash"
    for line in block.code.splitlines()
    if line.startswith("agentexec-otel ")
]
ENDLESS = ("--watch", "--install-completion", "agentexec-otel tail")


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_what_the_command_says() -> None:
    """No command or option is undocumented, and none is documented that does not exist."""
    script = load(ROOT / "docs" / "reference" / "make_cli.py")
    page = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    assert page.endswith(script.reference()), "run: python docs/reference/make_cli.py"
    names = {name for name, _ in script.commands()}
    assert {"agentexec-otel list", "agentexec-otel db upgrade", "agentexec-otel worker"} <= names


@pytest.mark.parametrize("command", [one for one in COMMANDS if not any(part in one for part in ENDLESS)])
def test_the_tour_can_be_typed(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command of the tour that ends by itself does so without an error."""
    monkeypatch.chdir(tmp_path)
    url = f"sqlite:///{tmp_path}/app.db"
    ax.configure(url, create_tables=True)
    agent_id = UUID("9f6c1c1e-5a7b-4c3d-8e2f-1a2b3c4d5e6f")
    ax.activity.create("research_company", agent_id=agent_id)
    ax.shutdown()
    (tmp_path / "activities.jsonl").touch()
    _, *arguments = shlex.split(command)
    asks = arguments[0] in ("cancel", "retry", "archive")
    done = run(*arguments, *(["--yes"] if asks else []), url=url)
    assert (done.code, done.err.startswith("agentexec-otel:")) == (0, False), done.err


def test_the_tour_shows_the_output() -> None:
    """The pictures of the tour exist, and each picture is in it."""
    shown = set(re.findall(r"\.\./images/(cli-\w+\.svg)", TOUR.read_text(encoding="utf-8")))
    assert shown == {path.name for path in (ROOT / "docs" / "images").glob("cli-*.svg")}


def test_the_pictures_are_drawn_by_the_command(tmp_path: Path) -> None:
    """Drawn anew, the pictures show what those of the docs show. How they are drawn is Rich's."""
    script = ROOT / "docs" / "images" / "make_cli.py"
    subprocess.run([sys.executable, script, tmp_path], check=True)
    drawn = {path.name: texts_of(path) for path in tmp_path.glob("cli-*.svg")}
    kept = {path.name: texts_of(path) for path in script.parent.glob("cli-*.svg")}
    assert drawn == kept, "run: python docs/images/make_cli.py"


def texts_of(picture: Path) -> list[str]:
    return re.findall(r"<text[^>]*>(.*?)</text>", picture.read_text(encoding="utf-8"))
