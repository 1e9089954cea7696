"""Environment variables that look like settings and are none."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

_PREFIX: Final = "AGENTEXEC_"
# What agentexec reads: a service that is moving from it may have both.
_OF_AGENTEXEC: Final = frozenset(
    ("DEBUG", "GRACEFUL_SHUTDOWN_TIMEOUT", "KAFKA_BOOTSTRAP_SERVERS", "KAFKA_DEFAULT_PARTITIONS", "KAFKA_LINGER_MS",
     "KAFKA_MAX_BATCH_SIZE", "KAFKA_REPLICATION_FACTOR", "KAFKA_RETENTION_MS", "KEY_PREFIX", "KV_BACKEND", "LOCK_TTL",
     "MAX_TASK_RETRIES", "NUM_WORKERS", "QUEUE_NAME", "QUEUE_PREFIX", "REDIS_POOL_SIZE", "REDIS_POOL_TIMEOUT",
     "REDIS_URL", "RESULT_TTL", "SCHEDULER_POLL_INTERVAL", "SCHEDULER_TIMEZONE", "STATE_BACKEND", "STREAM_BACKEND",
     "TASKS_PER_WORKER", "TASK_RETRY_BACKOFF_BASE", "WORKER_MODULE")
)  # fmt: skip
# Kubernetes sets variables such as AGENTEXEC_SERVICE_HOST for a service that is called agentexec.
_OF_OTHERS: Final = re.compile(r"TEST_.*|(.*_)?(SERVICE_HOST|SERVICE_PORT|PORT)(_.*)?")


def unknown_variables(environment: Mapping[str, str], settings: Iterable[str]) -> dict[str, str | None]:
    """Return the variables ``AGENTEXEC_*`` that are no setting, each with the nearest variable that is one, if any.

    Those of agentexec, of our tests and of Kubernetes are left out.
    """
    known = {name.upper() for name in settings}
    found = {name: name.upper().removeprefix(_PREFIX) for name in environment if name.upper().startswith(_PREFIX)}
    return {
        name: _nearest(rest, known)
        for name, rest in sorted(found.items())
        if rest not in known | _OF_AGENTEXEC and not _OF_OTHERS.fullmatch(rest)
    }


def _nearest(rest: str, known: Iterable[str]) -> str | None:
    from difflib import get_close_matches

    return next((_PREFIX + name for name in get_close_matches(rest, sorted(known), 1)), None)
