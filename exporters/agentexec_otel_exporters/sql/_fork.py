"""No fork while SQLite is in use by us.

SQLite keeps its locks on a file per process, in memory that a forked child inherits: a child that opens the same file
believes to hold what its parent held, and its mutexes may be held by a thread that does not exist in the child. So the
writer leaves SQLite before a fork, and opens the file again with its next transaction.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from weakref import WeakSet

from sqlalchemy import Engine

_PATIENCE = 0.25
"""Seconds. Who is inside for longer waits for another process's lock, asleep."""


class ForkGate:
    """Lets forks wait for the transactions of one engine, and closes its connections before them.

    Does nothing where the engine is not SQLite's, or not ours.
    """

    def __init__(self, engine: Engine, *, owned: bool) -> None:
        self._engine = engine
        self._inside = threading.Lock()
        self._forking: set[int] = set()
        self._active = owned and engine.dialect.name == "sqlite"
        if self._active:
            _gates.add(self)

    @contextmanager
    def using(self) -> Generator[None]:
        """A transaction, or a look into the database."""
        if not self._active:
            yield
            return
        with self._inside:
            yield

    def close(self) -> None:
        """Before a fork, in the forking thread."""
        if self._inside.acquire(timeout=_PATIENCE):
            self._forking.add(threading.get_ident())
            self._engine.dispose()

    def open(self) -> None:
        """After the fork, in the same thread of the parent."""
        if threading.get_ident() in self._forking:
            self._forking.discard(threading.get_ident())
            self._inside.release()

    def renew(self) -> None:
        """In the child."""
        self._inside = threading.Lock()
        self._forking = set()


_gates: WeakSet[ForkGate] = WeakSet()


def _close() -> None:
    for gate in list(_gates):
        gate.close()


def _open() -> None:
    for gate in list(_gates):
        gate.open()


def _renew() -> None:
    for gate in list(_gates):
        gate.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_close, after_in_parent=_open, after_in_child=_renew)
