"""The table: events, the answer to each, and what the activity is then."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from agentexec_otel._model.event import Opening, Outcome, SpanRef, Status
from agentexec_otel._model.fold import moment

QUEUED, RUNNING, COMPLETE, ERROR, CANCELED = Status

_NOW_NS = time.time_ns()

TOKENS = ("input_tokens", "output_tokens", "requests", "cached_input_tokens", "reasoning_tokens")
WAITING = {"for": "approval", "since": "2026-11-30T10:00:00+00:00", "items": [{"tool": "pay", "call_id": "call_1"}]}

SPAN = SpanRef("a" * 32, "b" * 16, sampled=True)
OTHER_SPAN = SpanRef("c" * 32, "d" * 16, sampled=False)
PREVIOUS = f"00-{SPAN.trace_id}-{SPAN.span_id}-01"


@dataclass(frozen=True)
class Step:
    """An event, or the number of an earlier step whose event is delivered again or withdrawn."""

    status: Status = RUNNING
    values: dict[str, Any] = field(default_factory=dict[str, Any])
    again: int | None = None
    withdrawn: int | None = None
    replay: bool = False


def create(agent_type: str = "task", **values: Any) -> Step:
    return Step(QUEUED, {"opening": Opening(agent_type, {"tenant": "acme"}, {"traceparent": "x"}), **values})


def report(percentage: int | None = None, *, replay: bool = False, **values: Any) -> Step:
    return Step(RUNNING, {"percentage": percentage, **values}, replay=replay)


def end(status: Status, reason: str | None = None, **values: Any) -> Step:
    return Step(status, {"outcome": Outcome("Error" if status is ERROR else None, reason), **values})


def spent(status: Status, *tokens: int | None, model: str | None = None, **values: Any) -> Step:
    counted: dict[str, Any] = dict(zip(TOKENS, tokens, strict=False))
    return Step(status, {"outcome": Outcome(model=model, **counted), **values})


def wait(worker_id: str | None = "one", *, replay: bool = False, **values: Any) -> Step:
    """What `run.waiting` emits."""
    return report(worker_id=worker_id, waiting=WAITING, replay=replay, **values)


def queue(**values: Any) -> Step:
    return Step(QUEUED, values)


def retry(**values: Any) -> Step:
    """What `ax.activity.retry` emits."""
    return queue(reopens=True, claims=True, **values)


def claim(attempt: int | None = None, **values: Any) -> Step:
    """What a task emits as it starts an attempt."""
    return report(attempt=attempt, claims=True, **values)


def announce(attempt: int, **values: Any) -> Step:
    """What a task emits before its next attempt."""
    return queue(attempt=attempt, claims=True, **values)


def again(step: int) -> Step:
    return Step(again=step)


def withdraw(step: int) -> Step:
    return Step(withdrawn=step)


def moment_of(place: int) -> datetime:
    """When the event of a step occurs."""
    return moment(occurred_at_ns(place))


def occurred_at_ns(place: int) -> int:
    return _NOW_NS + place * 1_000


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes:
        answers: For each step "STATUS attempt", with "late" or "duplicate", or the name of the refusal.
        state: The fields to find at the end, None for the others; no dict if there is no activity.
    """

    name: str
    steps: Sequence[Step]
    answers: Sequence[str]
    state: dict[str, Any] | None


def case(name: str, steps: Sequence[Step], answers: str, state: dict[str, Any] | None) -> Case:
    return Case(name, steps, [answer.strip() for answer in answers.split(",")], state)


def at(status: Status, attempt: int = 1, **more: Any) -> dict[str, Any]:
    return {"status": status, "attempt": attempt, **more}


CASES = [
    # -- one attempt ----------------------------------------------------------------------------------------------
    case("created", [create()], "QUEUED 1", at(QUEUED, agent_type="task", last_seq=1)),
    case("created with metadata", [create()], "QUEUED 1", at(QUEUED, metadata={"tenant": "acme"})),
    case("created with a context", [create()], "QUEUED 1", at(QUEUED, trace_context={"traceparent": "x"})),
    case("running", [create(), report()], "QUEUED 1, RUNNING 1", at(RUNNING, last_seq=2)),
    case("queued again by a report", [create(), queue()], "QUEUED 1, QUEUED 1", at(QUEUED, last_seq=2)),
    case("a report never goes back to QUEUED", [create(), report(), queue()],
         "QUEUED 1, RUNNING 1, RUNNING 1", at(RUNNING, last_seq=3)),
    *(case(f"QUEUED to {status}", [create(), end(status)], f"QUEUED 1, {status} 1", at(status, started_at=None))
      for status in (COMPLETE, ERROR, CANCELED)),
    *(case(f"RUNNING to {status}", [create(), report(), end(status)], f"QUEUED 1, RUNNING 1, {status} 1", at(status))
      for status in (COMPLETE, ERROR, CANCELED)),
    # -- the first end wins ---------------------------------------------------------------------------------------
    *(case(f"{second} after {first}", [create(), end(first), end(second)],
           f"QUEUED 1, {first} 1, {first} 1 late", at(first, last_seq=3))
      for first in (COMPLETE, ERROR, CANCELED) for second in (COMPLETE, ERROR, CANCELED)),
    case("a report after the end", [create(), end(COMPLETE), report(50)],
         "QUEUED 1, COMPLETE 1, COMPLETE 1 late", at(COMPLETE, latest_percentage=None, last_seq=3)),
    case("the reason is the winner's", [create(), end(CANCELED, "canceled"), end(ERROR, "timeout")],
         "QUEUED 1, CANCELED 1, CANCELED 1 late", at(CANCELED, reason="canceled", error_type=None)),
    case("no reason from a late end", [create(), Step(COMPLETE), end(ERROR, "timeout")],
         "QUEUED 1, COMPLETE 1, COMPLETE 1 late", at(COMPLETE, reason=None, error_type=None)),
    case("the end has its moment", [create(), report(), end(COMPLETE), end(ERROR)],
         "QUEUED 1, RUNNING 1, COMPLETE 1, COMPLETE 1 late", at(COMPLETE, ended_at=moment_of(2))),
    case("a retry has not ended", [create(), end(ERROR), retry()],
         "QUEUED 1, ERROR 1, QUEUED 2", at(QUEUED, 2, ended_at=None)),
    case("the end of a retry", [create(), end(ERROR), retry(), end(COMPLETE, attempt=2)],
         "QUEUED 1, ERROR 1, QUEUED 2, COMPLETE 2", at(COMPLETE, 2, ended_at=moment_of(3))),
    case("no reason from a report", [create(), report(outcome=Outcome("Error", "other"))],
         "QUEUED 1, RUNNING 1", at(RUNNING, reason=None, error_type=None)),
    # -- percentage -----------------------------------------------------------------------------------------------
    case("the last percentage stays", [create(), report(10), report(40), report()],
         "QUEUED 1, RUNNING 1, RUNNING 1, RUNNING 1", at(RUNNING, latest_percentage=40)),
    case("a percentage may fall", [create(), report(80), report(20)],
         "QUEUED 1, RUNNING 1, RUNNING 1", at(RUNNING, latest_percentage=20)),
    case("zero is a percentage", [create(), report(80), report(0)],
         "QUEUED 1, RUNNING 1, RUNNING 1", at(RUNNING, latest_percentage=0)),
    case("ERROR keeps the percentage", [create(), report(70), end(ERROR, "other")],
         "QUEUED 1, RUNNING 1, ERROR 1", at(ERROR, latest_percentage=70, reason="other", error_type="Error")),
    case("the percentage of an end", [create(), Step(COMPLETE, {"percentage": 100})],
         "QUEUED 1, COMPLETE 1", at(COMPLETE, latest_percentage=100)),
    # -- tokens ---------------------------------------------------------------------------------------------------
    case("tokens of an end", [create(), spent(COMPLETE, 7, 9, 2, 5, 4)],
         "QUEUED 1, COMPLETE 1",
         at(COMPLETE, input_tokens=7, output_tokens=9, requests=2, cached_input_tokens=5, reasoning_tokens=4)),
    case("cached and reasoning tokens are totals", [create(), spent(RUNNING, 5, 6, 1, 2, 3), spent(ERROR, 7, 8, 2, 4)],
         "QUEUED 1, RUNNING 1, ERROR 1", at(ERROR, cached_input_tokens=4, reasoning_tokens=3)),
    case("a retry has spent nothing", [create(), spent(ERROR, 7, 9, 2, 5, 4, model="large"), retry()],
         "QUEUED 1, ERROR 1, QUEUED 2", at(QUEUED, 2, cached_input_tokens=None, reasoning_tokens=None, model=None)),
    case("the last model stays", [create(), spent(RUNNING, 5, model="large"), spent(RUNNING, 6, model="small"),
                                  spent(COMPLETE, 7)],
         "QUEUED 1, RUNNING 1, RUNNING 1, COMPLETE 1", at(COMPLETE, model="small", input_tokens=7)),
    case("tokens of a late end count", [create(), end(CANCELED, "canceled"), spent(CANCELED, 11, 12, 1)],
         "QUEUED 1, CANCELED 1, CANCELED 1 late",
         at(CANCELED, reason="canceled", input_tokens=11, output_tokens=12, requests=1)),
    case("tokens are totals", [create(), spent(RUNNING, 5, 6, 1), spent(COMPLETE, 7, None, 2)],
         "QUEUED 1, RUNNING 1, COMPLETE 1", at(COMPLETE, input_tokens=7, output_tokens=6, requests=2)),
    case("tokens of an older attempt do not count",
         [create(), end(ERROR), retry(), spent(COMPLETE, 1, 1, 1, attempt=1)],
         "QUEUED 1, ERROR 1, QUEUED 2, QUEUED 2 late", at(QUEUED, 2, input_tokens=None, requests=None)),
    # -- out of order ---------------------------------------------------------------------------------------------
    case("a report before the creation", [report(30), create()],
         "RUNNING 1, RUNNING 1", at(RUNNING, agent_type="task", latest_percentage=30, last_seq=2)),
    case("an end before the creation", [end(COMPLETE), create()],
         "COMPLETE 1, COMPLETE 1 late", at(COMPLETE, agent_type="task", last_seq=2)),
    case("no creation at all", [report()], "RUNNING 1", at(RUNNING, agent_type="")),
    case("creation that is RUNNING", [Step(RUNNING, {"opening": Opening("span")})],
         "RUNNING 1", at(RUNNING, agent_type="span")),
    case("creation told by two reports", [create(), Step(RUNNING, {"opening": Opening("other")})],
         "QUEUED 1, RUNNING 1", at(RUNNING, agent_type="task", last_seq=2)),
    # -- refusals -------------------------------------------------------------------------------------------------
    case("created twice", [create(), create("other")], "QUEUED 1, exists", at(QUEUED, agent_type="task", last_seq=1)),
    case("created again after its end", [create(), end(COMPLETE), create("other")],
         "QUEUED 1, COMPLETE 1, exists", at(COMPLETE, last_seq=2)),
    case("created a third time", [create(), create(), create()], "QUEUED 1, exists, exists", at(QUEUED, last_seq=1)),
    case("a report on an unknown activity", [report(expects_row=True)], "unknown", None),
    case("an end of an unknown activity", [end(COMPLETE, expects_row=True)], "unknown", None),
    case("a report that expects its row", [create(), report(expects_row=True)],
         "QUEUED 1, RUNNING 1", at(RUNNING, last_seq=2)),
    case("unknown, then created", [report(expects_row=True), create()], "unknown, QUEUED 1", at(QUEUED, last_seq=1)),
    case("retry of an unknown activity", [retry()], "unknown", None),
    case("retry before the creation", [retry(), create()], "unknown, QUEUED 1", at(QUEUED, last_seq=1)),
    # -- retry ----------------------------------------------------------------------------------------------------
    case("retry", [create(), end(ERROR, "other"), retry()],
         "QUEUED 1, ERROR 1, QUEUED 2", at(QUEUED, 2, reason=None, error_type=None, last_seq=3)),
    *(case(f"retry of {status}", [create(), end(status), retry()], f"QUEUED 1, {status} 1, QUEUED 2", at(QUEUED, 2))
      for status in (COMPLETE, CANCELED)),
    case("retry of QUEUED", [create(), retry()], "QUEUED 1, not_ended", at(QUEUED, last_seq=1)),
    case("retry of RUNNING", [create(), report(5), retry()],
         "QUEUED 1, RUNNING 1, not_ended", at(RUNNING, latest_percentage=5, last_seq=2)),
    case("two retries open one attempt", [create(), end(ERROR), retry(), retry()],
         "QUEUED 1, ERROR 1, QUEUED 2, not_ended", at(QUEUED, 2, last_seq=3)),
    case("retry twice in turn", [create(), end(ERROR), retry(), report(attempt=2), end(ERROR, attempt=2), retry()],
         "QUEUED 1, ERROR 1, QUEUED 2, RUNNING 2, ERROR 2, QUEUED 3", at(QUEUED, 3, started_at=None)),
    case("retry with its number", [create(), end(ERROR), retry(attempt=2)],
         "QUEUED 1, ERROR 1, QUEUED 2", at(QUEUED, 2)),
    case("retry of an attempt that another has retried",
         [create(), end(ERROR), retry(), end(ERROR, attempt=2), retry(attempt=2)],
         "QUEUED 1, ERROR 1, QUEUED 2, ERROR 2, started", at(ERROR, 2, last_seq=4)),
    case("a retry starts afresh", [create(), report(70, worker_id="one"), spent(ERROR, 1, 2, 3), retry()],
         "QUEUED 1, RUNNING 1, ERROR 1, QUEUED 2",
         at(QUEUED, 2, latest_percentage=None, worker_id=None, started_at=None, input_tokens=None, requests=None)),
    case("a retry links the last span", [create(), report(span=SPAN), end(ERROR), retry()],
         "QUEUED 1, RUNNING 1, ERROR 1, QUEUED 2",
         at(QUEUED, 2, span_id=None, sampled=None,
            trace_context={"traceparent": "x", "agentexec.previous_span": PREVIOUS})),
    # -- update(status="QUEUED") ----------------------------------------------------------------------------------
    case("reopened by a report", [create(), end(COMPLETE), queue(reopens=True)],
         "QUEUED 1, COMPLETE 1, QUEUED 2", at(QUEUED, 2)),
    case("a reopening report on QUEUED", [create(), queue(reopens=True)], "QUEUED 1, QUEUED 1", at(QUEUED, last_seq=2)),
    case("a reopening report on RUNNING", [create(), report(), queue(reopens=True)],
         "QUEUED 1, RUNNING 1, RUNNING 1", at(RUNNING, last_seq=3)),
    case("two reopening reports", [create(), end(ERROR), queue(reopens=True), queue(reopens=True)],
         "QUEUED 1, ERROR 1, QUEUED 2, QUEUED 2", at(QUEUED, 2, last_seq=4)),
    case("a reopening report of an old attempt", [create(), end(ERROR), queue(reopens=True, attempt=1)],
         "QUEUED 1, ERROR 1, ERROR 1 late", at(ERROR, last_seq=3)),
    # -- older and later attempts ---------------------------------------------------------------------------------
    *(case(f"{status} of attempt 1 after a retry", [create(), end(CANCELED), retry(), Step(status, {"attempt": 1})],
           "QUEUED 1, CANCELED 1, QUEUED 2, QUEUED 2 late", at(QUEUED, 2, last_seq=4))
      for status in (RUNNING, COMPLETE, ERROR, CANCELED)),
    case("a report of attempt 1 while attempt 2 runs",
         [create(), end(ERROR), retry(), report(5, attempt=2), report(99, attempt=1)],
         "QUEUED 1, ERROR 1, QUEUED 2, RUNNING 2, RUNNING 2 late", at(RUNNING, 2, latest_percentage=5)),
    case("a report without a number concerns the current attempt", [create(), end(ERROR), retry(), end(COMPLETE)],
         "QUEUED 1, ERROR 1, QUEUED 2, COMPLETE 2", at(COMPLETE, 2)),
    case("a report of a later attempt opens it", [create(), end(ERROR), report(attempt=3)],
         "QUEUED 1, ERROR 1, RUNNING 3", at(RUNNING, 3)),
    case("a later attempt replaces one that runs", [create(), report(60), report(attempt=2)],
         "QUEUED 1, RUNNING 1, RUNNING 2", at(RUNNING, 2, latest_percentage=None)),
    case("an end of a later attempt", [create(), end(ERROR), end(COMPLETE, attempt=2)],
         "QUEUED 1, ERROR 1, COMPLETE 2", at(COMPLETE, 2)),
    # -- claims ---------------------------------------------------------------------------------------------------
    case("claim", [create(), claim(1)], "QUEUED 1, RUNNING 1", at(RUNNING)),
    case("claim without a number", [create(), claim()], "QUEUED 1, RUNNING 1", at(RUNNING)),
    case("one claim wins", [create(), claim(1, worker_id="one"), claim(1, worker_id="two")],
         "QUEUED 1, RUNNING 1, started", at(RUNNING, worker_id="one", last_seq=2)),
    case("claim of what has ended", [create(), end(CANCELED), claim(1)],
         "QUEUED 1, CANCELED 1, started", at(CANCELED, last_seq=2)),
    case("claim of an older attempt", [create(), end(ERROR), retry(), claim(1)],
         "QUEUED 1, ERROR 1, QUEUED 2, started", at(QUEUED, 2)),
    case("claim of the attempt of a retry", [create(), end(ERROR), retry(), claim(2)],
         "QUEUED 1, ERROR 1, QUEUED 2, RUNNING 2", at(RUNNING, 2)),
    case("claim of the attempt after a failed one", [create(), end(ERROR), claim(2)],
         "QUEUED 1, ERROR 1, started", at(ERROR)),
    case("claim before the creation", [claim(1), create()], "RUNNING 1, RUNNING 1", at(RUNNING, agent_type="task")),
    case("announced", [create(), claim(1), announce(2)], "QUEUED 1, RUNNING 1, QUEUED 2", at(QUEUED, 2)),
    case("announced and claimed", [create(), claim(1), announce(2), claim(2)],
         "QUEUED 1, RUNNING 1, QUEUED 2, RUNNING 2", at(RUNNING, 2)),
    case("claimed without its announcement", [create(), claim(1), claim(2)],
         "QUEUED 1, RUNNING 1, RUNNING 2", at(RUNNING, 2)),
    case("announced after a cancellation", [create(), claim(1), end(CANCELED), announce(2)],
         "QUEUED 1, RUNNING 1, CANCELED 1, started", at(CANCELED)),
    case("claim of an attempt that cannot be", [create(), claim(3)], "QUEUED 1, ahead", at(QUEUED)),
    case("announced more than one ahead", [create(), claim(1), announce(3)],
         "QUEUED 1, RUNNING 1, ahead", at(RUNNING)),
    case("a refused claim opens nothing", [report(), Step(RUNNING, {"opening": Opening("x"), "claims": True})],
         "RUNNING 1, started", at(RUNNING, agent_type="", last_seq=1)),
    # -- workers and spans ----------------------------------------------------------------------------------------
    case("the last worker to report", [create(), report(worker_id="one"), report(worker_id="two")],
         "QUEUED 1, RUNNING 1, RUNNING 1", at(RUNNING, worker_id="two", lease="extend")),
    case("a replayed report takes nothing over",
         [create(), report(worker_id="one"), report(worker_id="two", replay=True)],
         "QUEUED 1, RUNNING 1, RUNNING 1", at(RUNNING, worker_id="one", lease="extend")),
    case("a replayed report names the first worker", [create(), report(worker_id="two", replay=True)],
         "QUEUED 1, RUNNING 1", at(RUNNING, worker_id="two", lease="extend")),
    case("no lease without a worker", [create(), report()], "QUEUED 1, RUNNING 1", at(RUNNING, lease="keep")),
    case("the end clears the lease", [create(), report(worker_id="one"), end(COMPLETE)],
         "QUEUED 1, RUNNING 1, COMPLETE 1", at(COMPLETE, worker_id="one", lease="clear")),
    case("a retry clears the lease", [create(), report(worker_id="one"), end(ERROR), retry()],
         "QUEUED 1, RUNNING 1, ERROR 1, QUEUED 2", at(QUEUED, 2, worker_id=None, lease="clear")),
    case("a late report extends nothing", [create(), end(CANCELED), report(worker_id="one")],
         "QUEUED 1, CANCELED 1, CANCELED 1 late", at(CANCELED, worker_id=None, lease="clear")),
    case("the first span stays", [create(), report(span=SPAN), report(span=OTHER_SPAN)],
         "QUEUED 1, RUNNING 1, RUNNING 1", at(RUNNING, span_id=SPAN.span_id, trace_id=SPAN.trace_id, sampled=True)),
    case("a late span is not taken", [create(), end(COMPLETE), report(span=SPAN)],
         "QUEUED 1, COMPLETE 1, COMPLETE 1 late", at(COMPLETE, span_id=None)),
    case("a later attempt has its own span",
         [create(), report(span=SPAN), end(ERROR), retry(), report(attempt=2, span=OTHER_SPAN)],
         "QUEUED 1, RUNNING 1, ERROR 1, QUEUED 2, RUNNING 2",
         at(RUNNING, 2, span_id=OTHER_SPAN.span_id, sampled=False)),
    case("long names are cut",
         [create("t" * 400), report(worker_id="w" * 400),
          Step(ERROR, {"outcome": Outcome("E" * 400, "r" * 400, model="m" * 400)})],
         "QUEUED 1, RUNNING 1, ERROR 1",
         at(ERROR, agent_type="t" * 255, worker_id="w" * 255, error_type="E" * 255, reason="r" * 64, model="m" * 255)),
    # -- runs that wait -------------------------------------------------------------------------------------------
    case("waiting", [create(), report(worker_id="one"), wait()],
         "QUEUED 1, RUNNING 1, RUNNING 1", at(RUNNING, waiting=WAITING, worker_id="one", lease="clear")),
    case("waiting from the start", [create(), wait()],
         "QUEUED 1, RUNNING 1", at(RUNNING, waiting=WAITING, worker_id="one", started_at=moment_of(1), lease="clear")),
    case("the same worker continues", [create(), wait(), report(worker_id="one")],
         "QUEUED 1, RUNNING 1, RUNNING 1", at(RUNNING, waiting=None, worker_id="one", lease="extend")),
    case("another worker continues", [create(), wait(), report(worker_id="two")],
         "QUEUED 1, RUNNING 1, RUNNING 1", at(RUNNING, waiting=None, worker_id="two", lease="extend")),
    case("waiting again", [create(), wait(), report(worker_id="two"), wait("two")],
         "QUEUED 1, RUNNING 1, RUNNING 1, RUNNING 1", at(RUNNING, waiting=WAITING, worker_id="two", lease="clear")),
    case("a report without a worker ends no wait", [create(), wait(), queue(), report(40)],
         "QUEUED 1, RUNNING 1, RUNNING 1, RUNNING 1",
         at(RUNNING, waiting=WAITING, latest_percentage=40, lease="clear")),
    case("a claim ends no wait", [create(), wait(), claim(1, worker_id="two")],
         "QUEUED 1, RUNNING 1, started", at(RUNNING, waiting=WAITING, worker_id="one")),
    *(case(f"{status} ends a wait", [create(), wait(), end(status)],
           f"QUEUED 1, RUNNING 1, {status} 1", at(status, waiting=None, lease="clear"))
      for status in (COMPLETE, ERROR, CANCELED)),
    case("nothing waits after its end", [create(), end(CANCELED), wait()],
         "QUEUED 1, CANCELED 1, CANCELED 1 late", at(CANCELED, waiting=None)),
    case("a wait of an older attempt",
         [create(), end(ERROR), retry(), report(attempt=2, worker_id="two"), wait(attempt=1)],
         "QUEUED 1, ERROR 1, QUEUED 2, RUNNING 2, RUNNING 2 late",
         at(RUNNING, 2, waiting=None, worker_id="two", lease="extend")),
    case("a later attempt does not wait", [create(), wait(), report(attempt=2, worker_id="two")],
         "QUEUED 1, RUNNING 1, RUNNING 2", at(RUNNING, 2, waiting=None, worker_id="two", lease="extend")),
    case("a replayed wait takes nothing over", [create(), report(worker_id="two"), wait(replay=True)],
         "QUEUED 1, RUNNING 1, RUNNING 1", at(RUNNING, waiting=None, worker_id="two", lease="extend")),
    case("a replayed report of another worker ends no wait", [create(), wait(), report(worker_id="two", replay=True)],
         "QUEUED 1, RUNNING 1, RUNNING 1", at(RUNNING, waiting=WAITING, worker_id="one", lease="clear")),
    case("a replayed wait of the worker that runs it", [create(), report(worker_id="one"), wait(replay=True)],
         "QUEUED 1, RUNNING 1, RUNNING 1", at(RUNNING, waiting=WAITING, lease="clear")),
    case("a wait delivered again after the run continued", [create(), wait(), report(worker_id="one"), again(1)],
         "QUEUED 1, RUNNING 1, RUNNING 1, RUNNING 1 duplicate", at(RUNNING, waiting=None, lease="extend")),
    # -- delivered again ------------------------------------------------------------------------------------------
    case("a creation again", [create(), again(0)], "QUEUED 1, QUEUED 1 duplicate", at(QUEUED, last_seq=1)),
    case("a report again", [create(), report(5), again(1)],
         "QUEUED 1, RUNNING 1, RUNNING 1 duplicate", at(RUNNING, last_seq=2)),
    case("an end again", [create(), end(ERROR), again(1)],
         "QUEUED 1, ERROR 1, ERROR 1 duplicate", at(ERROR, last_seq=2)),
    case("a late end again", [create(), end(ERROR), end(COMPLETE), again(2)],
         "QUEUED 1, ERROR 1, ERROR 1 late, ERROR 1 late duplicate", at(ERROR, last_seq=3)),
    case("a claim again", [create(), claim(1), again(1)],
         "QUEUED 1, RUNNING 1, RUNNING 1 duplicate", at(RUNNING, last_seq=2)),
    case("a retry again", [create(), end(ERROR), retry(), again(2)],
         "QUEUED 1, ERROR 1, QUEUED 2, QUEUED 2 duplicate", at(QUEUED, 2, last_seq=3)),
    case("an old retry again", [create(), end(ERROR), retry(), end(ERROR, attempt=2), again(2)],
         "QUEUED 1, ERROR 1, QUEUED 2, ERROR 2, ERROR 2 duplicate", at(ERROR, 2, last_seq=4)),
    case("a refused creation again", [create(), create(), again(1)], "QUEUED 1, exists, exists", at(QUEUED)),
    case("a refused claim may be made again", [create(), report(), claim(1), again(2)],
         "QUEUED 1, RUNNING 1, started, started", at(RUNNING, last_seq=2)),
    # -- withdrawn ------------------------------------------------------------------------------------------------
    case("withdrawn", [create(), withdraw(0)], "QUEUED 1, QUEUED 1", None),
    case("withdrawn twice", [create(), withdraw(0), withdraw(0)], "QUEUED 1, QUEUED 1, QUEUED 1", None),
    case("withdrawn and created again", [create(), withdraw(0), create("other")],
         "QUEUED 1, QUEUED 1, QUEUED 1", at(QUEUED, agent_type="other", last_seq=1)),
    case("withdrawn, delivered again, withdrawn again", [create(), withdraw(0), again(0), withdraw(0)],
         "QUEUED 1, QUEUED 1, QUEUED 1, QUEUED 1", None),
    case("not withdrawn after a report", [create(), report(5), withdraw(0)],
         "QUEUED 1, RUNNING 1, RUNNING 1", at(RUNNING, latest_percentage=5, last_seq=2)),
    case("not withdrawn after its end", [create(), end(CANCELED), withdraw(0)],
         "QUEUED 1, CANCELED 1, CANCELED 1", at(CANCELED, last_seq=2)),
    case("another's creation is not withdrawn", [create(), create("other"), withdraw(1)],
         "QUEUED 1, exists, QUEUED 1", at(QUEUED, agent_type="task", last_seq=1)),
    case("unknown after its withdrawal", [create(), withdraw(0), report(expects_row=True)],
         "QUEUED 1, QUEUED 1, unknown", None),
]  # fmt: skip
