"""What the blocks of the activity page take for granted."""

from typing import Any
from uuid import UUID

import pytest
from sqlalchemy.orm import Session

import agentexec_otel as ax
from tests.databases import Database


@pytest.fixture
def names(database: Database) -> dict[str, Any]:
    """The names that the page uses without defining them, on a configured and empty database."""
    ax.configure(database.url)
    return {"ax": ax, "engine": database.engine, "Session": Session, "UUID": UUID}
