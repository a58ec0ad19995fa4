"""SQLAlchemy engines for a database's URL: opening one connects to nothing.

No pool: who opens a connection keeps it, or closes it for good.  On SQLite every transaction is
begun in so many words: the driver begins one only at the first write, so that DDL would stand
outside, and two writers who had both read could neither go on.  A kept connection to a file that
was removed or replaced would go on writing to what nobody finds any more, so each transaction
looks; and only the schema's engine makes a file that is not there.
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
"""Seconds that a database waits for another program that has locked what is to be changed."""


OLDEST_SQLITE = (3, 33)
"""The first that has UPDATE ... FROM; window functions and partial indexes are older."""


def reading_engine(url: str) -> Engine:
    """For single queries.  On SQLite each stands for itself: no transaction is begun or ended."""
    engine = _engine(url, isolation_level="AUTOCOMMIT")
    _prepare(engine)
    return engine


def writing_engine(url: str) -> Engine:
    """For transactions; on SQLite each one holds the write lock from its first moment."""
    if parse(url).get_backend_name() == "postgresql":
        return reading_engine(url)  # each of whose queries is a transaction
    engine = _engine(url)
    _prepare(engine)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "begin", _begin_on_same_file)
    return engine


def schema_engine(url: str) -> Engine:
    """For changes of the schema: DDL is part of the transaction, foreign keys are not enforced.

    SQLite changes a table by making another in its place, during which keys point nowhere.
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
    """The parts of ``url``; raises ``ConfigError`` if it is none."""
    try:
        return make_url(url)
    except (ArgumentError, ValueError) as error:
        # The text may hold a password: do not repeat it.
        raise ConfigError("database url: not a URL as SQLAlchemy reads it") from error


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
    """For connections that are kept."""
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
    # What is committed outlasts a power failure; some builds of SQLite take less for granted.
    connection.execute("PRAGMA synchronous = FULL").close()
    connection.execute("PRAGMA foreign_keys = ON").close()
    record.info["file"] = file = connection.execute("PRAGMA database_list").fetchone()[2]
    record.info["identity"] = _identity(file)


def _begin_postgresql(connection: Any) -> None:
    # The driver, in autocommit mode, would begin none itself; it ends what has begun.
    connection.exec_driver_sql(postgresql.begin(BUSY_TIMEOUT))


def _begin_on_same_file(connection: Any) -> None:
    if _identity(connection.info["file"]) != connection.info["identity"]:
        removed = sqlite3.OperationalError("its file was removed or replaced")
        raise OperationalError("BEGIN", None, removed, connection_invalidated=True)
    _begin_immediate(connection)


def _begin_immediate(connection: Any) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _identity(file: str) -> tuple[int, int] | None:
    """Which file it is; none if there is none."""
    try:
        found = Path(file).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
