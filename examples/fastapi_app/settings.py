"""What can be set, by environment variables `APP_*`."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import create_engine, make_url

_FILE = Path(tempfile.gettempdir()) / "agentexec-otel-app" / "app.db"


class Settings(BaseSettings):
    """`APP_DATABASE`, `APP_BROKER` and so on; what is empty counts as not set.

    Attributes:
        database: SQLAlchemy URL.
        broker: `redis://…`, `amqp://…` or `nats://…`. None runs the tasks in the web process.
        results: `redis://…` or `nats://…`, where results and contexts of tasks are kept. Default: in the broker.
            RabbitMQ needs it.
        queue: Where the broker keeps this application's tasks.
        pace: Seconds for which the scripted model and the tools pretend to work.
    """

    model_config = SettingsConfigDict(env_prefix="APP_", env_ignore_empty=True)

    database: str = f"sqlite:///{_FILE}"
    broker: str | None = None
    results: str | None = None
    queue: str = "research-app"
    pace: float = 0.5


settings = Settings()
engine = create_engine(settings.database)

if file := make_url(settings.database).database if engine.dialect.name == "sqlite" else None:
    Path(file).parent.mkdir(parents=True, exist_ok=True)
