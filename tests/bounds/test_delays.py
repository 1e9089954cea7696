"""One caller's trouble delays no other caller, and an abandoned question is forgotten."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Thread
from uuid import UUID

import pytest
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider

import agentexec_otel as ax
from tests.chaos.proxy import Proxy
from tests.databases import Database

pytestmark = pytest.mark.one_python

PAUSE = 1.0


class Slow(SpanProcessor):
    """Takes its time with the spans of one name.

    Attributes:
        handled: How many of them are done.
    """

    def __init__(self) -> None:
        self.handled = 0

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        self._take_time(span.name == "slow to start")

    def on_end(self, span: ReadableSpan) -> None:
        self._take_time(span.name == "slow to end")

    def _take_time(self, really: bool) -> None:
        if really:
            time.sleep(PAUSE)
            self.handled += 1


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("name", ["slow to start", "slow to end"])
def test_slow_span_processor(database: Database, name: str) -> None:
    """While a span processor takes a second, `update()` and `run()` of any other activity take no longer than ever."""
    slow = Slow()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(slow)
    ax.configure(database.url, tracer_provider=provider)
    others = iter([ax.activity.create("other") for _ in range(400)])
    running = ax.activity.create("running")
    ax.activity.update(running, "Working.")
    slow_ones = [ax.activity.create(name) for _ in range(3)]

    def work() -> None:
        for agent_id in slow_ones:
            ax.activity.update(agent_id, "Working.")
            ax.activity.complete(agent_id)

    worker = Thread(target=work)
    worker.start()
    worst = {"update() of one that runs": 0.0, "first update() of another one": 0.0}
    deadline = time.monotonic() + 20
    while slow.handled < len(slow_ones):
        assert time.monotonic() < deadline
        for what, agent_id in zip(worst, (running, next(others)), strict=True):
            began = time.monotonic()
            ax.activity.update(agent_id, "Working on.")
            worst[what] = max(worst[what], time.monotonic() - began)
        time.sleep(0.05)
    worker.join()
    assert max(worst.values()) < PAUSE / 4, worst


QUESTIONS: dict[str, Callable[[UUID], object]] = {
    "update": lambda agent_id: ax.activity.update(agent_id, "Line."),
    "retry": ax.activity.retry,
    "cancel_pending": lambda _: ax.activity.cancel_pending(agent_type="nothing"),
}


@pytest.fixture
def proxy(database: Database) -> Iterator[Proxy]:
    """Stands before the database; the test itself looks past it."""
    with Proxy(database.url) as running:
        yield running


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
@pytest.mark.parametrize("call", QUESTIONS)
def test_abandoned_questions(database: Database, proxy: Proxy, call: str) -> None:
    """500 questions to the database whose callers have given up are not asked once it answers again.

    Each answer takes 20 ms then: 500 of them would hold up the next caller for 10 s.
    """

    def ask(agent_id: UUID) -> None:
        with suppress(ax.ActivityNotStoredError):
            QUESTIONS[call](agent_id)

    ax.configure(database.url)
    strangers = [ax.activity.create("task") for _ in range(500)]
    ax.shutdown()
    ax.configure(proxy.url)
    ax.activity.create("before")
    proxy.blackhole()
    ax.CONF.create_timeout = ax.CONF.lookup_timeout = 0.02
    with ThreadPoolExecutor(10) as threads:
        list(threads.map(ask, strangers))
    ax.CONF.create_timeout = 8.0
    proxy.delay = 0.02
    proxy.let_pass()
    proxy.cut()
    began = time.monotonic()
    ax.activity.create("after")
    took = time.monotonic() - began
    assert took < 4.0
    assert ax.flush(15.0)
    assert ax.health()["exporters"][0]["pending"] == 0
