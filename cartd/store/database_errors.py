"""Translate database errors: unavailable (transient or permanent), or rejected because of the data.

Strategy: every error that the environment can cause counts as "unavailable": callers wait, and no
cart fails because of it.  Only errors caused by the data themselves (PostgreSQL's classes 22, 23
and 54) would recur with the same data.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from sqlalchemy import URL
from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    IntegrityError,
    NotSupportedError,
    ProgrammingError,
    StatementError,
)

from cartd.errors import DatabaseUnavailable, StatementRejected
from cartd.permissions import this_user, user_name

_DATA_ERROR_CLASSES = ("22", "23", "54")
"""Classes of SQLSTATE: data exceptions, violated constraints, limits of rows and indexes."""
_SEQUENCE_EXHAUSTED = "2200H"
"""In class 22, but not caused by the data."""
_DATA_ERRORS = (DataError, IntegrityError, NotSupportedError, ProgrammingError)
_PERMANENT = ("0A", "28", "3D", "3F", "42")
"""Classes of SQLSTATE that need an administrator: privileges, names, unsupported features."""
_PERMANENT_MESSAGE = re.compile(
    r"password authentication failed|no password supplied|no pg_hba\.conf entry"
    r"|(Peer|Ident|GSSAPI|LDAP|PAM|certificate) authentication failed"
    r'|(role|database|user) "[^"]*" does not exist|is not permitted to log in'
    r"|permission denied|no such (user|database)|auth failed|wrong password"
    r"|SASL authentication failed|invalid value|invalid sslmode|invalid integer value"
    r"|unsupported startup parameter|server does not support SSL|certificate verify failed",
    re.IGNORECASE,
)
"""Messages of libpq for a rejected connection, for which it has no SQLSTATE."""
_TOO_MANY_CONNECTIONS = re.compile(
    r"too many (connections|clients)|connection slots are reserved|no more connections allowed"
    r"|query_wait_timeout",
    re.IGNORECASE,
)


def translate_error(
    error: BaseException, connections_note: str = ""
) -> DatabaseUnavailable | StatementRejected | None:
    """Return the exception to raise for a database error; None for any other error.

    ``connections_note`` is appended if the server has too few connections.
    """
    if not isinstance(error, StatementError):
        return None
    if not isinstance(error, DBAPIError):
        return StatementRejected(type(error.orig).__name__)
    code = getattr(error.orig, "sqlstate", None)
    lines = str(error.orig).strip().splitlines()
    reason = lines[0].strip() if lines else "no answer"
    if not is_disconnect(error) and _is_data_error(error, code):
        return StatementRejected(f"{type(error.orig).__name__}{f' {code}' if code else ''}")
    if connections_note and _TOO_MANY_CONNECTIONS.search(reason):
        reason = f"{reason}; {connections_note}"
    if code is None:
        message = str(error.orig)
        is_permanent = bool(_PERMANENT_MESSAGE.search(message)) and not re.search(
            "refused|timeout", message
        )
    else:
        is_permanent = code[:2] in _PERMANENT
    return DatabaseUnavailable(reason, transient=not is_permanent)


def is_disconnect(error: BaseException) -> bool:
    """Whether the error means that the connection is lost; a new one may succeed."""
    return isinstance(error, DBAPIError) and error.connection_invalidated


def _is_data_error(error: DBAPIError, code: str | None) -> bool:
    if code is None:
        return isinstance(error, _DATA_ERRORS)
    return code[:2] in _DATA_ERROR_CLASSES and code != _SEQUENCE_EXHAUSTED


def with_file_reason(unavailable: DatabaseUnavailable, url: URL) -> DatabaseUnavailable:
    """Add why the SQLite file of ``url`` cannot be accessed, if that can be found out."""
    if url.get_backend_name() != "sqlite" or not url.database:
        return unavailable
    path = Path(url.database).absolute()
    if not path.parent.is_dir():
        return DatabaseUnavailable(f"{unavailable.reason}: {path.parent} is not a directory")
    for needed in (path.parent, path, *(Path(f"{path}{end}") for end in ("-wal", "-shm"))):
        wanted = os.W_OK | (os.X_OK if needed == path.parent else os.R_OK)
        effective = os.access in os.supports_effective_ids
        if needed.exists() and not os.access(needed, wanted, effective_ids=effective):
            return DatabaseUnavailable(
                f"{needed}: permission denied ({_ownership(needed)})", transient=False
            )
    return unavailable


def _ownership(path: Path) -> str:
    if sys.platform == "win32":
        return "check its permissions"
    found = path.stat()
    return (
        f"owner {user_name(found.st_uid)}, mode {found.st_mode & 0o7777:o};"
        f" cartd runs as {this_user()}"
    )
