"""The statuses of an activity."""

from agentexec_otel._event import Status

__all__ = ["Status"]
