"""The statuses of an activity."""

from agentexec_otel._model.event import Status

__all__ = ["Status"]
