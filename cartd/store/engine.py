"""SQLAlchemy engines for a database URL; creating one does not connect.

Engines have no pool: the caller keeps its connection or closes it for good.  On SQLite every
transaction is begun explicitly: the driver would begin one only at the first write, so DDL would
run outside it, and of two writers that had both read neither could continue.  A persistent
connection to a file that was removed or replaced would write to the unlinked file, so every
transaction checks the file's identity; only the schema's engine creates a missing file.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError
from sqlalchemy.pool import NullPool

from cartd.errors import ConfigError
from cartd.store import postgresql

BUSY_TIMEOUT = 30.0
"""Seconds to wait for a lock held by another program."""


OLDEST_SQLITE = (3, 33)
"""The first version with UPDATE ... FROM; window functions and partial indexes are older."""


def reading_engine(url: str) -> Engine:
    """Return an engine for single queries; on SQLite in autocommit mode."""
    engine = _engine(url, isolation_level="AUTOCOMMIT")
    _prepare(engine)
    return engine


def writing_engine(url: str) -> Engine:
    """Return an engine for transactions; on SQLite each takes the write lock when it begins."""
    if parse(url).get_backend_name() == "postgresql":
        return reading_engine(url)  # each query is a transaction
    engine = _engine(url)
    _prepare(engine)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "begin", _begin_on_same_file)
    return engine


def schema_engine(url: str) -> Engine:
    """Return an engine for schema changes: DDL is transactional, foreign keys are not enforced.

    SQLite alters a table by replacing it, and foreign keys dangle meanwhile.
    """
    engine = _engine(url)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "begin", _begin_immediate)
    return engine


def _engine(url: str, **options: Any) -> Engine:
    parsed = parse(url)
    try:
        parsed, arguments = _connect_arguments(parsed)
        return create_engine(parsed, poolclass=NullPool, connect_args=arguments, **options)
    except NoSuchModuleError as error:
        raise ConfigError(
            f"database url: databases of the kind {parsed.drivername!r} are not supported"
        ) from error
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"database url: {parsed.drivername!r} needs the Python package {error.name!r}:"
            " pip install 'cartd[postgresql]'"
        ) from error


def parse(url: str) -> URL:
    """Return the parsed ``url``; raises ``ConfigError`` if it is invalid."""
    try:
        return make_url(url)
    except (ArgumentError, ValueError) as error:
        # The URL may contain a password: do not repeat it.
        raise ConfigError("database url: not a valid SQLAlchemy URL") from error


def _connect_arguments(url: URL) -> tuple[URL, dict[str, Any]]:
    if url.get_backend_name() == "sqlite":
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            raise ConfigError(
                f"database url: this Python has SQLite {sqlite3.sqlite_version}, and cartd needs"
                f" {'.'.join(map(str, OLDEST_SQLITE))} or later"
            )
        return url, {"timeout": BUSY_TIMEOUT}
    if url.get_backend_name() == "postgresql":
        return postgresql.connect_arguments(url)
    return url, {}


def _prepare(engine: Engine) -> None:
    """Prepare an engine for persistent connections."""
    if engine.dialect.name == "sqlite":
        event.listen(engine, "do_connect", _require_file)
        event.listen(engine, "connect", _prepare_sqlite)
    else:
        event.listen(engine, "begin", _begin_postgresql)


def _require_file(_dialect: object, _record: object, args: list[Any], options: Any) -> None:
    if not options.get("uri") and args[0] != ":memory:":
        args[0] = f"{Path(args[0]).absolute().as_uri()}?mode=rw"
        options["uri"] = True


def _prepare_sqlite(connection: Any, record: Any) -> None:
    connection.execute("PRAGMA journal_mode = WAL").close()
    # Commits survive a power failure; some builds of SQLite default to less.
    connection.execute("PRAGMA synchronous = FULL").close()
    connection.execute("PRAGMA foreign_keys = ON").close()
    record.info["file"] = file = connection.execute("PRAGMA database_list").fetchone()[2]
    record.info["identity"] = _identity(file)


def _begin_postgresql(connection: Any) -> None:
    # In autocommit mode the driver begins no transaction itself, but ends an open one.
    connection.exec_driver_sql(postgresql.begin(BUSY_TIMEOUT))


def _begin_on_same_file(connection: Any) -> None:
    if _identity(connection.info["file"]) != connection.info["identity"]:
        removed = sqlite3.OperationalError("its file was removed or replaced")
        raise OperationalError("BEGIN", None, removed, connection_invalidated=True)
    _begin_immediate(connection)


def _begin_immediate(connection: Any) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _identity(file: str) -> tuple[int, int] | None:
    """Return device and inode of the file; None if it does not exist."""
    try:
        found = Path(file).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
