"""Reading an activity's row outside of the query API: one question, one deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from uuid import UUID

from agentexec_otel._errors import ExportError
from agentexec_otel._model.results import StoredActivity
from agentexec_otel._runtime.limits import chunks
from agentexec_otel.export import ActivityProcessor, ActivityStore

_Answer = Future[StoredActivity | None]


class RowUnavailableError(TimeoutError):
    """The database has not answered in time, or is known to be away: nothing can be said of the row."""


class Reader:
    """Reads rows on the writer's thread, behind the events that wait there, all that are asked for in one query.

    A question is answered, or abandoned at its deadline, and then forgotten. While storing is known to fail, the
    answer is `RowUnavailableError` at once: the writer is busy trying again, and could not read either.
    """

    def __init__(self, processor: ActivityProcessor, store: ActivityStore) -> None:
        self._processor = processor
        self._store = store
        self.reset()

    def reset(self) -> None:
        """Forget the questions: in a forked child they are the parent's."""
        self._asked: dict[_Answer, tuple[UUID, bool]] = {}
        self._is_queued = False

    def get(self, agent_id: UUID, seconds: float) -> StoredActivity | None:
        """The row, with the logs of its current attempt if no span has them yet; None if there is none.

        Blocks for at most that many seconds.

        Raises:
            RowUnavailableError: not answered in time.
        """
        with self._asking(agent_id, True, seconds) as answer:
            return answer.result(seconds)

    async def get_async(self, agent_id: UUID, seconds: float | None, *, history: bool = True) -> StoredActivity | None:
        """As `get`, on an event loop; None waits for as long as it takes.

        Args:
            history: With the logs of the current attempt, if no span has them yet.
        """
        with self._asking(agent_id, history, seconds) as answer:
            return await asyncio.wait_for(asyncio.wrap_future(answer), seconds)

    @contextmanager
    def _asking(self, agent_id: UUID, history: bool, seconds: float | None) -> Generator[_Answer]:
        trouble = self._processor.last_error
        if trouble is not None:
            self._processor.nudge()  # The database may be back.
            raise RowUnavailableError(trouble)
        answer: _Answer = Future()
        self._asked[answer] = agent_id, history
        if not self._is_queued:
            self._is_queued = True
            self._processor.call_soon(self._answer_all, self._give_up)
        try:
            yield answer
        except (TimeoutError, ExportError) as exc:
            raise RowUnavailableError(str(exc) or _too_late(seconds)) from None
        finally:
            self._asked.pop(answer, None)

    # -- the writer's thread ------------------------------------------------------------------------------------

    def _take(self) -> list[tuple[UUID, bool, _Answer]]:
        self._is_queued = False  # First: whatever is asked from here on queues another job.
        questions: list[tuple[UUID, bool, _Answer]] = []
        while self._asked:
            with suppress(KeyError):  # abandoned in this moment
                answer, (agent_id, history) = self._asked.popitem()
                if answer.set_running_or_notify_cancel():
                    questions.append((agent_id, history, answer))
        return questions

    def _answer_all(self) -> None:
        questions = self._take()
        for chunk in chunks(questions):
            try:
                wanted = sorted({agent_id for agent_id, _, _ in chunk})
                found = self._store.load(wanted, history=any(history for _, history, _ in chunk))
            except BaseException as exc:  # noqa: BLE001  # passed on to the callers
                for _, _, answer in chunk:
                    answer.set_exception(exc)
            else:
                for agent_id, _, answer in chunk:
                    answer.set_result(found.get(agent_id))

    def _give_up(self) -> None:
        for _, _, answer in self._take():
            answer.set_exception(RowUnavailableError("the writer has been shut down"))


def _too_late(seconds: float | None) -> str:
    return f"the database did not answer within {seconds:g} s" if seconds is not None else "the database is away"
