"""The pool of `task_app` in workers that are killed as they keep a result: TASKS_KILLED says "before" or "after"."""

import os
import signal
from typing import Any

from tests.e2e.task_app import pool

_keep = pool.broker.result_backend.set_result


async def _keep_and_die(task_id: str, result: Any) -> None:
    if os.environ["TASKS_KILLED"] == "after":
        await _keep(task_id, result)
    os.kill(os.getpid(), signal.SIGKILL)


pool.broker.result_backend.set_result = _keep_and_die  # type: ignore[method-assign]
