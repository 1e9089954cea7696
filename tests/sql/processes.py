"""Other processes for the tests: real ones, started once, that run functions of `tests.sql.remote`."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, Final, ParamSpec, TypeVar

import pytest

from tests.sql import remote

_P = ParamSpec("_P")
_R = TypeVar("_R")


class Peer:
    """One other process. It runs one call after the other."""

    def __init__(self, barrier: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._executor = ProcessPoolExecutor(1, context, remote.begin, (barrier,))

    def submit(self, function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> Future[_R]:
        """Start a function of `tests.sql.remote` there."""
        return self._executor.submit(function, *args, **kwargs)

    def call(self, function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Run a function of `tests.sql.remote` there, and wait for what it returns."""
        return self.submit(function, *args, **kwargs).result(60)

    def close(self) -> None:
        """Let the process end."""
        self._executor.shutdown(wait=True, cancel_futures=True)


_PAIR: Final = pytest.StashKey[tuple[Peer, Peer]]()


def shared_peers(config: pytest.Config) -> tuple[Peer, Peer]:
    """Two peers that share the barrier of `remote.meet`: started by the first who asks, ended with the test run."""
    if _PAIR not in config.stash:
        barrier = multiprocessing.get_context("spawn").Barrier(2)
        pair = config.stash[_PAIR] = (Peer(barrier), Peer(barrier))
        for peer in pair:
            config.add_cleanup(peer.close)
        for ready in [peer.submit(remote.pid) for peer in pair]:
            ready.result(60)
    return config.stash[_PAIR]
