"""What a run waits for, as the column ``waiting`` has it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any, Final, cast

from agentexec_otel._model.fold import moment
from agentexec_otel._model.text import describe, is_a, plain_str, prepare_message, prepare_metadata, read_foreign

MOST_ITEMS: Final = 100
_WHAT_LIMIT: Final = 64
_EXAMPLE: Final = '{"tool": "pay", "call_id": "call_1"}'


def waiting_for(for_: object, items: object, since_ns: int, redact: Callable[[str], str] | None) -> dict[str, Any]:
    """Return ``{"for": …, "since": …, "items": […]}``, with texts cleaned and redacted.

    Args:
        items: Mappings of JSON values.
        since_ns: Nanoseconds since the epoch.

    Raises:
        ValueError: An argument is malformed, or there are more than 100 items or 16 KiB of them.
    """
    what = plain_str(for_)
    if what is None or not what.strip():
        raise ValueError(f'for_ is {describe(for_)}: name what the run waits for, such as "approval"')
    given = _listed(items)
    try:
        kept = prepare_metadata({"items": given}, redact)["items"]
    except ValueError as exc:
        raise ValueError(f"the items that a run waits for cannot be stored: {exc}") from None
    return {
        "for": prepare_message(what.strip(), _WHAT_LIMIT, redact),
        "since": moment(since_ns).isoformat(),
        "items": kept,
    }


def _listed(items: object) -> list[object]:
    if not is_a(items, Iterable) or is_a(items, str) or is_a(items, Mapping):
        raise ValueError(f"items is {describe(items)}: pass a list of dicts such as {_EXAMPLE}")
    listed = read_foreign("items", lambda: list(islice(cast(Iterable[object], items), MOST_ITEMS + 1)))
    for item in listed:
        if not is_a(item, Mapping):
            raise ValueError(f"items has {describe(item)}: pass dicts such as {_EXAMPLE}")
    if len(listed) > MOST_ITEMS:
        raise ValueError(f"there are more than {MOST_ITEMS} items: pass the first ones")
    return listed


def sentence(waiting: Mapping[str, Any]) -> str:
    """The log that says what is waited for."""
    tools = [str(item["tool"]) for item in waiting["items"] if item.get("tool")]
    return f"Waiting for {waiting['for']}{': ' if tools else ''}{', '.join(tools)}."
