"""What a run's arguments, or a trace of the application, say about the activity."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final
from uuid import UUID

from agents import Agent, MultiProvider, RunConfig, RunResult, RunResultStreaming
from agents.models import get_default_model
from agents.run import RunOptions

from agentexec_otel.instrumentation._open_run import RunDescription
from agentexec_otel.instrumentation.openai_agents import _sdk

AnyRunConfig = RunConfig | Mapping[str, Any] | None

_TRACE_PREFIX: Final = "trace_"
_DEFAULTS: Final = RunConfig()
_ACTIVITY_KEY: Final = "agentexec.agent_id"  # in the state of an interrupted run


def describe(agent: object, given: object, options: RunOptions[Any]) -> RunDescription:
    """Describe a run by its arguments; a resumed run also by what its state says."""
    state = _sdk.trace_state_of(given)
    config = options.get("run_config")
    names = (_setting(config, "workflow_name"), getattr(state, "workflow_name", None))
    chosen = next((name for name in names if name not in (None, _DEFAULTS.workflow_name)), None)
    return _description(
        getattr(agent, "name", None) if chosen is None else chosen,
        _setting(config, "trace_id") or getattr(state, "trace_id", None),
        _setting(config, "group_id") or getattr(state, "group_id", None),
        _setting(config, "trace_metadata") or getattr(state, "metadata", None),
        resumed_activity(given),
        {"conversation_id": options.get("conversation_id"), "session_id": _session_id(options.get("session"))},
    )


def describe_trace(trace: object) -> RunDescription:
    """Describe a trace that the application opened."""
    return _description(*(getattr(trace, name, None) for name in ("name", "trace_id", "group_id", "metadata")))


def _description(
    name: object,
    trace_id: object,
    group_id: object,
    metadata: object,
    resumes: UUID | None = None,
    conversation: Mapping[str, object] | None = None,
) -> RunDescription:
    return RunDescription(
        name if isinstance(name, str) and name.strip() else "agent",
        agent_id_of(trace_id),
        metadata,
        {"group_id": group_id, **(conversation or {})},
        {} if trace_id is None else {"trace_id": trace_id},
        resumes,
    )


def _setting(config: AnyRunConfig, name: str, default: object = None) -> Any:
    return config.get(name, default) if isinstance(config, Mapping) else getattr(config, name, default)


def _session_id(session: object) -> object:
    """The id of the SDK's session; None if it has none yet, as that of a conversation that OpenAI is to store."""
    with suppress(Exception):  # The application's session may raise.
        return getattr(session, "session_id", None)
    return None


def is_private(config: AnyRunConfig) -> bool:
    """Whether what models and tools say must not be stored, by the run's configuration or else the environment."""
    return not _setting(config, "trace_include_sensitive_data", _DEFAULTS.trace_include_sensitive_data)


def model_of(agent: Agent[Any], config: AnyRunConfig) -> str | None:
    """The name of the model that a run calls for this agent; None if it has no name."""
    with suppress(Exception):  # The application's model may raise: then it has no name.
        model: object = _setting(config, "model") or agent.model
        if model is None and isinstance(_setting(config, "model_provider", _DEFAULTS.model_provider), MultiProvider):
            return get_default_model()
        name = model if isinstance(model, str) else getattr(model, "model", None)
        return name if isinstance(name, str) else None
    return None


# -- trace ids --------------------------------------------------------------------------------------------------


def agent_id_of(trace_id: object) -> UUID | None:
    """The UUID in a trace id of the SDK, ``trace_`` and 32 hexadecimal digits; None if it is something else."""
    digits = str(trace_id).removeprefix(_TRACE_PREFIX)
    if len(digits) != 32 or not str(trace_id).startswith(_TRACE_PREFIX):
        return None
    with suppress(ValueError):
        return UUID(digits)
    return None


def with_trace_id(config: AnyRunConfig, agent_id: UUID) -> RunConfig | dict[str, Any]:
    """The run's configuration with the trace id that contains this UUID.

    None and mappings stay mappings: the SDK closes a model provider only if it made it itself. Anything else is
    returned unchanged, for the SDK to refuse.
    """
    trace_id = f"{_TRACE_PREFIX}{agent_id.hex}"
    if isinstance(config, RunConfig):
        changed = copy.copy(config)
        changed.trace_id = trace_id
        return changed
    if config is not None and not isinstance(config, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        return config
    return {**(config or {}), "trace_id": trace_id}


# -- runs that wait for an approval -----------------------------------------------------------------------------


def remember_activity(agent_id: UUID, result: RunResult | RunResultStreaming) -> None:
    """Make `result.to_state()` name the activity that the resumed run continues.

    The SDK's trace id does not name it if tracing is disabled, or the application has chosen or reused the id.
    """
    _sdk.ensure_trace_state(result).extra[_ACTIVITY_KEY] = str(agent_id)


def resumed_activity(given: object) -> UUID | None:
    """The activity that was left open for the run with this input; None if it is not the state of such a run."""
    state = _sdk.trace_state_of(given)
    found = None if state is None else state.extra.get(_ACTIVITY_KEY)
    with suppress(ValueError):
        return None if found is None else UUID(str(found))
    return None
