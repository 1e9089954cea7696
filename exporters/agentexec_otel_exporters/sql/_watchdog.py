"""A deadline over each transaction: a half-open connection would otherwise block the writer for minutes.

Statement time-outs and keepalives do not help where nothing comes back at all; closing the socket under the driver
does, at once.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import Engine, event

from agentexec_otel._errors import guarded

_logger = logging.getLogger("agentexec_otel.export")

DEADLINE = 5.0
_INTERVAL = 0.5
_REPORTED_EVERY = 60.0
_IMPATIENT = 0.4
"""Part of the deadline for the try after a cut one. The next has all of it again: the database may be merely slow."""


@dataclass(slots=True)
class _Watched:
    deadline: float
    patient: bool
    connection: Any = None


class Watchdog:
    """Cuts the connection of a transaction that takes longer than its deadline.

    A transaction belongs to a thread; its connection is named as soon as the pool has it, so that what SQLAlchemy asks
    a new connection first is watched, too.
    """

    def __init__(self, seconds: float = DEADLINE, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        """In a forked child: the thread is the parent's."""
        self._watched: dict[int, _Watched] = {}
        self._active = threading.Event()
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()
        self._reported_at = float("-inf")
        self._patient = True

    def stop(self) -> None:
        """End the thread, once nothing is to be watched; another transaction would start a new one."""
        stopped, self._stopped = self._stopped, threading.Event()
        self._thread = None
        stopped.set()
        self._active.set()

    def watch_pool(self, engine: Engine) -> None:
        """Learn from the engine's pool which connection a thread is using."""
        event.listen(engine, "connect", self._attach, insert=True)
        event.listen(engine, "checkout", self._attach)

    def _attach(self, connection: Any, *_: object) -> None:
        watched = self._watched.get(threading.get_ident())
        if watched is not None:
            watched.connection = connection

    @contextmanager
    def watching(self) -> Generator[None]:
        """Cut the connection that this thread uses where the block is not left in time."""
        key = threading.get_ident()
        seconds = self._seconds if self._patient else self._seconds * _IMPATIENT
        self._watched[key] = _Watched(self._clock() + seconds, self._patient)
        self._patient = True
        if self._thread is None:
            self._thread = _started(partial(self._run, self._stopped), "agentexec-watchdog")
        self._active.set()
        try:
            yield
        finally:
            self._watched.pop(key, None)

    def _run(self, stopped: threading.Event) -> None:
        while self._watched or not stopped.is_set():
            self._active.clear()  # before the look: a transaction that begins behind it sets it again
            if not self._watched and not stopped.is_set():
                self._active.wait()
            time.sleep(_INTERVAL)
            with guarded("cutting a database connection"):
                self._cut_overdue(self._clock())

    def _cut_overdue(self, now: float) -> None:
        for watched in list(self._watched.values()):
            if now >= watched.deadline and watched.connection is not None:
                connection, watched.connection = watched.connection, None
                self._patient = not watched.patient
                # In a long outage every try ends here: once a minute is enough.
                level = logging.WARNING if now - self._reported_at >= _REPORTED_EVERY else logging.DEBUG
                self._reported_at = now if level == logging.WARNING else self._reported_at
                _logger.log(level, "a database connection did not answer for %g s and is cut", self._seconds)
                cut(connection)


def _started(work: Callable[[], None], name: str) -> threading.Thread | None:
    """None where no thread can be started, such as late in the interpreter's life: it has to go without."""
    thread = threading.Thread(target=work, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError:
        return None
    return thread


def cut(connection: Any) -> None:
    """Shut a DBAPI connection's socket down, whatever its driver is doing; nothing where it has none (SQLite)."""
    with suppress(OSError, ValueError):
        number = _file_number(connection)
        if number is not None:
            with socket.socket(fileno=os.dup(number)) as copy:
                copy.shutdown(socket.SHUT_RDWR)


def _file_number(connection: Any) -> int | None:
    if hasattr(connection, "pgconn"):  # psycopg
        return int(connection.pgconn.socket)
    wire = getattr(connection, "_sock", None)  # PyMySQL
    return None if wire is None else int(wire.fileno())


class BoundedConnect:
    """Calls a pool's creator in a thread of its own, since a driver may wait for ever for the server's first word.

    A thread that is stuck ends with its socket; as many as `most` are left to it, then no further try is made.
    """

    def __init__(self, create: Callable[..., Any], seconds: float = DEADLINE, most: int = 8) -> None:
        self._create = create
        self._seconds = seconds
        self._stuck = threading.BoundedSemaphore(most)

    def connect(self, rec: Any) -> Any:
        """A new DBAPI connection. Raises TimeoutError where it took too long."""
        if not self._stuck.acquire(blocking=False):
            raise TimeoutError("too many connection attempts are stuck")
        attempt = _Attempt(partial(self._create, rec), self._stuck)
        if _started(attempt.run, "agentexec-connect") is None:
            attempt.run()
        return attempt.result(self._seconds)


class _Attempt:
    def __init__(self, create: Callable[..., Any], slot: threading.BoundedSemaphore) -> None:
        self._create = create
        self._slot = slot
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._given_up = False
        self._connection: Any = None
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._connection = self._create()
        except BaseException as exc:  # noqa: BLE001  # raised by the one who waits
            self._error = exc
        finally:
            self._slot.release()
        with self._lock:
            self._done.set()
            late = self._given_up
        if late and self._connection is not None:
            self._connection.close()

    def result(self, seconds: float) -> Any:
        self._done.wait(seconds)
        with self._lock:
            self._given_up = not self._done.is_set()
        if self._given_up:
            raise TimeoutError(f"the database did not answer within {seconds:g} s")
        if self._error is not None:
            raise self._error
        return self._connection
