"""Sessions of the caller: which are accepted, statements in them, whether a call commits, and work after the commit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from sqlalchemy import Connection, Engine, Result, Select, event
from sqlalchemy.orm import Session, SessionTransaction, SessionTransactionOrigin, scoped_session, sessionmaker

from agentexec_otel._errors import ConfigurationError
from agentexec_otel._model.text import type_name
from agentexec_otel.activity._schema_faults import schema_faults_named
from agentexec_otel.activity.models import Activity

if TYPE_CHECKING:
    # Its module cannot be imported without greenlet, which synchronous applications need not have.
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

AnySession: TypeAlias = "Session | AsyncSession"
# A Select of many columns, whose exact type is not needed.
AnySelect: TypeAlias = "Select[*tuple[Any, ...]]"

IN_OUR_TABLES: Final = {"mapper": Activity}

_Pending = list[tuple[SessionTransaction | None, Callable[[], object]]]
_KEY = "agentexec_otel.after_commit"


def synchronous(session: Session | AsyncSession | scoped_session[Session]) -> Session:
    """Return the session, or that of a registry. Raises TypeError for anything else."""
    if _is(session, scoped_session):  # such as Flask-SQLAlchemy's db.session
        return cast("scoped_session[Session]", session)()
    if not _is(session, Session):
        raise TypeError(
            f"session must be a sqlalchemy.orm.Session, got {type_name(session)}: with an AsyncSession use"
            " ax.activity.aio"
        )
    return cast(Session, session)


def engine_of(source: Engine | Session | scoped_session[Session]) -> Engine:
    """Return the engine, or that of a session, for transactions of our own.

    Raises:
        TypeError: Neither an engine nor a session.
        ConfigurationError: The session, or the connection that it is bound to, is in a transaction.
    """
    if _is(source, Engine):
        return cast(Engine, source)
    if not (_is(source, Session) or _is(source, scoped_session)):
        raise TypeError(
            f"engine must be an Engine or a Session, got {type_name(source)}: with an AsyncEngine use ax.activity.aio"
        )
    session = synchronous(cast(Session, source))
    bind = session.get_bind(mapper=Activity)
    if session.in_transaction() or (isinstance(bind, Connection) and bind.in_transaction()):
        raise ConfigurationError(
            "the session is in a transaction, and this call commits its own: commit or roll back first, or pass the"
            " engine"
        )
    return bind.engine


def asynchronous_engine(source: AsyncEngine) -> AsyncEngine:
    """Return the engine. Raises TypeError for anything else."""
    from sqlalchemy.ext.asyncio import AsyncEngine

    if not _is(source, AsyncEngine):
        raise TypeError(
            f"engine must be an AsyncEngine here, got {type_name(source)}: an Engine is for ax.activity itself"
        )
    return source


def session_factory(source: Engine | sessionmaker[Session]) -> Callable[[], Session]:
    """Return what opens sessions of our own. Raises TypeError unless it is an engine or a sessionmaker."""
    if _is(source, Engine):
        return partial(Session, cast(Engine, source))
    if not _is(source, sessionmaker):
        raise TypeError(
            f"source must be an Engine or a sessionmaker, got {type_name(source)}: with an AsyncEngine or an"
            " async_sessionmaker use ax.activity.aio"
        )
    return cast("sessionmaker[Session]", source)


def async_session_factory(source: AsyncEngine | async_sessionmaker[AsyncSession]) -> Callable[[], AsyncSession]:
    """Return what opens sessions of our own. Raises TypeError unless it is for asyncio."""
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

    if _is(source, AsyncEngine):
        return partial(AsyncSession, cast(AsyncEngine, source))
    if not _is(source, async_sessionmaker):
        raise TypeError(
            f"source must be an AsyncEngine or an async_sessionmaker here, got {type_name(source)}: an Engine is for"
            " ax.activity itself"
        )
    return cast("async_sessionmaker[AsyncSession]", source)


def _is(value: object, kind: type) -> bool:
    """Like `isinstance`, by which a proxy of a session is one; False if the object's ``__class__`` raises."""
    try:
        return isinstance(value, kind)
    except Exception:  # noqa: BLE001
        return False


def execute(session: Session, statement: AnySelect, **parameters: object) -> Result[*tuple[Any, ...]]:
    """Run a query's statement in the caller's session, and return the result.

    Raises:
        ConfigurationError: The tables are missing or outdated.
    """
    with schema_faults_named():
        return synchronous(session).execute(statement, parameters, bind_arguments=IN_OUR_TABLES)


def connection_of(session: Session) -> Connection:
    """The session's connection to the database that has our tables."""
    return session.connection(bind_arguments=IN_OUR_TABLES)


def commits_itself(session: Session) -> bool:
    """Whether a call must commit: neither the transaction nor a savepoint was begun explicitly by the caller."""
    transaction = session.get_transaction()
    if transaction is None:
        return True
    return transaction.origin is SessionTransactionOrigin.AUTOBEGIN and not session.in_nested_transaction()


def may_hold_locks(session: Session) -> bool:
    """Whether the writer may wait for the session's transaction: it has written activities, or anything on SQLite."""
    if session.get_transaction() is None:
        return False
    if session.info.get(_KEY):
        return True
    connection = connection_of(session)
    driver: Any = connection.connection.driver_connection
    return connection.dialect.name == "sqlite" and bool(driver.in_transaction)


def finish(session: Session, work: Callable[[], object], *, commits: bool) -> None:
    """Commit if the call has to, and do `work` after the commit. Do nothing after a rollback, also of a savepoint."""
    if commits:
        session.commit()
        work()
        return
    pending: _Pending | None = session.info.get(_KEY)
    if pending is None:
        pending = session.info[_KEY] = []
        event.listen(session, "after_commit", _committed)
        event.listen(session, "after_transaction_end", _ended)
    pending.append((_innermost(session), work))


def _innermost(session: Session) -> SessionTransaction | None:
    return session.get_nested_transaction() or session.get_transaction()


def _committed(session: Session) -> None:
    pending: _Pending = session.info[_KEY]
    done = _innermost(session)
    if done is not None and done.nested:
        # A savepoint was released: its work now depends on the enclosing transaction.
        pending[:] = [(done.parent if within is done else within, work) for within, work in pending]
        return
    works = [work for within, work in pending if within is done]
    pending.clear()
    for work in works:
        work()


def _ended(session: Session, transaction: SessionTransaction) -> None:
    pending: _Pending = session.info[_KEY]
    pending[:] = [(within, work) for within, work in pending if within is not transaction]
