"""A function as a task: its context is validated before the call, and its result is converted to JSON after it."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isfinite
from typing import Any, Final, get_type_hints
from uuid import UUID

from pydantic import TypeAdapter, ValidationError

from agentexec_otel._errors import TaskResultError

TaskFunction = Callable[..., Any]

_PARAMETERS = ("agent_id", "context")

_AS_DUMPED: Final[dict[str, Any]] = {"strict": False, "by_alias": False, "by_name": True}
"""Validate a dumped model by field names, and not strictly: JSON has no times, sets or tuples."""


def _lost_numbers(dumped: Any, arriving: Any, at: tuple[str | int, ...] = ()) -> Iterator[Any]:
    """Each infinity or NaN that JSON turns into null, as pydantic's line errors. Models may dump them as text."""
    value: Any = dumped
    if isinstance(dumped, dict | list):
        for step in value if isinstance(dumped, dict) else range(len(value)):
            yield from _lost_numbers(value[step], arriving[step], (*at, step))
    elif isinstance(dumped, float) and not isfinite(dumped) and not isinstance(arriving, str):
        yield {"type": "finite_number", "loc": at, "input": dumped}


@dataclass(frozen=True, slots=True)
class Definition:
    """A registered task.

    Attributes:
        context: Type of the function's second parameter.
        result: The function's return type; anything if it has no annotation.
        typed: Whether the function has a return annotation. If so, computed fields are not sent.
    """

    name: str
    function: TaskFunction
    is_async: bool
    context: TypeAdapter[Any]
    result: TypeAdapter[Any]
    typed: bool

    @classmethod
    def of(cls, name: str, function: TaskFunction, context_type: Any = None, result_type: Any = None) -> Definition:
        """Read a function's signature.

        Args:
            context_type, result_type: Used instead of the annotations.

        Raises:
            TypeError: The function does not take ``(agent_id, context)``, or the context has no type.
        """
        target = getattr(function, "__qualname__", repr(function))
        parameters = tuple(inspect.signature(function).parameters)
        if parameters != _PARAMETERS:
            raise TypeError(
                f"the task {name!r} takes ({', '.join(parameters)}): define"
                f" {target}(agent_id: UUID, context: YourModel)"
            )
        given = {"context": context_type, "return": result_type}
        hints = get_type_hints(function, include_extras=True)
        hints |= {name: type_ for name, type_ in given.items() if type_ is not None}
        if "context" not in hints:
            raise TypeError(
                f"the context of the task {name!r} has no type: write {target}(agent_id, context: YourModel)"
            )
        is_async = inspect.iscoroutinefunction(function)
        context, result = TypeAdapter[Any](hints["context"]), TypeAdapter[Any](hints.get("return", Any))
        return cls(name, function, is_async, context, result, "return" in hints)

    def pack(self, context: object) -> Any:
        """Validate the context, and return it as plain JSON values that the worker's validation accepts.

        Raises:
            pydantic.ValidationError: The context does not fit the task's type.
        """
        checked = self.context.validate_python(context)
        dumped = self.context.dump_python(checked, mode="json", by_alias=False, round_trip=True, warnings="none")
        try:
            plain = json.loads(json.dumps(dumped, allow_nan=False))  # As it will arrive.
        except ValueError:
            plain = json.loads(self.context.dump_json(checked, by_alias=False, round_trip=True, warnings="none"))
            lost = list(_lost_numbers(dumped, plain))
            if lost:
                raise ValidationError.from_exception_data(self.name, lost) from None
        self.context.validate_python(plain, **_AS_DUMPED)  # A model may be built or changed without validation.
        return plain

    def unpack(self, plain: object) -> Any:
        """Validate a context that has arrived. Raises `pydantic.ValidationError`."""
        return self.context.validate_python(plain, **_AS_DUMPED)

    def pack_result(self, value: object, limit: int) -> Any:
        """Return the function's result as plain JSON values.

        Args:
            limit: Largest size, bytes of JSON.

        Raises:
            TaskResultError: The result is too large, or cannot be expressed in JSON.
        """
        try:
            plain = self.result.dump_python(
                value, mode="json", by_alias=False if self.typed else None, round_trip=self.typed, warnings="none"
            )
            size = len(json.dumps(plain, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace"))
        except (ValueError, TypeError, RecursionError) as exc:  # Of pydantic, and of json.
            raise TaskResultError(
                f"the result of the task {self.name!r} cannot be expressed in JSON ({type(exc).__name__}): return a"
                " pydantic model, or plain values"
            ) from exc
        if size > limit:
            raise TaskResultError(
                f"the result of the task {self.name!r} has {size:,} bytes, and AGENTEXEC_RESULT_LIMIT is {limit:,}:"
                " store it elsewhere, and return where it is"
            )
        return plain

    def unpack_result(self, plain: object) -> Any:
        """Validate a result that has arrived.

        Raises:
            TaskResultError: The result does not fit the declared type; the worker may run another version.
        """
        try:
            return self.result.validate_python(plain, **_AS_DUMPED)
        except ValidationError as exc:
            raise TaskResultError(
                f"what the task {self.name!r} has returned is not what it declares ({exc.error_count()} errors): do all"
                " workers run this version?"
            ) from exc

    async def call(self, agent_id: UUID, context: object) -> Any:
        """Call the function, in a thread if it is not asynchronous."""
        if self.is_async:
            return await self.function(agent_id=agent_id, context=context)
        return await asyncio.to_thread(call_in_thread, self.function, agent_id=agent_id, context=context)


def call_in_thread(function: TaskFunction, *args: Any, **kwargs: Any) -> Any:
    """Call the function. asyncio cannot pass a StopIteration out of a thread: the task would never end."""
    try:
        return function(*args, **kwargs)
    except StopIteration as exc:
        raise RuntimeError("the task has raised StopIteration") from exc
