"""Settings, read from the environment once, at import."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from agentexec_otel._errors import ConfigurationError

EventMode = Literal["span_event", "log", "both"]
ProgressLevel = Literal["off", "steps", "detail"]


class Settings(BaseSettings):
    """Every setting; the environment variable is the field's name in upper case behind ``AGENTEXEC_``.

    Times are seconds, sizes bytes unless the name says otherwise. An empty variable counts as not set.
    """

    model_config = SettingsConfigDict(
        env_prefix="AGENTEXEC_", env_ignore_empty=True, extra="ignore", validate_assignment=True
    )

    database_url: str | None = Field(None, description="SQLAlchemy URL, used where `ax.configure()` is given none.")
    table_prefix: Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]{0,39}$")] = Field(
        "agentexec_", description="Prefix of table, foreign key and index names."
    )
    create_tables: bool = Field(False, description="Create missing tables when the SDK is configured.")

    activity_message_create: str = Field("Waiting to start.", description="First line of an activity.")
    activity_message_started: str = Field("Task started.", description="Line written when a run begins.")
    activity_message_complete: str = Field(
        "Task completed successfully.", description="Line written when a run ends well."
    )
    activity_message_error: str = Field(
        "Task failed: {error}", description="Line written when a run fails; `{error}` is replaced by the error."
    )
    activity_message_retry: str = Field(
        "Task failed and will be tried again: {error}",
        description="Line written when a task fails whose engine tries it again; `{error}` is replaced by the error.",
    )
    activity_message_cancel: str = Field("Task canceled.", description="Line written when a run is canceled.")

    event_mode: EventMode = Field(
        "span_event", description="Where log lines go in OpenTelemetry: `span_event`, `log` (LogRecords) or `both`."
    )
    canceled_is_error: bool = Field(False, description="Give the span of a canceled activity the status ERROR.")
    message_limit: Annotated[int, Field(ge=64, le=61_440)] = Field(
        8_192, description="Longest stored message, bytes of UTF-8."
    )

    activity_message_lost: str = Field("The worker was lost.", description="Line written when a lease has expired.")

    progress: ProgressLevel = Field(
        "steps", description="Which lines an instrumented run writes about itself: `off`, `steps` or `detail`."
    )

    create_timeout: Annotated[float, Field(gt=0)] = Field(10.0, description="How long `create()` waits for its commit.")
    terminal_timeout: Annotated[float, Field(ge=0)] = Field(
        2.0, description="How long `complete`, `error` and `cancel` wait for their commit off an event loop."
    )
    lookup_timeout: Annotated[float, Field(ge=0)] = Field(
        2.0, description="How long the first call for an id this process has not seen waits for its row."
    )
    shutdown_timeout: Annotated[float, Field(ge=0)] = Field(
        5.0, description="Flush time at exit and in `ax.shutdown()`."
    )
    max_queue_size: Annotated[int, Field(ge=16)] = Field(
        10_000, description="Events waiting in memory before progress lines are dropped."
    )
    max_batch_size: Annotated[int, Field(ge=1, le=10_000)] = Field(5_000, description="Most events per transaction.")

    sqlite_wal: bool = Field(
        True, description="Switch a SQLite file to write-ahead logging, which lasts: readers and writers do not block."
    )

    spool_dir: str | None = Field(
        None,
        description="Where accepted events wait until they are stored; `off` keeps them in memory. Default: the"
        " platform's folder for a user's state.",
    )
    spool_durability: Literal["process", "disk"] = Field(
        "process", description="What the spool survives: the death of the `process`, or also of the machine (`disk`)."
    )
    spool_max_bytes: Annotated[int, Field(ge=1 << 20)] = Field(
        256 << 20, description="Limit of all spool files of one database together."
    )

    result_limit: Annotated[int, Field(ge=1_024)] = Field(
        4 << 20, description="Largest result of a task, bytes of JSON."
    )
    result_seconds: Annotated[int, Field(ge=60)] = Field(
        86_400, description="How long Redis and NATS keep the result of a task."
    )

    lease_seconds: Annotated[float, Field(ge=0.5)] = Field(
        30.0, description="A RUNNING activity whose worker has shown no sign of life for that long is lost."
    )
    heartbeat_interval: Annotated[float, Field(gt=0)] = Field(
        10.0, description="How often a worker extends the leases of what it runs; a third of the lease, at most."
    )
    sweep_interval: Annotated[float, Field(ge=0)] = Field(
        10.0, description="How often this process looks for lost activities; 0 leaves that to others."
    )


def _read() -> Settings:
    try:
        return Settings()  # type: ignore[call-arg]
    except ValidationError as exc:
        problem = exc.errors()[0]
        name = f"AGENTEXEC_{str(problem['loc'][0]).upper()}"
        hint = _HINTS.get(name, problem["msg"])
        raise ConfigurationError(f"{name}={str(problem['input'])[:80]!r} cannot be used: {hint}") from None


_HINTS: Final = {
    "AGENTEXEC_TABLE_PREFIX": "use a-z, 0-9 and _, at most 40 characters, and no digit at the start",
}

CONF = _read()
"""The settings in force. Assign to a field to change one (the table prefix only through the environment)."""
