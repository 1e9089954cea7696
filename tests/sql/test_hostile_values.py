"""Objects whose methods raise, given to the public calls: one clear error, or text that was cleaned."""

import asyncio
from collections import UserDict
from collections.abc import Callable
from datetime import datetime
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel
from sqlalchemy.orm import Session

import agentexec_otel as ax
from tests.databases import Database

pytestmark = [pytest.mark.one_python, pytest.mark.parametrize("database", ["sqlite"], indirect=True)]

METHODS = (
    "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__hash__", "__repr__", "__str__", "__bool__",
    "__format__", "__len__", "__iter__", "__contains__", "__getitem__", "__int__", "__float__", "__index__", "__neg__",
    "__getattr__", "__sub__", "__rsub__", "__add__", "__radd__", "__mul__", "__rmul__",
    "strip", "casefold", "lower", "upper", "encode", "items", "keys", "values", "get", "isoformat", "utcoffset",
    "is_integer", "__instancecheck__",
)  # fmt: skip


def fails(*_: object, **__: object) -> Any:
    raise RuntimeError("hostile")


def hostile(base: type[Any], *arguments: object) -> object:
    """A value of a subclass of which each method raises."""
    body: dict[str, Any] = dict.fromkeys(METHODS, fails)
    if base is object:
        body["__class__"] = property(fails)
    return type("Hostile", (base,), body)(*arguments)


VALUES: dict[str, Callable[[], Any]] = {
    "object": lambda: hostile(object),
    "str": lambda: hostile(str, "text"),
    "bytes": lambda: hostile(bytes, b"text"),
    "int": lambda: hostile(int, 7),
    "float": lambda: hostile(float, 7.5),
    "dict": lambda: hostile(dict, {"tenant": "acme"}),
    "mapping": lambda: hostile(UserDict),
    "list": lambda: hostile(list, [1]),
    "tuple": lambda: hostile(tuple, (1,)),
    "uuid": lambda: hostile(UUID, "12345678123456781234567812345678"),
    "datetime": lambda: hostile(datetime, 2026, 1, 1),
}


class Call:
    """The public calls, each with the value in one place."""

    def __init__(self, database: Database, pool: ax.Pool) -> None:
        self._pool = pool
        self._engine = database.engine
        self._agent_id = ax.activity.create("task")

    def _query(self, name: str, *args: Any, **kwargs: Any) -> None:
        with Session(self._engine) as session:
            getattr(ax.activity, name)(session, *args, **kwargs)

    def _run(self, *args: Any, **kwargs: Any) -> None:
        with ax.activity.run(*args, **kwargs):
            pass

    def _usage(self, value: Any) -> None:
        with ax.activity.run("task") as run:
            run.record_usage(value, value, value, model=value)

    def _waiting(self, *args: Any, **kwargs: Any) -> None:
        with ax.activity.run("task") as run:
            run.waiting(*args, **kwargs)

    def _error(self, value: Any) -> None:
        try:
            raise ValueError(value)
        except ValueError:
            ax.activity.error(ax.activity.create("task"))

    def _report(self, value: Any) -> None:
        with ax.activity.run("task") as run:
            run.update(value, value)

    def all(self) -> dict[str, Callable[[Any], object]]:
        """By name."""
        known, activity = self._agent_id, ax.activity
        return {
            "create(task_name)": activity.create,
            "create(message)": lambda v: activity.create("task", v),
            "create(agent_id)": lambda v: activity.create("task", agent_id=v),
            "create(metadata)": lambda v: activity.create("task", metadata=v),
            "create(metadata values)": lambda v: activity.create("task", metadata={"a": v, "b": [v, {"c": v}]}),
            "create(metadata keys)": lambda v: activity.create("task", metadata=Keyed(v)),
            "update(agent_id)": lambda v: activity.update(v, "text"),
            "update(message)": lambda v: activity.update(known, v),
            "update(percentage)": lambda v: activity.update(known, "text", v),
            "update(status)": lambda v: activity.update(known, "text", status=v),
            "complete(agent_id)": activity.complete,
            "complete(message)": lambda v: activity.complete(activity.create("task"), v),
            "complete(percentage)": lambda v: activity.complete(activity.create("task"), percentage=v),
            "error(message)": lambda v: activity.error(activity.create("task"), v),
            "error of an exception": self._error,
            "cancel(agent_id)": activity.cancel,
            "cancel(message)": lambda v: activity.cancel(activity.create("task"), v),
            "retry(agent_id)": activity.retry,
            "cancel_pending(agent_type)": lambda v: activity.cancel_pending(agent_type=v),
            "cancel_pending(worker_id)": lambda v: activity.cancel_pending(worker_id=v),
            "cancel_pending(older_than)": lambda v: activity.cancel_pending(older_than=v),
            "cancel_pending(metadata_filter)": lambda v: activity.cancel_pending(metadata_filter=v),
            "run(task_name)": self._run,
            "run(message)": lambda v: self._run("task", v),
            "run(agent_id)": lambda v: self._run("task", agent_id=v),
            "run(metadata)": lambda v: self._run("task", metadata=v),
            "run.update": self._report,
            "run.record_usage": self._usage,
            "run.waiting(for_)": self._waiting,
            "run.waiting(items)": lambda v: self._waiting(items=v),
            "run.waiting(an item)": lambda v: self._waiting(items=[v]),
            "run.waiting(a tool)": lambda v: self._waiting(items=[{"tool": v, "call_id": v}]),
            "run.waiting(message)": lambda v: self._waiting(message=v),
            "detail(agent_id)": lambda v: self._query("detail", v),
            "detail(metadata_filter)": lambda v: self._query("detail", known, v),
            "list(page)": lambda v: self._query("list", v),
            "list(page_size)": lambda v: self._query("list", 1, v),
            "list(status)": lambda v: self._query("list", status=v),
            "list(statuses)": lambda v: self._query("list", status=[v]),
            "list(agent_type)": lambda v: self._query("list", agent_type=v),
            "list(metadata_filter)": lambda v: self._query("list", metadata_filter=v),
            "list(metadata_filter value)": lambda v: self._query("list", metadata_filter={"tenant": v}),
            "list(metadata_filter key)": lambda v: self._query("list", metadata_filter=Keyed(v)),
            "list(waiting)": lambda v: self._query("list", waiting=v),
            "list(total)": lambda v: self._query("list", total=v),
            "list(created_after)": lambda v: self._query("list", created_after=v),
            "list(created_before)": lambda v: self._query("list", created_before=v),
            "logs(agent_id)": lambda v: self._query("logs", v),
            "logs(after_seq)": lambda v: self._query("logs", known, v),
            "logs(limit)": lambda v: self._query("logs", known, 0, v),
            "create(session)": lambda v: activity.create("task", session=v),
            "update(session)": lambda v: activity.update(known, "text", session=v),
            "count_active(session)": activity.count_active,
            "aio.count_active(session)": lambda v: asyncio.run(activity.aio.count_active(v)),
            "aio.create(task_name)": lambda v: asyncio.run(activity.aio.create(v)),
            "aio.update(agent_id)": lambda v: asyncio.run(activity.aio.update(v, "text")),
            "enqueue(task_name)": lambda v: asyncio.run(ax.enqueue(v, {"text": "x"})),
            "Pool.enqueue(task_name)": lambda v: asyncio.run(self._pool.enqueue(v, {"text": "x"})),
        }


class Keyed(UserDict[Any, Any]):
    """A mapping with one key, which needs no hash."""

    def __init__(self, key: Any) -> None:
        super().__init__()
        self.key = key

    def __len__(self) -> int:
        return 1

    def items(self) -> Any:
        """The key and its value."""
        return [(self.key, "acme")]


class Context(BaseModel):
    text: str


@pytest.mark.parametrize("kind", VALUES)
def test_values_whose_methods_raise(database: Database, kind: str) -> None:
    """Whatever method of an argument raises: the call raises one ValueError of its own, or cleans the value."""
    ax.configure(database.url)
    pool = ax.Pool()

    @pool.task("hostile_task")
    async def hostile_task(agent_id: UUID, context: Context) -> None: ...

    wrong: list[str] = []
    for name, call in Call(database, pool).all().items():
        try:
            call(VALUES[kind]())
        except (ValueError, LookupError, TypeError) as exc:
            is_shown = exc.__context__ is not None and not exc.__suppress_context__
            is_allowed = not isinstance(exc, TypeError) or "session must be" in str(exc)
            if is_shown or not is_allowed:
                wrong.append(f"{name}: {exc!r} after {exc.__context__!r}")
        except RuntimeError as exc:
            wrong.append(f"{name}: {exc!r}")
    assert not wrong, "\n" + "\n".join(wrong)
    assert ax.flush()
    assert ax.health()["ok"]
