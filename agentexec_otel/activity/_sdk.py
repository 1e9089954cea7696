"""What SQLAlchemy keeps private and queries need; `tests/sql/test_sdk.py` checks that it is still there."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from sqlalchemy import BindParameter, ColumnElement


def form_of(clause: ColumnElement[bool]) -> tuple[Hashable, Sequence[BindParameter[object]]] | None:
    """What clauses share that differ in values only, and their parameters in order. None if there is no telling."""
    key = clause._generate_cache_key()  # pyright: ignore[reportPrivateUsage]
    return None if key is None else (key.key, key.bindparams)
