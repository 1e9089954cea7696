"""Settings. They are read from the environment once, at import."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from agentexec_otel._environment import unknown_variables
from agentexec_otel._errors import ConfigurationError
from agentexec_otel._model.span import EventName, LevelScheme
from agentexec_otel._model.text import METADATA_KEY
from agentexec_otel._model.trace_url import checked_template

_KEYS: Final = "name keys such as tenant,user, of letters, digits, _ . : / - and spaces"


def _split(value: Any) -> Any:
    return [one for part in value.split(",") if (one := part.strip())] if isinstance(value, str) else value


def _split_keys(value: Any) -> Any:
    return [key.strip() for key in value.split(",")] if isinstance(value, str) else value


def _checked_keys(keys: tuple[str, ...]) -> tuple[str, ...]:
    if wrong := [key for key in keys if not METADATA_KEY.fullmatch(key)]:
        raise ValueError(f"{wrong[0]!r:.80} is no metadata key that can be filtered by: {_KEYS}")
    return tuple(dict.fromkeys(keys))


_Keys = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_keys), AfterValidator(_checked_keys)]


class Settings(BaseSettings):
    """All settings. The environment variable is ``AGENTEXEC_`` and the field's name in upper case.

    Times are in seconds, sizes in bytes. An empty variable counts as not set.
    """

    model_config = SettingsConfigDict(
        env_prefix="AGENTEXEC_", env_ignore_empty=True, extra="ignore", validate_assignment=True
    )

    database_url: str | None = Field(None, description="SQLAlchemy URL, used if `ax.configure()` is given no database.")
    table_prefix: Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]{0,39}$")] = Field(
        "agentexec_", description="Prefix of table, foreign key and index names."
    )
    create_tables: bool = Field(False, description="Create missing tables when the SDK is configured.")
    exporters: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)] = Field(
        (), description="Exporters in addition to those given to `ax.configure()`, separated by commas: `sql`, `otlp`."
    )
    indexed_metadata: _Keys = Field((), description="Metadata keys whose filters use an index, separated by commas.")

    dashboard_token: str | None = Field(
        None, repr=False, description="Token that `agentexec-otel dashboard` requires from each client."
    )

    notify: bool = Field(
        False, description="On PostgreSQL, notify followers of each commit that stores logs, and listen as a follower."
    )

    activity_message_create: str = Field("Waiting to start.", description="First log of an activity.")
    activity_message_started: str = Field("Task started.", description="Log written when a run begins.")
    activity_message_complete: str = Field(
        "Task completed successfully.", description="Log written when a run succeeds."
    )
    activity_message_error: str = Field(
        "Task failed: {error}", description="Log written when a run fails. `{error}` is replaced by the error."
    )
    activity_message_retry: str = Field(
        "Task failed and will be tried again: {error}",
        description="Log written when a task fails and its engine retries it. `{error}` is replaced by the error.",
    )
    activity_message_cancel: str = Field("Task canceled.", description="Log written when a run is canceled.")

    event_mode: Literal["span_event", "log", "both"] = Field(
        "span_event", description="How logs appear in OpenTelemetry: `span_event`, `log` (LogRecords) or `both`."
    )
    event_name: EventName = Field(
        "log", description="Name of span events: `log` (`agentexec.activity.log`) or the `message` of the log."
    )
    canceled_is_error: bool = Field(False, description="Give the span of a canceled activity the status ERROR.")
    span_levels: Annotated[tuple[LevelScheme, ...], NoDecode, BeforeValidator(_split)] = Field(
        (),
        description="Backends, separated by commas, for which a span gets the level WARNING if the activity was"
        " canceled, or ERROR if it failed: `langfuse`, `logfire`.",
    )
    span_usage: bool = Field(True, description="Put the tokens of a run on its span.")
    trace_url_template: Annotated[str, AfterValidator(checked_template)] | None = Field(
        None,
        description="URL of a trace in your tracing backend, with placeholders such as `{trace_id}`, or a preset and"
        " the backend's URL, such as `jaeger:http://localhost:16686`.",
    )
    message_limit: int = Field(8_192, ge=64, le=61_440, description="Longest stored message in bytes of UTF-8.")

    activity_message_lost: str = Field("The worker was lost.", description="Log written when a lease has expired.")

    progress: Literal["off", "steps", "detail"] = Field(
        "steps", description="Which logs an instrumented run writes about itself: `off`, `steps` or `detail`."
    )

    create_timeout: float = Field(10.0, gt=0, description="How long `create()` waits for its commit.")
    terminal_timeout: float = Field(
        2.0,
        ge=0,
        description="How long `complete`, `error` and `cancel` wait for their commit, but not on an event loop.",
    )
    lookup_timeout: float = Field(
        2.0, ge=0, description="How long the first call for an id that this process has not seen waits for its row."
    )
    shutdown_timeout: float = Field(
        5.0, ge=0, description="How long the flush at exit and in `ax.shutdown()` may take."
    )
    max_queue_size: int = Field(
        10_000,
        ge=16,
        description="Number of events that wait in memory. Further ones wait in the spool, if there is one.",
    )
    max_batch_size: int = Field(5_000, ge=1, le=10_000, description="Maximum events per transaction.")

    sqlite_wal: bool = Field(
        True, description="Switch a SQLite file to write-ahead logging for good: readers do not block writers."
    )

    spool_dir: str | None = Field(
        None,
        description="Where accepted events wait until they are stored. `off` keeps them in memory. Default: the"
        " platform's folder for the state of a user.",
    )
    spool_durability: Literal["process", "disk"] = Field(
        "process", description="What the spool survives: the death of the `process`, or also of the machine (`disk`)."
    )
    spool_max_bytes: int = Field(
        256 << 20, ge=1 << 20, description="Limit for all spool files of one database together."
    )

    result_limit: int = Field(4 << 20, ge=1_024, description="Largest result of a task in bytes of JSON.")
    result_seconds: int = Field(86_400, ge=60, description="How long Redis and NATS keep the result of a task.")

    lease_seconds: float = Field(
        30.0, ge=0.5, description="A RUNNING activity is lost if its worker has not extended its lease for that long."
    )
    heartbeat_interval: float = Field(
        10.0, gt=0, description="How often a worker extends the leases of its activities, at least three times a lease."
    )
    sweep_interval: float = Field(
        10.0, ge=0, description="How often this process ends lost activities. 0 leaves that to other processes."
    )

    replay_lost: bool = Field(
        True,
        description="Export the spans of activities that this process has ended for lost workers, if an exporter for"
        " them is configured.",
    )

    @classmethod
    def unknown_variables(cls) -> dict[str, str | None]:
        """The ``AGENTEXEC_*`` variables of the environment that are no setting, each with the one that may be meant."""
        return unknown_variables(os.environ, cls.model_fields)

    def __setattr__(self, name: str, value: object) -> None:
        if name == "table_prefix" and value != self.table_prefix:
            raise ConfigurationError(
                "ax.CONF.table_prefix cannot be changed: the tables were defined with"
                f" {self.table_prefix!r} when agentexec_otel was imported; set AGENTEXEC_TABLE_PREFIX before that"
            )
        super().__setattr__(name, value)


def _read() -> Settings:
    try:
        return Settings()  # type: ignore[call-arg]
    except ValidationError as exc:
        problem = exc.errors()[0]
        name = f"AGENTEXEC_{str(problem['loc'][0]).upper()}"
        raise ConfigurationError(_refusal(name, problem["input"], _HINTS.get(name, problem["msg"]))) from None


def _refusal(name: str, value: object, hint: str) -> str:
    return f"{name}={_shown(str(value))!r} cannot be used: {hint.removeprefix('Value error, ')}"


def _shown(value: str) -> str:
    """The value for an error message, without the user and the password of a URL in it."""
    return re.sub(r"//[^/@\s]*@", "//…@", value)[:80]


def assign(options: Mapping[str, object]) -> list[str]:
    """Assign to these settings, and return the names that are no setting. None leaves a setting as it is.

    Raises:
        ConfigurationError: a value cannot be used.
    """
    unknown = sorted(options.keys() - Settings.model_fields.keys())
    for name, value in options.items():
        if name in unknown or value is None:
            continue
        try:
            setattr(CONF, name, value)
        except ValidationError as exc:
            raise ConfigurationError(_refusal(name, value, exc.errors()[0]["msg"])) from None
    return unknown


def _warn_of_unknown_variables() -> None:
    logger = logging.getLogger("agentexec_otel")
    for name, nearest in Settings.unknown_variables().items():
        hint = f": did you mean {nearest}?" if nearest else ""
        logger.warning("%s is no setting of agentexec-otel and has no effect%s", name, hint)


_HINTS: Final = {
    "AGENTEXEC_INDEXED_METADATA": _KEYS,
    "AGENTEXEC_TABLE_PREFIX": "use a-z, 0-9 and _, at most 40 characters, and no digit at the start",
}

CONF = _read()
"""The settings of this process. Assign to a field to change it. The table prefix is set by the environment only."""

_warn_of_unknown_variables()
