"""The brokers for the tests: Redis, RabbitMQ and NATS, named by AGENTEXEC_TEST_REDIS, _RABBITMQ and _NATS (URLs).

A server that does not answer skips its tests, or fails them where AGENTEXEC_TEST_REQUIRE_SERVERS=1. Each test has
queues of its own.
"""

import os
import socket
from typing import NoReturn
from urllib.parse import urlsplit

import pytest

URLS = {
    "redis": os.environ.get("AGENTEXEC_TEST_REDIS", "redis://127.0.0.1:6379/7"),
    "rabbitmq": os.environ.get("AGENTEXEC_TEST_RABBITMQ", "amqp://guest:guest@127.0.0.1:5672/"),
    "nats": os.environ.get("AGENTEXEC_TEST_NATS", "nats://127.0.0.1:4222"),
}
REDIS = URLS["redis"]
_PORTS = {"redis": 6379, "rabbitmq": 5672, "nats": 4222}


def results_for(name: str) -> str | None:
    """Where a pool on that broker keeps its results, if not there."""
    return REDIS if name == "rabbitmq" else None


def need(*names: str) -> None:
    """Skip or fail the running test where one of these servers does not answer."""
    for name in names:
        if (complaint := _complaint(name)) is not None:
            lack(complaint)


def lack(complaint: str) -> NoReturn:
    """Skip or fail the running test, for which something is not there."""
    if os.environ.get("AGENTEXEC_TEST_REQUIRE_SERVERS") == "1":
        pytest.fail(complaint, pytrace=False)
    pytest.skip(complaint)


def _complaint(name: str) -> str | None:
    parts = urlsplit(URLS[name])
    try:
        with socket.create_connection((parts.hostname or "127.0.0.1", parts.port or _PORTS[name]), 3):
            return None
    except OSError as exc:
        return f"{name} does not answer at {parts.hostname}:{parts.port} (AGENTEXEC_TEST_{name.upper()}): {exc}"
