"""What the agents of live_activities.py do: eight types of agents, and a plan for each run of one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Final

import agentexec_otel as ax
from agentexec_otel.reasons import Reason


class RateLimitError(Exception):
    """The provider of the model asks for patience."""


class ModelOverloadedError(Exception):
    """The provider of the model does not answer."""


class ToolError(Exception):
    """A tool has failed."""


class TurnLimitError(Exception):
    """The agent has used up its turns."""


class OutputRefusedError(Exception):
    """A guardrail refuses what the agent wants to send."""


FAILURES: Final[tuple[tuple[int, type[Exception], Reason, str], ...]] = (
    (30, RateLimitError, "rate_limit", "429: 200,000 tokens a minute of {model} are used up; try again in 12 s"),
    (22, ToolError, "tool", "search_crm: 502 Bad Gateway from crm.internal"),
    (16, TimeoutError, "timeout", "no answer from {model} within 120 s"),
    (12, TurnLimitError, "max_turns", "no answer within 20 turns"),
    (8, ModelOverloadedError, "model_unavailable", "503: {model} is overloaded"),
    (7, OutputRefusedError, "guardrail_output", "the reply to {customer} contains a card number"),
    (5, ConnectionError, "connection", "connection to db.internal:5432 was closed"),
)
"""How often it happens, the exception, its reason and its text."""

for _weight, _exception, _reason, _text in FAILURES:
    ax.reasons.register(_exception, _reason)

TENANTS: Final = ("acme", "globex", "initech", "umbrella")
CUSTOMERS: Final = (
    "Northwind Traders", "Contoso", "Fabrikam", "Tailspin Toys", "Adventure Works", "Wide World Importers",
    "Alpine Ski House", "Blue Yonder", "Coho Winery", "Lucerne Publishing", "Müller & Söhne", "Proseware",
)  # fmt: skip
MODELS: Final = ("gpt-5", "gpt-5-mini", "claude-sonnet-4-5", "gemini-2.5-pro")


@dataclass(frozen=True)
class AgentType:
    """A type of agent.

    Attributes:
        seconds: The median duration of a run.
        weight: How often it runs, relative to the others.
        messages: What it reports. `{i} of {n}` makes a message for each of `n` items.
        items: The least and the greatest `n`.
        tokens: Median of the input tokens.
        approval: The tool that a person has to approve in some runs.
        has_percentage: Whether it knows how far it is.
    """

    name: str
    seconds: float
    weight: int
    messages: tuple[str, ...]
    items: tuple[int, int] = (3, 6)
    tokens: int = 4_000
    approval: str | None = None
    has_percentage: bool = True


AGENT_TYPES: Final = {
    each.name: each
    for each in (
        AgentType(
            "triage_ticket", 7, 26,
            ("Reading ticket {number} of {customer}", "Looking for similar tickets", "Assigning it to a team"),
            tokens=1_800,
        ),
        AgentType(
            "answer_email", 18, 22,
            ("Reading the mails of {customer}", "Looking up order {number}", "Drafting a reply", "Checking its tone"),
            approval="send_email", has_percentage=False,
        ),
        AgentType(
            "extract_invoice", 24, 18,
            ("Reading page {i} of {n}", "Matching the lines with purchase order {number}", "Posting to the ledger"),
            items=(1, 4), approval="post_payment",
        ),
        AgentType(
            "review_pull_request", 80, 12,
            ("Checking out #{number}", "Reviewing file {i} of {n}", "Running the tests", "Writing the review"),
            items=(3, 11), tokens=38_000,
        ),
        AgentType(
            "research_company", 120, 12,
            (
                "Searching for news about {customer}", "Reading source {i} of {n}",
                "Comparing {customer} with three competitors", "Checking the figures", "Writing the summary",
            ),
            items=(4, 12), tokens=52_000,
        ),
        AgentType(
            "summarize_calls", 160, 6,
            ("Loading recordings", "Transcribing call {i} of {n}", "Finding action items", "Writing the summary"),
            items=(3, 9), tokens=24_000,
        ),
        AgentType(
            "reconcile_ledger", 300, 4,
            ("Loading {number} bookings", "Matching batch {i} of {n}", "Explaining the rest", "Preparing corrections"),
            items=(8, 20), tokens=71_000, approval="post_corrections",
        ),
        AgentType(
            "index_knowledge_base", 700, 2,
            ("Listing changed documents", "Embedding batch {i} of {n}", "Swapping the index"),
            items=(40, 90), tokens=240_000,
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One log, and the seconds until the next one. With a tool, the run waits for its approval during these."""

    message: str
    percentage: int | None
    seconds: float
    tool: str | None = None


@dataclass(frozen=True)
class Plan:
    """What happens in one attempt.

    Attributes:
        failure: The exception that it raises after its steps, and the reason of that exception.
        usage: For `run.record_usage()`.
    """

    steps: tuple[Step, ...]
    failure: tuple[Exception, Reason] | None
    usage: dict[str, Any]


def metadata(random: Random) -> dict[str, Any]:
    """The metadata of a new activity."""
    return {
        "tenant": random.choices(TENANTS, (8, 5, 3, 2))[0],
        "customer": random.choice(CUSTOMERS),
        "priority": random.choices(("low", "normal", "high"), (2, 6, 2))[0],
    }


def agent_type(random: Random) -> AgentType:
    """A type, as often as it occurs."""
    return random.choices([*AGENT_TYPES.values()], [each.weight for each in AGENT_TYPES.values()])[0]


def plan(random: Random, kind: AgentType, customer: str, *, failing: float = 0.1, slow: float = 0.03) -> Plan:
    """Plan an attempt.

    Args:
        failing: The share of attempts that fail.
        slow: The share that takes several times as long as usual.
    """
    model = random.choice(MODELS)
    seconds = kind.seconds * random.lognormvariate(0, 0.3) * (random.uniform(4, 7) if random.random() < slow else 1)
    texts = [*_texts(random, kind, customer)]
    pauses = [random.uniform(0.4, 1.6) for _ in texts]
    done, steps = 0.0, list[Step]()
    for text, pause in zip(texts, pauses, strict=True):
        percentage = int(100 * done / sum(pauses)) if kind.has_percentage else None
        steps.append(Step(text, percentage, seconds * pause / sum(pauses)))
        done += pause
    failure = _failure(random, customer, model) if random.random() < failing else None
    if failure is not None:
        steps = steps[: random.randint(1, len(steps))]
    elif kind.approval is not None and random.random() < 0.25:
        steps[-1] = replace(steps[-1], seconds=random.uniform(20, 90), tool=kind.approval)
    return Plan(tuple(steps), failure, _usage(random, kind, model, len(steps)))


def _texts(random: Random, kind: AgentType, customer: str) -> Iterator[str]:
    number, items = random.randint(1_000, 9_999), random.randint(*kind.items)
    for message in kind.messages:
        for item in range(1, items + 1) if "{i}" in message else (1,):
            yield message.format(i=item, n=items, number=number, customer=customer)


def _failure(random: Random, customer: str, model: str) -> tuple[Exception, Reason]:
    _, exception, reason, text = random.choices(FAILURES, [each[0] for each in FAILURES])[0]
    return exception(text.format(customer=customer, model=model)), reason


def _usage(random: Random, kind: AgentType, model: str, requests: int) -> dict[str, Any]:
    tokens = int(kind.tokens * random.lognormvariate(0, 0.4))
    return {
        "model": model,
        "input_tokens": tokens,
        "output_tokens": int(tokens * random.uniform(0.04, 0.2)),
        "cached_input_tokens": int(tokens * random.uniform(0, 0.7)),
        "requests": requests,
    }
