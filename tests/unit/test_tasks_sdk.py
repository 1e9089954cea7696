"""What `agentexec_otel.tasks` uses of taskiq, its brokers and Celery beyond their documented API is there."""

import sys
from collections.abc import Callable
from dataclasses import fields
from inspect import signature
from typing import Any

import pytest
from celery import Celery, signals  # pyright: ignore[reportMissingTypeStubs]
from taskiq import AsyncBroker, InMemoryBroker, SimpleRetryMiddleware, SmartRetryMiddleware
from taskiq.cli.worker.args import WorkerArgs
from taskiq.cli.worker.process_manager import ProcessManager
from taskiq.cli.worker.run import start_listen
from taskiq.decor import AsyncTaskiqDecoratedTask
from taskiq.receiver import Receiver, params_parser
from taskiq.result_backends.dummy import DummyResultBackend
from taskiq_dependencies import ctx
from taskiq_nats import NATSObjectStoreResultBackend, PullBasedJetStreamBroker
from taskiq_redis import RedisStreamBroker

from agentexec_otel.tasks import _sdk

celery_signals: Any = signals
nats_results: Any = NATSObjectStoreResultBackend


async def task() -> None: ...
def celery_task() -> Any:
    app: Any = Celery("app", set_as_current=False, backend="cache+memory://")
    return app.task(name="task")(task)


@pytest.mark.parametrize(
    ("make", "attributes"),
    [
        (InMemoryBroker, "kick listen find_task _running_tasks executor receiver"),
        (lambda: InMemoryBroker().receiver, "broker executor validate_params propagate_exceptions callback"),
        (lambda: AsyncTaskiqDecoratedTask(InMemoryBroker(), "x", task, {}), "original_func"),
        (
            lambda: RedisStreamBroker("redis://host"),
            "connection_pool queue_name consumer_group_name consumer_name idle_timeout block",
        ),
        (lambda: PullBasedJetStreamBroker("nats://host"), "client"),
        (lambda: nats_results("nats://host"), "servers connect_options bucket_name"),
        (celery_task, "before_start ignore_result store_errors_even_if_ignored backend request"),
        (lambda: celery_task().backend, "mark_as_revoked"),
        (lambda: celery_task().request, "headers is_eager delivery_info retries id"),
        (lambda: celery_signals, "before_task_publish task_prerun task_postrun task_revoked task_unknown task_failure"),
        (lambda: celery_signals, "worker_init worker_process_shutdown"),
    ],
)
async def test_attribute_is_there(make: Callable[[], Any], attributes: str) -> None:
    """A release that renames one of these fails here, with its name."""
    owner = make()
    missing = [name for name in attributes.split() if not hasattr(owner, name)]
    assert missing == [], type(owner)


@pytest.mark.parametrize(
    ("method", "attributes"),
    [
        (PullBasedJetStreamBroker.listen, "consumer"),
        (PullBasedJetStreamBroker.startup, "client js"),
        (PullBasedJetStreamBroker.shutdown, "client"),
        (nats_results.startup, "nats_client nats_jetstream object_store"),
        (nats_results.set_result, "object_store"),
        (nats_results.get_result, "object_store"),
        (nats_results.shutdown, "nats_client"),
        (InMemoryBroker.kick, "find_task receiver _running_tasks"),
        (InMemoryBroker.shutdown, "executor"),
        (Receiver.callback, "broker formatter loads parse_labels pre_execute post_execute set_result"),
    ],
)
def test_attribute_is_used(method: Any, attributes: str) -> None:
    """What we set for a method, the method reads."""
    assert [name for name in attributes.split() if name not in method.__code__.co_names] == [], method


def test_worker_of_taskiq() -> None:
    """Its settings, its process manager and its loop have the arguments that we give them."""
    settings = {one.name for one in fields(WorkerArgs)}
    assert {
        "broker",
        "modules",
        "workers",
        "max_async_tasks",
        "max_threadpool_threads",
        "configure_logging",
        "receiver",
    } <= settings
    assert {"args", "worker_function"} <= set(signature(ProcessManager).parameters)
    assert callable(ProcessManager.start)
    assert list(signature(start_listen).parameters) == ["args"]


def test_logs_of_taskiq() -> None:
    """The names of its loggers, and its words for a task that has no result, are those that we know."""
    modules: list[Any] = [sys.modules[Receiver.__module__], params_parser, ctx]
    assert tuple(module.logger.name for module in modules) == _sdk.TASK_LOGGERS
    assert _sdk.SKIPPED in Receiver.run_task.__code__.co_consts


@pytest.mark.parametrize("middleware", [SimpleRetryMiddleware, SmartRetryMiddleware])
def test_label_of_retries(middleware: Any) -> None:
    """taskiq's retry middlewares count in the label that we add to the attempt."""
    constants = middleware.on_error.__code__.co_consts
    assert any(_sdk.RETRIES in one if isinstance(one, tuple) else one == _sdk.RETRIES for one in constants)


def test_broker_without_results() -> None:
    """A broker that was given no result backend has taskiq's placeholder."""

    class Plain(AsyncBroker):
        kick = listen = None  # type: ignore[assignment]

    broker: AsyncBroker = Plain()
    assert isinstance(broker.result_backend, DummyResultBackend)
    assert _sdk.keeps_no_results(broker)
    assert not _sdk.keeps_no_results(InMemoryBroker())
