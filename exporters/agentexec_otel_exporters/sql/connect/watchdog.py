"""A deadline for each transaction, which cuts a connection that does not answer.

Limits that the server keeps do not help if the server cannot be heard, and TCP keepalives of this host take minutes.
Shutting the socket down wakes the driver at once.

A transaction has a descriptor of its own for that socket. The driver may have closed its descriptor by then, and the
number may belong to another file of the application.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Engine, event

from agentexec_otel._errors import guarded
from agentexec_otel_exporters.sql.connect._sdk import file_descriptor

_logger = logging.getLogger("agentexec_otel.export")

DEADLINE: Final = 5.0
"""Seconds after which a transaction's connection is cut, and an attempt to connect is given up."""
INTERVAL: Final = 0.5
"""Seconds between two polls of the clock: a connection is cut at most this much after its deadline."""
_SECOND_TRY: Final = 0.4
"""Part of the deadline for the transaction after a cut one: the next connection is often broken as well.

The one after it has the whole deadline again: the database may only be slow.
"""
_REPORT_INTERVAL: Final = 60.0


@dataclass(slots=True)
class _Transaction:
    deadline: float
    shortened: bool
    sockets: deque[socket.socket] = field(default_factory=deque[socket.socket])
    """The socket of its connection, if there is one. The thread that takes it closes it; taking it is atomic."""

    def take_socket(self) -> socket.socket | None:
        """The socket, for the caller to close; None if there is none, or if another thread has taken it."""
        with suppress(IndexError):
            return self.sockets.pop()
        return None

    def release(self) -> None:
        """Close the socket, unless another thread has taken it."""
        if (taken := self.take_socket()) is not None:
            taken.close()


class Watchdog:
    """Cuts the connections of transactions that miss their deadline.

    A transaction belongs to a thread. Its connection is known once the pool has opened it, so that SQLAlchemy's first
    statements on a new connection are watched as well.
    """

    def __init__(self, seconds: float = DEADLINE, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._transactions: dict[int, _Transaction] = {}  # By thread; each thread changes its own entry only.
        self.reset()

    def reset(self) -> None:
        """In a forked child: the thread and the transactions are the parent's."""
        for transaction in self._transactions.values():
            transaction.release()
        self._transactions.clear()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()
        self._reported_at = float("-inf")
        self._shorten_next = False

    def watch_pool(self, engine: Engine) -> None:
        """Learn from the engine's pool which connection a thread uses."""
        event.listen(engine, "connect", self._attach, insert=True)
        event.listen(engine, "checkout", self._attach)

    def _attach(self, connection: Any, *_: object) -> None:
        transaction = self._transactions.get(threading.get_ident())
        if transaction is not None:
            transaction.release()
            if (own := _socket_of(connection)) is not None:
                transaction.sockets.append(own)

    @contextmanager
    def watching(self) -> Generator[None]:
        """Cut the connection of this thread if it does not leave the block before the deadline."""
        shortened, self._shorten_next = self._shorten_next, False
        seconds = self._seconds * _SECOND_TRY if shortened else self._seconds
        key = threading.get_ident()
        self._transactions[key] = transaction = _Transaction(self._clock() + seconds, shortened)
        if self._thread is None:
            self._start()
        self._wake.set()
        try:
            yield
        finally:
            self._transactions.pop(key, None)
            transaction.release()

    def stop(self, timeout: float) -> None:
        """Wait up to `timeout` seconds for the transactions under way, cut those that are left, and end the thread.

        A transaction that is still connecting is cut once it is connected. A later one starts a new thread.
        """
        end = time.monotonic() + timeout
        while self._transactions and time.monotonic() < end:
            time.sleep(0.005)
        for transaction in list(self._transactions.values()):
            transaction.deadline = float("-inf")
        self._cut_overdue()
        stopped, self._stopped = self._stopped, threading.Event()
        self._thread = None
        stopped.set()
        self._wake.set()

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, args=(self._stopped,), name="agentexec-watchdog", daemon=True)
        # No thread can be started late in the interpreter's life: transactions are not watched then.
        with suppress(RuntimeError):
            thread.start()
            self._thread = thread

    def _run(self, stopped: threading.Event) -> None:
        while self._transactions or not stopped.is_set():
            self._wake.clear()  # Before the check: a transaction that begins after it sets it again.
            if not self._transactions and not stopped.is_set():
                self._wake.wait()
            time.sleep(INTERVAL)
            self._cut_overdue()

    def _cut_overdue(self) -> None:
        now = self._clock()
        for transaction in list(self._transactions.values()):
            if now >= transaction.deadline and (taken := transaction.take_socket()) is not None:
                self._shorten_next = not transaction.shortened
                self._report(now)
                with guarded("cutting a database connection"):
                    _cut(taken)

    def _report(self, now: float) -> None:
        # In a long outage every attempt ends here: one warning a minute is enough.
        level = logging.WARNING if now - self._reported_at >= _REPORT_INTERVAL else logging.DEBUG
        self._reported_at = now if level == logging.WARNING else self._reported_at
        _logger.log(level, "a database connection did not answer for %g s and is cut", self._seconds)


def _socket_of(connection: Any) -> socket.socket | None:
    """The socket of a DBAPI connection, by a descriptor of its own; None for SQLite. On the connection's thread."""
    with suppress(OSError, ValueError):
        descriptor = file_descriptor(connection)
        if descriptor is not None:
            return socket.socket(fileno=os.dup(descriptor))
    return None


def _cut(taken: socket.socket) -> None:
    """Shut a socket down while another thread uses it, and close this descriptor of it."""
    with taken, suppress(OSError):
        taken.shutdown(socket.SHUT_RDWR)
