"""The deadline of a transaction concerns the socket of its own connection, and no other descriptor."""

import os
import socket
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine

from agentexec_otel_exporters.sql.connect._sdk import file_descriptor
from agentexec_otel_exporters.sql.connect.watchdog import Watchdog
from tests.databases import Database

pytestmark = pytest.mark.one_python


def copy_of(driver: Any) -> socket.socket:
    number = file_descriptor(driver)
    assert number is not None
    return socket.socket(fileno=os.dup(number))


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("database", ["postgres", "mariadb"], indirect=True)
def test_number_of_a_closed_descriptor(database: Database) -> None:
    """If the number of the connection's descriptor belongs to another socket by then, that one stays open."""
    watchdog = Watchdog()
    engine = create_engine(database.url)
    watchdog.watch_pool(engine)
    ours, peer = socket.socketpair()
    with ours, peer, watchdog.watching(), engine.connect() as connection:
        driver = connection.connection.driver_connection
        with copy_of(driver) as wire:
            os.dup2(ours.fileno(), file_descriptor(driver) or -1)
            watchdog.stop(0.0)
            ours.sendall(b"alive")
            assert peer.recv(5) == b"alive"
            wire.settimeout(5.0)
            assert wire.recv(1) == b"", "the connection is not cut"
        connection.invalidate()
    engine.dispose()


@pytest.mark.parametrize("database", ["postgres", "mariadb"], indirect=True)
def test_no_descriptor_is_left(database: Database) -> None:
    """A transaction closes the descriptor that it has of the socket, whether it was cut or not."""
    watchdog = Watchdog()
    engine = create_engine(database.url)
    watchdog.watch_pool(engine)
    with watchdog.watching(), engine.connect():
        pass
    before = open_files()
    for cut in (False, True):
        with watchdog.watching(), engine.connect() as connection:
            if cut:
                watchdog.stop(0.0)
                connection.invalidate()
    engine.dispose()
    assert open_files() == before - 1  # The pool's connection is closed as well.
