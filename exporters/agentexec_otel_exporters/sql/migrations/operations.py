"""What several revisions do."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from alembic import op


def short_transactions() -> AbstractContextManager[None]:
    """Commit each statement by itself, so that no lock is held for long. SQLite has one lock, which we hold anyway."""
    context = op.get_context()
    return nullcontext() if context.dialect.name == "sqlite" else context.autocommit_block()
