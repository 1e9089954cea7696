"""The walls between the rooms, read from the sources: who may import whom, and what an import may cost."""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from uuid import UUID

import pytest

ROOT = Path(__file__).parents[2]
CORE = "agentexec_otel"
EXPORTERS = "agentexec_otel_exporters"
OPENAI_AGENTS = f"{CORE}.instrumentation.openai_agents"
MAX_LINES = 700
IMPORT_SECONDS = 5.0  # of CPU: ten times the promise, which the benchmarks measure; a busy machine must not fail it


@dataclass(frozen=True, slots=True)
class Wall:
    """Modules under `inside` (except those under `but`) import nothing under `banned`."""

    name: str
    inside: tuple[str, ...]
    banned: tuple[str, ...]
    but: tuple[str, ...] = ()


WALLS = [
    Wall("the core finds its exporters, it imports none", (CORE,), (EXPORTERS, "exporters")),
    Wall("exporters know the core only", (EXPORTERS,), ("exporters", f"{CORE}.instrumentation")),
    Wall("only openai_agents imports agents", (CORE, EXPORTERS), ("agents", "openai"), (OPENAI_AGENTS,)),
    Wall(
        "instrumentation reaches the runtime through one module",
        (f"{CORE}.instrumentation",),
        (f"{CORE}._runtime",),
        (f"{CORE}.instrumentation._activities",),
    ),
    Wall("delivery knows no runtime", (f"{CORE}.export",), (f"{CORE}._runtime", f"{CORE}.activity")),
    Wall(
        "tasks reach the runtime through one module",
        (f"{CORE}.tasks",),
        (f"{CORE}._runtime", f"{CORE}.activity._lifecycle"),
        (f"{CORE}.tasks._activities",),
    ),
    Wall("only web imports a web framework", (CORE, EXPORTERS), ("fastapi", "starlette"), (f"{CORE}.web",)),
    Wall("only cli imports a command line", (CORE, EXPORTERS), ("typer", "click", "rich"), (f"{CORE}.cli",)),
    Wall(
        "cli uses the public API only",
        (f"{CORE}.cli",),
        (
            EXPORTERS,
            *(f"{CORE}.{name}" for name in ("_config", "_environment", "_errors", "_model", "_runtime", "_sdk")),
        ),
    ),
    Wall("only tasks imports a task engine", (CORE, EXPORTERS), ("taskiq", "celery"), (f"{CORE}.tasks",)),
    Wall("only one module imports pyarrow", (CORE, EXPORTERS), ("pyarrow",), (f"{CORE}.activity._retention.parquet",)),
    Wall("the core knows no database driver", (CORE,), ("psycopg", "pymysql", "asyncpg", "aiomysql")),
    Wall("nobody imports the tests", (CORE, EXPORTERS), ("tests", "pytest", "examples", "benchmarks")),
]

IO_MODULES = (
    *("asyncio", "concurrent", "http", "io", "logging", "multiprocessing", "os", "pathlib", "queue", "random"),
    *("shutil", "socket", "sqlite3", "ssl", "subprocess", "tempfile", "threading", "time", "urllib.request"),
    *("sqlalchemy", "requests", "opentelemetry.sdk.trace.export"),
)
DELIVERY = (f"{CORE}.export", f"{CORE}._runtime", EXPORTERS)
MODEL = f"{CORE}._model"
# A new id takes its time and its randomness from the system; cancellations are asyncio's exception; a redact hook that
# fails is logged, once.
HARMLESS = {"asyncio", "logging", "time", "time.time_ns"}
RANDOMNESS = {f"{CORE}._syscalls", f"{CORE}._syscalls.random_48"}


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, Path]:
    """Every module of the distribution by its name."""
    sources = ((ROOT, CORE), (ROOT / "exporters", EXPORTERS))
    return {
        module_name(path, root): path for root, package in sources for path in sorted((root / package).rglob("*.py"))
    }


def imports(source: str, module: str, *, is_package: bool = False) -> set[str]:
    """The absolute names that a module imports, at whatever depth and under whatever condition.

    `from a import b` counts as `a` and as `a.b`, since the text does not say whether b is a module.
    """
    package = module if is_package else module.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parent, *base.split(".")] if base else parent)
            found.add(base)
            found.update(f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call):
            found.update(dynamic_import(node))
    return found


def dynamic_import(call: ast.Call) -> Iterator[str]:
    """The module in `import_module("x")` and `__import__("x")`, which are imports all the same."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name in {"import_module", "__import__"} and call.args:
        first = call.args[0]
        if isinstance(first, ast.Constant) and isinstance(first.value, str):
            yield first.value


@cache
def imports_of(module: str) -> frozenset[str]:
    path = modules()[module]
    return frozenset(imports(path.read_text(encoding="utf-8"), module, is_package=path.name == "__init__.py"))


def under(name: str, prefixes: Iterable[str]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def reachable(start: str) -> set[str]:
    """Our own modules that `start` names in its imports, and that those name in turn.

    A package's `__init__` counts only where it is itself named: what it gathers for its users is not what the
    module asked for.
    """
    seen: set[str] = set()
    todo = [start]
    while todo:
        module = todo.pop()
        seen.add(module)
        named = {name for name in imports_of(module) if name in modules()}
        deepest = {name for name in named if not any(other.startswith(f"{name}.") for other in named)}
        todo.extend(deepest - seen)
    return seen


@pytest.mark.parametrize("wall", WALLS, ids=lambda wall: wall.name.replace(" ", "-"))
def test_walls_between_the_rooms_hold(wall: Wall) -> None:
    """No module imports across a wall, not even inside a function or under TYPE_CHECKING."""
    inside = [name for name in modules() if under(name, wall.inside) and not under(name, wall.but)]
    assert inside
    breaches = {
        name: sorted(found for found in imports_of(name) if under(found, wall.banned))
        for name in inside
        if any(under(found, wall.banned) for found in imports_of(name))
    }
    assert breaches == {}


def test_model_is_pure() -> None:
    """`_model` holds values and rules: it imports nothing of ours but itself, and nothing that waits or does I/O."""
    inside = [name for name in modules() if under(name, [MODEL])]
    assert len(inside) > 5
    named = {name for module in inside for name in imports_of(module)}
    ours = {name for name in named if under(name, [CORE, EXPORTERS]) and not under(name, [MODEL])}
    assert ours <= RANDOMNESS
    assert not [name for name in named if under(name, IO_MODULES) and name not in HARMLESS]


def attributes_of(source: str) -> Iterator[tuple[str, ast.Attribute]]:
    """Every attribute access, as dotted text (calls as ``name()``), with its node."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node), node


REACHED_THROUGH = re.compile(r"(?:.*\.)?(?:runtime|active\(\))\.(?!session_store\b)\w+\.\w+")


@pytest.mark.parametrize(
    ("text", "reaches"),
    [
        ("runtime.primary.emit", True),
        ("process.active().spans.known", True),
        ("self._runtime.lookups.soon", True),
        ("runtime.record", False),
        ("runtime.find(agent_id).status", False),
        ("runtime.session_store.write_in", False),
    ],
)
def test_reaching_through_is_seen(text: str, reaches: bool) -> None:
    """What the next test looks for."""
    found = [REACHED_THROUGH.fullmatch(dotted.replace("_runtime.", "runtime.")) for dotted, _ in attributes_of(text)]
    assert any(found) is reaches


def test_the_runtime_is_used_by_its_verbs() -> None:
    """Outside of `_runtime` no code reaches through the runtime to a part of it."""
    breaches = {
        f"{name}: {dotted}"
        for name, path in modules().items()
        if not under(name, [f"{CORE}._runtime"])
        for dotted, _ in attributes_of(path.read_text(encoding="utf-8"))
        if REACHED_THROUGH.fullmatch(dotted)
    }
    assert breaches == set()


def test_a_view_is_changed_by_itself_alone() -> None:
    """No field of a `LiveActivity` is assigned outside of its module: others call its methods."""
    from agentexec_otel._runtime.live import LiveActivities, LiveActivity

    fields = vars(LiveActivity(LiveActivities(), UUID(int=0), None)).keys()
    assert len(fields) > 20
    breaches = {
        f"{name}: {dotted}"
        for name, path in modules().items()
        if name != f"{CORE}._runtime.live"
        for dotted, node in attributes_of(path.read_text(encoding="utf-8"))
        if isinstance(node.ctx, ast.Store) and node.attr in fields and re.search(r"\b(live|view)\.\w+$", dotted)
    }
    assert breaches == set()


@pytest.mark.parametrize("module", ["_query", "_follow"])
def test_query_side_never_imports_the_delivery_side(module: str) -> None:
    """Reading needs no exporter, queue or runtime, directly or through a module of ours."""
    reached = reachable(f"{CORE}.activity.{module}")
    assert f"{CORE}.activity.models" in reached, "the walk is blind"
    named = {name for module in reached for name in imports_of(module)}
    assert not [name for name in named if under(name, DELIVERY)]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import agents", "agents"),
        ("import agents.tracing as t", "agents.tracing"),
        ("def f():\n    from agents import Runner", "agents.Runner"),
        ("if TYPE_CHECKING:\n    import agents", "agents"),
        ("importlib.import_module('agents')", "agents"),
        ("__import__('agents')", "agents"),
        ("from . import export", f"{CORE}.activity.export"),
        ("from .. import export", f"{CORE}.export"),
        ("from ..export._processor import ActivityProcessor", f"{CORE}.export._processor"),
    ],
)
def test_every_way_to_import_is_seen(source: str, expected: str) -> None:
    """The walls cannot be climbed by another spelling."""
    assert expected in imports(source, f"{CORE}.activity._query")


def test_modules_stay_short() -> None:
    """A module that outgrows a few screens is two modules."""
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules().items()}
    assert len(lengths) > 10
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}


def test_core_needs_what_it_declares_and_nothing_else() -> None:
    """The required dependencies are exactly the distributions that the core imports without an extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {distribution(requirement) for requirement in project["dependencies"]}
    optional = {
        distribution(requirement) for extra in project["optional-dependencies"].values() for requirement in extra
    }
    providers = importlib.metadata.packages_distributions()
    used: set[str] = set()
    for module in modules():
        for name in imports_of(module):
            top = name.partition(".")[0]
            if top in sys.stdlib_module_names or top in {CORE, EXPORTERS, ""}:
                continue
            if top == "opentelemetry":
                used.update(opentelemetry_distribution(name))
            else:
                used.update(normalized(provider) for provider in providers.get(top, [top]))
    assert used - optional == declared


def opentelemetry_distribution(name: str) -> Iterator[str]:
    # Several distributions fill this namespace.
    if under(name, ["opentelemetry.sdk"]):
        yield "opentelemetry-sdk"
    elif under(name, ["opentelemetry.exporter.otlp.proto.http"]):
        yield "opentelemetry-exporter-otlp-proto-http"
    elif not under(name, ["opentelemetry.exporter"]) and name != "opentelemetry":
        yield "opentelemetry-api"


def distribution(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match
    return normalized(match.group())


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_import_is_light() -> None:
    """`import agentexec_otel` pulls in no extra, and is quick."""
    script = (
        "import sys, time\n"
        "began = time.process_time()\n"
        "import agentexec_otel\n"
        "seconds = time.process_time() - began\n"
        "heavy = {'agents', 'openai', 'fastapi', 'psycopg', 'pyarrow', 'pymysql', 'rich', 'requests'}\n"
        "heavy &= set(sys.modules)\n"
        "print(seconds, *sorted(heavy))\n"
    )
    # A plug-in that some other package has given pydantic (Logfire, in the development environment) is not ours.
    environment = {**os.environ, "PYDANTIC_DISABLE_PLUGINS": "__all__"}
    command = [sys.executable, "-W", "error", "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    seconds, *heavy = result.stdout.split()
    assert heavy == []
    assert float(seconds) < IMPORT_SECONDS
