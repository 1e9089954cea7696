"""Fixtures for every test: databases, spans, and a process-wide runtime that no test leaves behind.

agentexec_otel is imported inside the fixtures, so that a test of the import itself starts from nothing.
"""

import faulthandler
import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key
from hypothesis import settings
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic_settings import BaseSettings
from xdist.remote import Producer  # pyright: ignore[reportMissingTypeStubs]
from xdist.scheduler import LoadScopeScheduling, Scheduling  # pyright: ignore[reportMissingTypeStubs]

from tests.databases import KINDS, Database, Servers, create_tables, open_database

CHAOS = Path(__file__).parent / "chaos"
# One process runs all tests of these modules: what they share takes seconds to start.
UNDIVIDED = frozenset(
    {
        "tests/agentexec/test_its_own_tests.py",
        "tests/docs/test_docs_blocks.py",
        "tests/e2e/test_demo.py",
        "tests/e2e/test_outcomes.py",
        "tests/e2e/test_tasks_celery.py",
        "tests/sql/test_prefix.py",
        "tests/unit/test_packaging.py",
        "tests/web/browser/test_dashboard_accessible.py",
        "tests/web/browser/test_dashboard_hostile.py",
        "tests/web/browser/test_dashboard_live.py",
        "tests/web/browser/test_dashboard_looks.py",
    }
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Tests that race real servers or kill processes may fail on a busy machine; no other test is ever run again."""
    parser.addoption(
        "--chaos-reruns",
        type=int,
        default=0,
        metavar="N",
        help="run a failing test marked chaos up to N more times",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what is in `tests/chaos` or on MariaDB, and let tests marked `chaos` run again as often as asked for."""
    reruns = config.getoption("--chaos-reruns")
    for item in items:
        if CHAOS in item.path.parents:
            item.add_marker(pytest.mark.chaos)
        if "mariadb" in item.name:  # its driver is pure Python: one Python shows it all
            item.add_marker(pytest.mark.one_python)
        if reruns and item.get_closest_marker("chaos"):
            item.add_marker(pytest.mark.flaky(reruns=reruns, reruns_delay=1))


def pytest_collection_finish() -> None:
    """Hide what is imported and collected from the garbage collector: a full run of it would take a second."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Watch over the teardown, too: pytest stops its watch if the test fails, and pytest-timeout's alarm rings once."""
    faulthandler.dump_traceback_later(
        float(item.config.getini("faulthandler_timeout")),
        file=item.config.stash[fault_handler_stderr_fd_key],
        exit=bool(item.config.getini("faulthandler_exit_on_timeout")),
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    """Keep modules in one piece. (`xdist_group` does not: pytest-xdist 3.8 cannot mark tests of pytest 9.2.)"""
    return ByModule(config, log)


class ByModule(LoadScopeScheduling):  # type: ignore[misc]  # pytest-xdist has no types
    """Hands out single tests, but for the modules that are undivided."""

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.partition("::")[0]
        return module if module in UNDIVIDED else nodeid


def pytest_configure(config: pytest.Config) -> None:
    """The developer's own settings decide nothing here; subprocesses inherit the clean environment."""
    gc.disable()  # until all is collected: little of that is garbage
    for name in list(os.environ):
        if name.startswith(("AGENTEXEC_", "OTEL_")) and not name.startswith("AGENTEXEC_TEST_"):
            del os.environ[name]
    # Logfire's plugin, which pydantic loads in each process, takes a third of the time that our import takes.
    os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"
    # A busy machine is no counterexample. The parent is Hypothesis' own profile, which is another one in CI.
    settings.register_profile("patient", parent=settings(), deadline=None)
    settings.load_profile("patient")


@pytest.fixture(autouse=True)
def own_state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test leaves in the user's state or data folder (a spool, a database) is its own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.fixture(autouse=True)
def fresh_runtime(own_state_folder: None) -> Iterator[None]:
    """Each test configures its own runtime, and the next one finds none."""
    yield
    reset_runtime()


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """PostgreSQL and MariaDB, as far as they answer."""
    found = Servers()
    yield found
    found.close()


@pytest.fixture(params=KINDS)
def database(request: pytest.FixtureRequest, servers: Servers, tmp_path: Path) -> Iterator[Database]:
    """A fresh database with our tables, once each on SQLite, PostgreSQL and MariaDB.

    `@pytest.mark.parametrize("database", ["sqlite"], indirect=True)` narrows it down.
    """
    with open_database(request.param, servers, tmp_path) as opened:
        create_tables(opened)
        yield opened
        # The runtime lets go of its connections before the engine and the next test's reset.
        reset_runtime()


@pytest.fixture
def empty_database(request: pytest.FixtureRequest, servers: Servers, tmp_path: Path) -> Iterator[Database]:
    """A fresh database without tables: SQLite, or the kinds that indirect parametrisation names.

    What a test makes under their names is gone behind it: the next one may take them for its own.
    """
    import agentexec_otel as ax

    with open_database(getattr(request, "param", "sqlite"), servers, tmp_path) as opened:
        yield opened
        reset_runtime()
        ax.Base.metadata.drop_all(opened.engine)


@pytest.fixture
def span_exporter() -> InMemorySpanExporter:
    """Where the spans of `tracer_provider` end up."""
    return InMemorySpanExporter()


@pytest.fixture
def tracer_provider(span_exporter: InMemorySpanExporter) -> Iterator[TracerProvider]:
    """A provider of this test alone; the global one is never set."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(span_exporter))
    yield provider
    provider.shutdown()


@pytest.fixture
def spans(
    request: pytest.FixtureRequest,
    tracer_provider: TracerProvider,
    span_exporter: InMemorySpanExporter,
    servers: Servers,
    tmp_path: Path,
) -> Iterator[InMemorySpanExporter]:
    """The spans that agentexec_otel ends, configured on the test's `database` where it has one, else on SQLite."""
    import agentexec_otel as ax

    if "database" in request.fixturenames:
        ax.configure(request.getfixturevalue("database").url, tracer_provider=tracer_provider)
        yield span_exporter
        return
    with open_database("sqlite", servers, tmp_path) as opened:
        create_tables(opened)
        ax.configure(opened.url, tracer_provider=tracer_provider)
        yield span_exporter
        reset_runtime()


def reset_runtime() -> None:
    """Stop the process-wide runtime and restore the settings; does nothing where a test has imported neither."""
    if runtime := sys.modules.get("agentexec_otel._runtime.process"):
        runtime.reset_for_tests()
    if package := sys.modules.get("agentexec_otel"):
        restore(package.CONF)


def restore(conf: BaseSettings) -> None:
    """Give every setting its default again."""
    for name, declared in type(conf).model_fields.items():
        default = declared.get_default(call_default_factory=True, validated_data={})
        if getattr(conf, name) != default:
            setattr(conf, name, default)
