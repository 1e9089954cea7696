"""The vocabulary of reasons, and the registry by which an application's own exceptions get one."""

from agentexec_otel._model.reasons import REASONS, Reason, register

__all__ = ["REASONS", "Reason", "register"]
