"""Translates driver errors into `ExportError`s."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy import URL
from sqlalchemy import exc as sa_exc

from agentexec_otel._errors import (
    ExportError,
    MisconfiguredExportError,
    PoisonExportError,
    TransientExportError,
)
from agentexec_otel._model.text import prepare_message
from agentexec_otel.activity._schema_faults import error_code, schema_fault

# Prefixes of SQLSTATEs (PostgreSQL) and of SQLite's result names, and error numbers of MySQL and MariaDB.
_PREFIXES: Final[dict[type[ExportError], tuple[str, ...]]] = {
    TransientExportError: (
        "08", "0A000", "25006", "25P03", "26000", "40001", "40P01", "42P05", "53", "55", "57014", "57P0", "58",
        "SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_FULL", "SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CANTOPEN",
        "SQLITE_PROTOCOL",
    ),
    # Class 42 is about tables, columns, types and rights, never about a value.
    MisconfiguredExportError: ("28", "3D000", "3F000", "42", "XX001", "XX002"),
    PoisonExportError: (
        "22", "23502", "23514", "SQLITE_CONSTRAINT_CHECK", "SQLITE_CONSTRAINT_NOTNULL", "SQLITE_CONSTRAINT_TRIGGER",
        "SQLITE_TOOBIG",
    ),
}  # fmt: skip
_NUMBERS: Final[dict[type[ExportError], tuple[int, ...]]] = {
    TransientExportError: (
        3, 1015, 1020, 1021, 1026, 1030, 1037, 1038, 1040, 1041, 1047, 1053, 1114, 1135, 1158, 1159, 1160, 1161, 1180,
        1203, 1205, 1206, 1207, 1213, 1223, 1226, 1290, 1297, 1317, 1412, 1461, 1615, 1637, 1689, 1792, 1836, 1874,
        1927, 1969, 2002, 2003, 2006, 2013, 3024, 4031,
    ),
    MisconfiguredExportError: (
        1016, 1017, 1034, 1035, 1036, 1044, 1045, 1049, 1054, 1129, 1130, 1142, 1143, 1146, 1194, 1195, 1227, 1449,
        1665, 1698, 1712, 1812, 1814, 1820, 1862, 1877, 1932, 3118, 4151,
    ),
    PoisonExportError: (1048, 1264, 1366, 1406, 4025),
}  # fmt: skip


@contextmanager
def translated(url: URL) -> Generator[None]:
    """Raise an `ExportError` of the right class in place of exceptions of SQLAlchemy and the drivers.

    Args:
        url: Where the database is, for the text.
    """
    try:
        yield
    except (sa_exc.SQLAlchemyError, OSError, UnicodeError, OverflowError, TypeError) as exc:
        raise classify(exc, url) from exc


def classify(exc: BaseException, url: URL) -> ExportError:
    """Return the `ExportError` whose class says what to do about `exc`, and whose text says what is wrong and where.

    The server's words are included if it refuses a connection, a table or a right. Other words may quote a value.
    """
    orig: Any = getattr(exc, "orig", None)
    if isinstance(orig, (UnicodeError, OverflowError, TypeError, ValueError)):
        return PoisonExportError(f"a value cannot be stored ({type(orig).__name__})")
    if isinstance(exc, (UnicodeError, OverflowError, TypeError)):
        return PoisonExportError(f"a value cannot be stored ({type(exc).__name__})")
    if isinstance(exc, OSError | sa_exc.TimeoutError | sa_exc.DisconnectionError):
        return TransientExportError(f"the database is not reachable ({type(exc).__name__}){_place_of(url)}")
    # Without a statement it was connecting or committing.
    bare = isinstance(exc, sa_exc.DBAPIError) and exc.statement is None
    kind, code = _kind(exc, orig), error_code(orig) or (_sqlstate_of_refusal(orig) if bare else None)
    label = ", ".join((type(orig if orig is not None else exc).__name__, *((_code_label(code),) if code else ())))
    if kind is MisconfiguredExportError or (code or "").startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY")):
        return (kind or ExportError)(f"{_server_words(orig)} ({label}){_place_of(url)}", remedy=_remedy(orig, code))
    if kind is PoisonExportError:
        return PoisonExportError(f"the database refuses a value ({label})")
    said = f": {_server_words(orig)}" if bare else ""
    summary = "the database is away or busy" if kind else "the database answered with an error"
    return (kind or ExportError)(f"{summary}{said} ({label}){_place_of(url)}")


def is_unique_violation(exc: sa_exc.IntegrityError) -> bool:
    """Whether the event or the activity is stored already."""
    orig: Any = exc.orig
    return error_code(orig) in ("23505", "1062", "SQLITE_CONSTRAINT_UNIQUE", "SQLITE_CONSTRAINT_PRIMARYKEY")


def is_denied(exc: sa_exc.DBAPIError) -> bool:
    """Whether the user lacks a right on a table."""
    return error_code(exc.orig) in ("42501", "1142")


def _kind(exc: BaseException, orig: Any) -> type[ExportError] | None:
    code, kind = error_code(orig), _kind_of_code(orig)
    if getattr(exc, "connection_invalidated", False) and kind is not MisconfiguredExportError:
        return TransientExportError
    if kind is not None:
        return kind
    if code is None and isinstance(exc, sa_exc.OperationalError | sa_exc.InterfaceError):
        return TransientExportError if _sqlstate_of_refusal(orig) is None else MisconfiguredExportError
    if isinstance(exc, sa_exc.OperationalError) and exc.statement is None:
        return TransientExportError  # while connecting or committing: not the fault of an event
    if isinstance(exc, sa_exc.StatementError) and not isinstance(exc, sa_exc.DBAPIError):
        return PoisonExportError
    return None


def _kind_of_code(orig: Any) -> type[ExportError] | None:
    code = error_code(orig)
    if code is None:
        return None
    if schema_fault(orig) is not None:
        return MisconfiguredExportError
    if code.isdigit() and len(code) != 5:
        return next((kind for kind, numbers in _NUMBERS.items() if int(code) in numbers), None)
    return next((kind for kind, prefixes in _PREFIXES.items() if code.startswith(prefixes)), None)


# -- the words: the server's, where it is, and the remedy; never a password or row data -------------------------------

_LIMIT: Final = 300
_DEFAULT_PORTS: Final = {"postgresql": 5432, "mysql": 3306, "mariadb": 3306}

_REFUSALS: Final = (
    ("password authentication failed", "28P01"),
    ("no pg_hba.conf entry", "28000"),
    ("authentication failed", "28000"),
    ("permission denied", "42501"),
)
_MISSING: Final = re.compile(r'(database|role) "[^"]*" does not exist')
"""What PostgreSQL says while it refuses to connect, and its SQLSTATE, which libpq does not pass on."""

_REMEDIES: Final = (
    (("3D000", "1049"), "create it, or correct the database's name in the URL"),
    (("28000", "28P01", "1045", "1698"), "correct the user or the password in the URL, or let the server admit them"),
    (("1044",), "correct the database's name in the URL, or grant the user its rights"),
    (("42501", "1142", "1143"), "grant the user SELECT, INSERT, UPDATE and DELETE on the tables"),
    (("SQLITE_CANTOPEN",), "check that its folder exists and may be written to"),
    (("SQLITE_READONLY",), "check its rights, and those of its folder"),
)
_COMPARE: Final = "compare the tables with this version: agentexec-otel db check"


def _sqlstate_of_refusal(orig: Any) -> str | None:
    """Return the SQLSTATE of a connection that PostgreSQL has refused, judging by the text. None for other failures."""
    text = str(orig)
    if found := _MISSING.search(text):
        return "3D000" if found[1] == "database" else "28000"
    return next((code for phrase, code in _REFUSALS if phrase in text), None)


def _server_words(orig: Any) -> str:
    """Return the primary message of the server or driver, redacted, in one line. Without DETAIL, CONTEXT or SQL."""
    primary = getattr(getattr(orig, "diag", None), "message_primary", None)  # psycopg
    args: tuple[Any, ...] = getattr(orig, "args", ())
    if primary is None and len(args) > 1 and isinstance(args[0], int):  # PyMySQL
        primary = args[1]
    text = str(orig if primary is None else primary).strip()
    first, _, _ = re.sub(r"^.*\bfailed: (?:FATAL: +)?", "", text).partition("\n")
    return prepare_message(first, _LIMIT)


def _code_label(code: str) -> str:
    """Name the code as the database's manual does."""
    if code.startswith("SQLITE_"):
        return code
    return f"SQLSTATE {code}" if len(code) == 5 else f"error {code}"


def _place_of(url: URL) -> str:
    """Say where the database is, as the end of a clause: file, or server and database, never user or password."""
    if url.get_backend_name() == "sqlite":
        return f" in {url.database}" if url.database else ""
    host = url.host or url.query.get("host") or url.query.get("unix_socket")
    where = f" at {_address(host, url)}" if isinstance(host, str) else ""
    return where + (f', database "{url.database}"' if url.database else "")


def _address(host: str, url: URL) -> str:
    return host if host.startswith("/") else f"{host}:{url.port or _DEFAULT_PORTS[url.get_backend_name()]}"


def _remedy(orig: Any, code: str | None) -> str:
    """Say what to change so that activities can be stored."""
    if fault := schema_fault(orig):
        return fault
    return next((words for codes, words in _REMEDIES if (code or "").startswith(codes)), _COMPARE)
