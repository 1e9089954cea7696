"""Runs a query's statement in the caller's session."""

from __future__ import annotations

from typing import Any, Final, TypeAlias

from sqlalchemy import Result, Select
from sqlalchemy.orm import Session

from agentexec_otel.activity._schema_faults import schema_faults_named
from agentexec_otel.activity._sessions import synchronous
from agentexec_otel.activity.models import Activity

# A Select of many columns, whose exact type is not needed.
AnySelect: TypeAlias = "Select[*tuple[Any, ...]]"

IN_OUR_TABLES: Final = {"mapper": Activity}


def execute(session: Session, statement: AnySelect, **parameters: object) -> Result[*tuple[Any, ...]]:
    """Return the result.

    Raises:
        ConfigurationError: The tables are missing or outdated.
    """
    with schema_faults_named():
        return synchronous(session).execute(statement, parameters, bind_arguments=IN_OUR_TABLES)
