"""Schema 1: created in an empty database, or made of the tables that are there."""

from alembic import op

from agentexec_otel_exporters.sql.migrations.adopt import adopt
from agentexec_otel_exporters.sql.migrations.schema_1 import METADATA

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the tables, or adopt those of another program."""
    if not op.get_context().as_sql:
        adopt(op.get_bind())
    METADATA.create_all(op.get_bind(), checkfirst=not op.get_context().as_sql)


def downgrade() -> None:
    """Keep the tables: they have the history."""
