"""`AgentExecInstrumentor`: an activity for every run of an application that knows nothing of activities."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]

from agentexec_otel.openai_agents._trace_processor import ActivityTraceProcessor
from agentexec_otel.openai_agents._wrap import RunWrapper

_INSTRUMENTS: Final = ("openai-agents >= 0.24",)


class AgentExecInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Gives each top-level run of the OpenAI Agents SDK an activity: live lines, tokens, and how it ended.

    ::

        ax.configure("sqlite:///app.db", create_tables=True)
        AgentExecInstrumentor().instrument()

    The activity's id is the UUID in the SDK's trace id, its type the workflow's name or else the starting agent's, its
    metadata the trace's and ``group_id``. A `trace(...)` of the application is one activity for all runs in it; runs
    within another activity, and agents as tools, report to that one. A run that cannot be tracked runs as it is.

    Nothing is set up here: it is `ax.configure`, or ``AGENTEXEC_DATABASE_URL``, that says where activities go.
    """

    _processor: ActivityTraceProcessor | None = None
    _wrapper: RunWrapper | None = None

    def instrumentation_dependencies(self) -> Collection[str]:
        """The versions of the SDK that this works with."""
        return _INSTRUMENTS

    def _instrument(self, **kwargs: Any) -> None:
        processor = ActivityTraceProcessor()
        self._processor, self._wrapper = processor, RunWrapper(processor)
        processor.register()
        self._wrapper.wrap()

    def _uninstrument(self, **kwargs: Any) -> None:
        wrapper, processor = self._wrapper, self._processor
        self._wrapper = self._processor = None
        if wrapper is not None:
            wrapper.unwrap()
        if processor is not None:
            processor.unregister()
