"""What a storing error says: the server's words, where the server is, and the remedy. Never a password or row data."""

from __future__ import annotations

import re
from typing import Any, Final

from sqlalchemy import URL

from agentexec_otel._model.text import prepare_message
from agentexec_otel.activity._schema_faults import schema_fault

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


def sqlstate_of_refusal(orig: Any) -> str | None:
    """Return the SQLSTATE of a connection that PostgreSQL has refused, judging by the text. None for other failures."""
    text = str(orig)
    if found := _MISSING.search(text):
        return "3D000" if found[1] == "database" else "28000"
    return next((code for phrase, code in _REFUSALS if phrase in text), None)


def server_words(orig: Any) -> str:
    """Return the primary message of the server or driver, redacted, in one line. Without DETAIL, CONTEXT or SQL."""
    primary = getattr(getattr(orig, "diag", None), "message_primary", None)  # psycopg
    args: tuple[Any, ...] = getattr(orig, "args", ())
    if primary is None and len(args) > 1 and isinstance(args[0], int):  # PyMySQL
        primary = args[1]
    text = str(orig if primary is None else primary).strip()
    first, _, _ = re.sub(r"^.*\bfailed: (?:FATAL: +)?", "", text).partition("\n")
    return prepare_message(first, _LIMIT)


def code_label(code: str) -> str:
    """Name the code as the database's manual does."""
    if code.startswith("SQLITE_"):
        return code
    return f"SQLSTATE {code}" if len(code) == 5 else f"error {code}"


def place_of(url: URL) -> str:
    """Say where the database is, as the end of a clause: file, or server and database, never user or password."""
    if url.get_backend_name() == "sqlite":
        return f" in {url.database}" if url.database else ""
    host = url.host or url.query.get("host") or url.query.get("unix_socket")
    where = f" at {_address(host, url)}" if isinstance(host, str) else ""
    return where + (f', database "{url.database}"' if url.database else "")


def _address(host: str, url: URL) -> str:
    return host if host.startswith("/") else f"{host}:{url.port or _DEFAULT_PORTS[url.get_backend_name()]}"


def remedy(orig: Any, code: str | None) -> str:
    """Say what to change so that activities can be stored."""
    if fault := schema_fault(orig):
        return fault
    return next((words for codes, words in _REMEDIES if (code or "").startswith(codes)), _COMPARE)
