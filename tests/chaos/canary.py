"""A process that has secrets everywhere: its argument is a JSON object.

It says `away` and waits for a line when its database is to be taken away, `back` when it is to return.
"""

import json
import logging
import sys
from typing import Any

from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from sqlalchemy import create_engine, text
from sqlalchemy.exc import SQLAlchemyError

import agentexec_otel as ax
from tests.chaos.law import settled
from tests.chaos.producer import say


def database_error(secret: str) -> Exception:
    """What SQLAlchemy says of a failed statement: its parameters."""
    engine = create_engine("sqlite://")
    try:
        with engine.connect() as connection:
            connection.execute(text("SELECT * FROM missing WHERE password = :password"), {"password": secret})
    except SQLAlchemyError as exc:
        return exc
    finally:
        engine.dispose()
    raise AssertionError


def main(url: str, otlp: str, key: str, password: str, header: str) -> None:
    logging.basicConfig(level=logging.DEBUG)
    logging.getLogger("urllib3").setLevel(logging.INFO)
    headers = {"authorization": f"Bearer {header}"}
    spans = TracerProvider()
    spans.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{otlp}/v1/traces", headers=headers)))
    logs: Any = LoggerProvider()
    logs.add_log_record_processor(SimpleLogRecordProcessor(OTLPLogExporter(f"{otlp}/v1/logs", headers=headers)))
    ax.CONF.event_mode = "both"
    ax.configure(url, tracer_provider=spans, logger_provider=logs)

    def live(name: str) -> None:
        agent_id = ax.activity.create(f"{name} with {key}", f"api_key={key}", metadata={"api_key": key, "note": key})
        ax.activity.update(agent_id, f"Authorization: Bearer {key}")
        ax.activity.update(agent_id, f"postgresql://me:{password}@db/name and password={password}")
        ax.activity.update(agent_id, f"poison {key}")
        try:
            raise database_error(key)
        except SQLAlchemyError:
            ax.activity.error(agent_id)
        try:
            with ax.activity.run(f"{name} again with {key}"):
                raise ValueError(f"cannot connect with token={key} with password={password}", {"password": password})
        except ValueError:
            pass

    live("first")
    ax.flush()
    running = ax.activity.create("while it is away")
    ax.flush()
    say("away")
    sys.stdin.readline()
    for number in range(10):
        ax.activity.update(running, f"{number} OPENAI_API_KEY={key} mysql://me:{password}@db/name")
    ax.activity.error(running, f"failed with {key}")
    say("spooled")
    sys.stdin.readline()
    ax.flush(30)
    say(json.dumps(settled()))


def start(options: str) -> None:
    """The program."""
    main(**json.loads(options))
