"""The input and options of the run that wraps up after the turn limit. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar, cast

from agents import ItemHelpers, RunErrorDetails, RunItem, RunResultStreaming, TResponseInputItem
from agents.run import RunOptions

TContext = TypeVar("TContext")

_Item = Mapping[str, object]

WRAP_UP: Final = """\
You have used all the turns that were planned for this task. Do not begin anything new. Give your final answer \
now, from what you already know: say what you found, and name plainly what remains unfinished or uncertain.
"""


Unfinished = RunErrorDetails | RunResultStreaming
"""What a run that reached its turn limit has left."""


def wrap_up_input(left: Unfinished, options: RunOptions[Any], prompt: str) -> list[TResponseInputItem]:
    """Input of the run that wraps up: what the model does not see otherwise, then the prompt.

    A session replays itself, and so does a conversation kept by the server, which lacks only the outputs of the tools
    that were called last.
    """
    ask = cast(TResponseInputItem, {"role": "user", "content": prompt})
    if options.get("session") is not None:
        return [ask]
    if server_keeps_conversation(options):
        return [*unsent_outputs(left), ask]
    return [*answered([*ItemHelpers.input_to_new_input_list(left.input), *as_input(left.new_items)]), ask]


def wrap_up_options(left: Unfinished, options: RunOptions[TContext], turns: int) -> RunOptions[TContext]:
    """The caller's options for `turns` more turns of the same conversation."""
    more = options.copy()
    more["max_turns"] = turns
    # The wrapper, not only the context in it: it holds the usage and the approvals of the first run.
    more["context"] = cast(TContext, left.context_wrapper)
    if options.get("conversation_id") is None and server_keeps_conversation(options) and left.raw_responses:
        more["previous_response_id"] = left.raw_responses[-1].response_id
    return more


def server_keeps_conversation(options: RunOptions[Any]) -> bool:
    """Whether the provider stores the conversation, so that only new items may be sent."""
    return bool(
        options.get("conversation_id")
        or options.get("previous_response_id")
        or options.get("auto_previous_response_id")
    )


def as_input(items: Sequence[RunItem]) -> list[TResponseInputItem]:
    """What a run has produced, as input of the next. Models do not see requests for approval."""
    return [item.to_input_item() for item in items if item.type != "tool_approval_item"]


def answered(items: Sequence[TResponseInputItem]) -> list[TResponseInputItem]:
    """The conversation without calls that have no output, and the reasoning that led to them: providers reject both."""
    outputs = {_call_id(item) for item in items if _type(item).endswith("_output")}
    kept: list[TResponseInputItem] = []
    orphaned = False
    for item in reversed(items):
        if _is_call(item) and _call_id(item) not in outputs:
            orphaned = not (kept and _is_call(kept[-1]))
        elif not (orphaned and _type(item) == "reasoning"):
            orphaned = False
            kept.append(item)
    return kept[::-1]


def unsent_outputs(left: Unfinished) -> list[TResponseInputItem]:
    """Outputs of the calls in the last response, which the next turn would have sent."""
    last = left.raw_responses[-1].output if left.raw_responses else []
    called = {getattr(item, "call_id", None) for item in last} - {None}
    return [item for item in as_input(left.new_items) if _type(item).endswith("_output") and _call_id(item) in called]


def _type(item: TResponseInputItem) -> str:
    return str(cast(_Item, item).get("type", ""))


def _is_call(item: TResponseInputItem) -> bool:
    return _type(item).endswith("_call") and _call_id(item) is not None


def _call_id(item: TResponseInputItem) -> object:
    return cast(_Item, item).get("call_id")
