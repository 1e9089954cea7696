"""Schema 2, after the deployment: what programs of schema 1 have left empty, or written in other words."""

from alembic import op
from sqlalchemy import Connection, String, Uuid, case, column, func, or_, select, table, update

from agentexec_otel.activity.models import UtcDateTime
from agentexec_otel_exporters.sql.migrations.operations import short_transactions
from agentexec_otel_exporters.sql.migrations.schema_1 import ACTIVITY, LOG

revision = "0003"
down_revision = "0002"

_ROWS = 1_000
_TERMINAL = ("COMPLETE", "ERROR", "CANCELED")
_REASONS = {"cancelled": "canceled", "user_error": "other", "result": "other", "expired": "timeout"}

_ROW = table(
    ACTIVITY.name,
    column("id", Uuid),
    column("agent_id", Uuid),
    column("updated_at", UtcDateTime),
    column("status", String),
    column("attempt"),
    column("reason", String),
    column("ended_at", UtcDateTime),
    column("span_exported_at", UtcDateTime),
)
_LACKS_END = _ROW.c.status.in_(_TERMINAL) & _ROW.c.ended_at.is_(None)
_TO_FILL = or_(_LACKS_END, _ROW.c.reason.in_(list(_REASONS)))
_END = (
    select(func.max(LOG.c.created_at))
    .where(LOG.c.activity_id == _ROW.c.id, LOG.c.attempt == _ROW.c.attempt)
    .where(LOG.c.status.in_(_TERMINAL), LOG.c.late.is_(False))
    .scalar_subquery()
)
_FILL = (
    update(_ROW)
    .where(_TO_FILL)
    .values(
        ended_at=case((_LACKS_END, func.coalesce(_END, _ROW.c.updated_at)), else_=_ROW.c.ended_at),
        # Programs of schema 1 have ended the span themselves: it is not replayed.
        span_exported_at=case((_LACKS_END, _ROW.c.updated_at), else_=_ROW.c.span_exported_at),
        reason=case(_REASONS, value=_ROW.c.reason, else_=_ROW.c.reason),
    )
)


def upgrade() -> None:
    """Fill `ended_at` and `span_exported_at`, and rename the reasons of the first version."""
    if op.get_context().as_sql:
        op.execute(_FILL)
        return
    # In short transactions: programs keep writing meanwhile.
    with short_transactions():
        connection = op.get_bind()
        last = None
        while agent_ids := _next(connection, last):
            connection.execute(_FILL.where(_ROW.c.agent_id.in_(agent_ids)))
            last = agent_ids[-1]


def _next(connection: Connection, last: object) -> list[object]:
    following = select(_ROW.c.agent_id).where(_TO_FILL).order_by(_ROW.c.agent_id).limit(_ROWS)
    return list(connection.scalars(following if last is None else following.where(_ROW.c.agent_id > last)))


def downgrade() -> None:
    """Keep the values: those of `ended_at` go with the column, and schema 1 knows the reasons."""
