"""No call waits longer than its documented bound, whatever the database does."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from contextvars import copy_context
from itertools import product

import pytest

import agentexec_otel as ax
from tests.bounds.calls import CALLS, Call, Site, Thunk, set_bounds
from tests.chaos.proxy import Proxy
from tests.databases import Database
from tests.sql.recorder import Recorder

pytestmark = [pytest.mark.one_python, pytest.mark.parametrize("database", ["postgres"], indirect=True)]

HANGS = 12.0


def away(proxy: Proxy) -> None:
    """The port is closed: connections are reset, new ones are refused."""
    proxy.refuse()


def frozen(proxy: Proxy) -> None:
    """Connections stay, and nothing comes back."""
    proxy.blackhole()


def swallowing(proxy: Proxy) -> None:
    """Old connections are reset. New ones are accepted, and nothing comes back."""
    proxy.blackhole()
    proxy.cut()


@pytest.fixture
def proxy(database: Database) -> Iterator[Proxy]:
    """Stands before the database; the test itself looks past it."""
    with Proxy(database.url) as running:
        yield running


@pytest.fixture
def site(database: Database, proxy: Proxy) -> Site:
    """The SDK on the database behind the proxy, and activities that it has not seen since."""
    ax.configure(database.url)
    strangers = [ax.activity.create("task") for _ in range(40)]
    ax.shutdown()
    ax.configure(proxy.url)
    return Site(database.engine, strangers)


def allowed(bound: float) -> float:
    """Five times the bound, for a busy machine; three seconds above a bound of seconds."""
    return min(5 * bound, bound + 3.0)


@pytest.mark.parametrize("pending", [0, 200], ids=["nothing pending", "200 events pending"])
@pytest.mark.parametrize("fails", [away, frozen, swallowing])
def test_calls_are_bounded(site: Site, proxy: Proxy, fails: Callable[[Proxy], None], pending: int) -> None:
    """With the database away, frozen or swallowing connections, every call returns or raises within its bound.

    All calls are made at the same moment, each in a thread of its own: one that waits holds up no other one.
    """
    working = ax.activity.create("working")
    thunks = {call.name: _prepared(call, site) for call in CALLS}
    assert ax.flush()
    set_bounds()
    fails(proxy)
    for number in range(pending):
        ax.activity.update(working, f"Line {number}.")
    took = _at_once(thunks)
    proxy.let_pass()
    slow = [
        f"{call.name}: {took.get(call.name, HANGS):.2f} s, bound {call.bound:g} s"
        for call in CALLS
        if took.get(call.name, HANGS) > allowed(call.bound)
    ]
    assert not slow, "\n".join(slow)


def _prepared(call: Call, site: Site) -> Thunk:
    """The call, to be made in a context of its own: a block that it enters is no other call's current one."""
    context = copy_context()
    thunk = context.run(call.prepare, site)
    return lambda: context.run(thunk)


def _at_once(thunks: Mapping[str, Thunk]) -> dict[str, float]:
    """Seconds that each call took. One that still waits after `HANGS` seconds is missing."""
    together = threading.Event()
    took: dict[str, float] = {}

    def make(name: str, thunk: Thunk) -> None:
        together.wait()
        began = time.monotonic()
        with suppress(ax.AgentExecError, TimeoutError):
            thunk()
        took[name] = time.monotonic() - began

    threads = [threading.Thread(target=make, args=one, daemon=True) for one in thunks.items()]
    for thread in threads:
        thread.start()
    together.set()
    deadline = time.monotonic() + HANGS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return took


class Stuck(Recorder):
    """An exporter whose destination never answers: it uses all the time that it is given."""

    def __init__(self) -> None:
        self.released = threading.Event()
        super().__init__(gate=self.released)

    def force_flush(self, timeout: float) -> bool:
        return self.released.wait(timeout)

    def shutdown(self, timeout: float) -> None:
        self.released.wait(timeout)


def fine(_: Proxy) -> None:
    """The database answers."""


def test_shutdown_is_bounded(database: Database, proxy: Proxy) -> None:
    """`shutdown(t)` takes at most t + 0.5 s, whatever the database does, and with an exporter that is stuck, too."""
    slow: list[str] = []
    for fails, exporters in product((fine, away, frozen, swallowing), ([], [Stuck()])):
        ax.configure(proxy.url, exporters=exporters)
        agent_id = ax.activity.create("task")
        ax.activity.update(agent_id, "Working.")
        fails(proxy)
        for number in range(200):
            ax.activity.update(agent_id, f"Line {number}.")
        began = time.monotonic()
        ax.shutdown(1.0)
        took = time.monotonic() - began
        if took > 1.5:
            slow.append(f"{fails.__name__}, {'a stuck exporter' if exporters else 'SQL alone'}: {took:.2f} s")
        for one in exporters:
            one.released.set()
        proxy.let_pass()
        ax.configure(database.url)
        ax.shutdown(10.0)
    assert not slow, "\n".join(slow)
