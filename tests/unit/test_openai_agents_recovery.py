"""What an agent is shown when it is asked to wrap up: a conversation that every provider accepts."""

from typing import Any, cast

import pytest
from agents import TResponseInputItem

from agentexec_otel.instrumentation.openai_agents._recovery import answered

Item = dict[str, Any]

USER: Item = {"role": "user", "content": "go"}
THOUGHT: Item = {"type": "reasoning", "id": "thought", "summary": []}
MESSAGE: Item = {"type": "message", "role": "assistant", "content": []}
HOSTED: Item = {"type": "web_search_call", "id": "search", "status": "completed"}


def call(number: int, kind: str = "function_call") -> Item:
    return {"type": kind, "call_id": f"call_{number}", "name": "look_up", "arguments": "{}"}


def output(number: int, kind: str = "function_call_output") -> Item:
    return {"type": kind, "call_id": f"call_{number}", "output": "facts"}


SEEN = output(2, "computer_call_output")


@pytest.mark.parametrize(
    ("items", "kept"),
    [
        ([USER, call(1), output(1)], [USER, call(1), output(1)]),
        ([USER, call(1), output(1), call(2)], [USER, call(1), output(1)]),
        ([USER, call(1), call(2), output(2)], [USER, call(2), output(2)]),
        ([USER, THOUGHT, call(1)], [USER]),
        ([USER, THOUGHT, THOUGHT, call(1), call(2)], [USER]),
        ([USER, THOUGHT, call(1), call(2), output(2)], [USER, THOUGHT, call(2), output(2)]),
        ([USER, THOUGHT, MESSAGE, call(1)], [USER, THOUGHT, MESSAGE]),
        ([USER, THOUGHT, call(1), output(1)], [USER, THOUGHT, call(1), output(1)]),
        ([USER, HOSTED, MESSAGE], [USER, HOSTED, MESSAGE]),
        ([USER, call(1, "shell_call"), call(2, "computer_call"), SEEN], [USER, call(2, "computer_call"), SEEN]),
        ([], []),
    ],
)
def test_calls_without_an_output_are_left_out(items: list[Item], kept: list[Item]) -> None:
    """With the reasoning that led to them and to nothing else; everything that has its answer stays, in order."""
    assert answered(cast("list[TResponseInputItem]", items)) == kept
