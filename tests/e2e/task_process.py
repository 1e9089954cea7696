"""A client of a pool, or the command that starts its workers, in a fork of `tests.chaos.zygote`."""

import asyncio
import sys
from typing import Any

PRELOADED = (
    "agentexec_otel.cli._app",
    "agentexec_otel.tasks.taskiq.nats",
    "agentexec_otel.tasks.taskiq.rabbitmq",
    "agentexec_otel.tasks.taskiq.redis",
    "agentexec_otel.tasks.worker",
    "taskiq.cli.worker.run",
)

CLIENT = """
import asyncio
import agentexec_otel as ax
from opentelemetry import trace
from tests.e2e.task_app import Job, pool, provider

async def main():
    async with pool:
        {body}
"""


def start(what: str, *arguments: str) -> None:
    """Be the command with these arguments, or a client that runs these statements within `async with pool`."""
    if what == "command":
        from agentexec_otel.cli import main

        sys.argv = ["agentexec-otel", *arguments]
        main()
        return
    names: dict[str, Any] = {}
    exec(CLIENT.format(body=arguments[0].strip().replace("\n", "\n        ")), names)
    asyncio.run(names["main"]())
