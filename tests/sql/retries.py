"""What `test_attempts` runs in other processes, beside `tests.sql.remote`."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from uuid import UUID

import agentexec_otel as ax
from tests.sql import remote


def retry_at_once(agent_id: UUID, threads: int) -> list[int | None]:
    """Call `retry()` in several threads at the same moment. Return the new attempt of each call, None if refused."""
    together = Barrier(threads)

    def one(_: int) -> int | None:
        together.wait(30)
        try:
            return ax.activity.retry(agent_id)
        except ax.ActivityStateError:
            return None

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(one, range(threads)))


def retry_each(agent_ids: Sequence[UUID], threads: int) -> list[list[int | None]]:
    """Do the same for one activity after the other, in step with the other peer."""
    answers: list[list[int | None]] = []
    for agent_id in agent_ids:
        remote.meet()
        answers.append(retry_at_once(agent_id, threads))
    return answers


def retry_many_together() -> list[UUID]:
    """Call `retry_many()` in step with the other peer. Return what this one has re-opened."""
    remote.meet()
    return list(ax.activity.retry_many())
