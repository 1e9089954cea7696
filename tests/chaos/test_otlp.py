"""The receiver of OTLP logs is away: nothing is lost, doubled or disordered, and the database does not notice."""

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import agentexec_otel as ax
from tests.chaos.journal import compare, promised
from tests.chaos.law import assert_conserved, settled
from tests.chaos.processes import await_that, journals, producer
from tests.chaos.proxy import Proxy
from tests.databases import Database
from tests.e2e.rotel import Rotel, plain, rotel

pytestmark = [
    pytest.mark.one_python,
    pytest.mark.skipif(sys.version_info >= (3, 14), reason="Rotel has no wheel for Python 3.14"),
]


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Rotel]:
    with rotel(tmp_path) as running:
        yield running


@pytest.mark.parametrize(
    ("protocol", "seconds"),
    [
        ("http/protobuf", 3),
        pytest.param("grpc", 3, marks=pytest.mark.slow),
        pytest.param("http/protobuf", 60, marks=pytest.mark.slow),
        pytest.param("grpc", 60, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_an_outage_and_two_kills_lose_nothing(
    receiver: Rotel, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: str, seconds: float
) -> None:
    """200 logs a second and no receiver, two of three producers killed: 0 lost, in order, 0 twice by their uid."""
    with Proxy(receiver.grpc if protocol == "grpc" else receiver.http) as proxy:
        environment = {
            "AGENTEXEC_EXPORTERS": "otlp",
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "OTEL_EXPORTER_OTLP_ENDPOINT": proxy.url,
        }
        with (
            producer(tmp_path, database.url, "survivor", environment, rate=100) as survivor,
            producer(tmp_path, database.url, "first", environment, rate=50) as first,
            producer(tmp_path, database.url, "second", environment, rate=50) as second,
        ):
            for one in (survivor, first, second):
                one.says("ready")
            time.sleep(0.5)
            proxy.refuse()
            for victim in (first, second):
                time.sleep(seconds / 3)
                victim.kill()
            time.sleep(seconds / 3)
            proxy.let_pass()
            time.sleep(0.5)
            survivor.stop()
            report = survivor.report()
        assert report["flushed"]
        assert_conserved(report["health"], report["metrics"])
        assert len(survivor.stderr.splitlines()) <= 3, survivor.stderr
        monkeypatch.setattr(ax.CONF, "exporters", ("otlp",))
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        ax.configure(database.url)
        ax.recover()
        settled()
        assert compare(database.engine, journals(tmp_path)).sound
        assert_all_received(receiver, tmp_path, seconds)


def assert_all_received(receiver: Rotel, folder: Path, seconds: float) -> None:
    """What producers were promised is at the receiver: each log, once by its uid, in the order of its producer."""
    wanted = {(str(agent_id), text) for agent_id, texts in promised(journals(folder)).items() for text in texts}
    assert len(wanted) > seconds * 50

    def missing() -> set[tuple[str, str]]:
        found = [(plain(one.attributes)["agentexec.agent_id"], one.body.string_value) for one in receiver.records]
        assert len(found) == len(set(found)), "a log came with two uids"
        return wanted - set(found)

    await_that(lambda: not missing(), 20, "the arrival of all logs")
    for numbers in arrivals(receiver.bodies).values():
        assert numbers == sorted(numbers)


def arrivals(bodies: list[str]) -> dict[str, list[int]]:
    """The numbers of each producer's logs in the order in which they came first."""
    numbers: dict[str, list[int]] = {}
    for body in dict.fromkeys(bodies):
        if found := re.fullmatch(r"(p\d+) (\d+)", body):
            numbers.setdefault(found[1], []).append(int(found[2]))
    return numbers
