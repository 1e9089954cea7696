"""Schemas that are built with agentexec's fields alone, and read as agentexec's are."""

from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID, uuid4

import pytest

from agentexec_otel.activity import (
    ActivityDetailSchema,
    ActivityListItemSchema,
    ActivityListSchema,
    ActivityLogSchema,
    Status,
)

NOW = datetime.now(UTC)


def test_a_log() -> None:
    """The id may be a UUID, the status in lower case; the percentage is 0 unless given."""
    agent_id = uuid4()
    log = ActivityLogSchema.model_validate({"id": agent_id, "message": "Go", "status": "running", "created_at": NOW})
    assert (str(log.id), log.status, log.percentage, log.seq) == (str(agent_id), Status.RUNNING, 0, 0)
    again = ActivityLogSchema.model_validate_json(log.model_dump_json())
    assert again == log
    assert isinstance(cast("object", again.id), UUID)
    assert ActivityLogSchema.model_json_schema()["properties"]["id"]["type"] == "integer"


def test_a_detail() -> None:
    """Its logs may be left out; `metadata_` is the attribute `metadata`, which is never serialised."""
    given = {"id": uuid4(), "agent_id": uuid4(), "agent_type": "research", "created_at": NOW, "updated_at": NOW}
    detail = ActivityDetailSchema.model_validate({**given, "metadata_": {"tenant": "acme"}})
    assert (detail.id, detail.logs, detail.status) == (given["id"], [], Status.QUEUED)
    assert detail.metadata == {"tenant": "acme"}
    assert "metadata" not in detail.model_dump()


def test_a_list_item() -> None:
    """`percentage` and `latest_log_message` are ours under agentexec's names."""
    item = ActivityListItemSchema.model_validate(
        {
            "agent_id": uuid4(),
            "agent_type": "research",
            "status": Status.RUNNING,
            "latest_log_message": "Half way",
            "latest_log_timestamp": NOW,
            "percentage": 50,
            "started_at": NOW - timedelta(seconds=120),
        }
    )
    assert (item.latest_log, item.latest_log_message, item.latest_percentage, item.percentage) == (
        *("Half way", "Half way"),
        *(50, 50),
    )
    assert item.elapsed_time_seconds >= 120
    assert ActivityListItemSchema.model_validate(item.model_dump()) == item
    page = ActivityListSchema(items=[item], total=7, page=1, page_size=3)
    assert page.total_pages == 3


@pytest.mark.parametrize("schema", [ActivityDetailSchema, ActivityListItemSchema, ActivityLogSchema])
def test_every_field_is_in_the_output(schema: Any) -> None:
    """A default is for those who build a schema: a client may rely on each field."""
    described = schema.model_json_schema(mode="serialization")
    assert set(described["required"]) == set(described["properties"])
