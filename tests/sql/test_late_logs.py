"""Late logs: in the history that is asked for them, and in no summary."""

from uuid import uuid4

from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel.activity.models import Status
from tests.databases import Database
from tests.sql.rows import event, opening, store


def test_the_last_log_of_the_detail_is_the_latest_log(database: Database) -> None:
    """`detail` leaves late logs out unless asked; `logs` has them, flagged."""
    agent_id = uuid4()
    store(
        database.url,
        [opening(agent_id), event(agent_id, Status.CANCELED, "Stopped")],
        [event(agent_id, message="Still at work"), event(agent_id, Status.COMPLETE, "Ready")],
    )
    with Session(database.engine) as session:
        found = ax.activity.detail(session, agent_id)
        whole = ax.activity.detail(session, agent_id, include_late=True)
        (item,) = ax.activity.list(session).items
        logs = ax.activity.logs(session, agent_id)
    assert found is not None
    assert whole is not None
    assert [log.message for log in found.logs] == ["queued", "Stopped"]
    assert item.latest_log == found.logs[-1].message
    assert [(log.message, log.late) for log in whole.logs] == [
        ("queued", False), ("Stopped", False), ("Still at work", True), ("Ready", True),
    ]  # fmt: skip
    assert logs == whole.logs
