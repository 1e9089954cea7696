"""A worker that Prometheus scrapes: `metrics_worker.py DATABASE PORT`. Does what each line asks, and answers."""

import random
import sys
import time
from contextlib import suppress
from threading import Thread

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import start_http_server

import agentexec_otel as ax

FAILURES = (None, None, TimeoutError(), ValueError("x"), ConnectionError())


def run(number: int, seed: int) -> None:
    """Runs that succeed, fail, are canceled or are tried twice."""
    chance = random.Random(seed)
    for _ in range(number):
        agent_id = ax.activity.create(chance.choice(["research", "write", "plan"]))
        if chance.random() < 0.1:
            ax.activity.cancel(agent_id)
            continue
        for _ in range(2):
            with suppress(Exception), ax.activity.run(agent_id) as running:
                running.update("Working.")
                running.record_usage(chance.randrange(1_000), chance.randrange(100), model="gpt-5")
                failure = chance.choice(FAILURES)
                if failure is not None:
                    raise failure
            if chance.random() < 0.8:
                break
            ax.activity.retry(agent_id)
    ax.flush()


hanging: list[ax.activity.ActivityRun] = []


def hang(number: int, seed: int) -> None:
    """Runs that do not end."""

    def forever() -> None:
        with ax.activity.run("hang") as running:
            running.update("Working.")
            hanging.append(running)
            time.sleep(1_000)

    for _ in range(number):
        Thread(target=forever, daemon=True).start()
    time.sleep(1)
    ax.flush()


def report(number: int, seed: int) -> None:
    """Logs of what hangs, stored or not."""
    for running in hanging:
        for _ in range(number):
            running.update("Still working.")


def wait(number: int, seed: int) -> None:
    """Runs that wait for an approval."""
    for _ in range(number):
        with ax.activity.run("refund") as running:
            running.waiting()
    ax.flush()


def cancel(number: int, seed: int) -> None:
    """Cancel some of what is queued, together."""
    for _ in range(number):
        ax.activity.create("late")
    ax.activity.cancel_pending(agent_type="late")
    ax.flush()


def reap(number: int, seed: int) -> None:
    """End what the lost workers ran."""
    deadline = time.monotonic() + 30
    reaped = 0
    while reaped < number and time.monotonic() < deadline:
        reaped += ax.activity.reap()
        time.sleep(0.2)
    ax.flush()


TASKS = {task.__name__: task for task in (run, hang, report, wait, cancel, reap)}

if __name__ == "__main__":
    start_http_server(int(sys.argv[2]), addr="127.0.0.1")
    ax.configure(sys.argv[1], meter_provider=MeterProvider([PrometheusMetricReader()]))
    for line in sys.stdin:
        name, count, seed = line.split()
        TASKS[name](int(count), int(seed))
        print("done", flush=True)
