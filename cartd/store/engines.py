"""SQLAlchemy engines for a database's URL: opening one connects to nothing.

No pool: who opens a connection keeps it, or closes it for good.  On SQLite every transaction is
begun in so many words: the driver begins one only at the first write, so that DDL would stand
outside, and two writers who had both read could neither go on.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InterfaceError,
    NoSuchModuleError,
    OperationalError,
)
from sqlalchemy.pool import NullPool

from cartd.errors import ConfigError, Unavailable

BUSY_TIMEOUT = 30.0
"""Seconds that SQLite waits for another process that writes."""
LIBPQ_DEFAULTS = {
    "connect_timeout": 10,
    # A host that vanished without a word is noticed within a minute, not after two hours.
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
}


def reading_engine(url: str) -> Engine:
    """For single queries: each stands for itself, so no transaction is begun or ended."""
    engine = _engine(url, isolation_level="AUTOCOMMIT")
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
    return engine


def writing_engine(url: str) -> Engine:
    """For transactions; on SQLite each one holds the write lock from its first moment."""
    engine = _engine(url)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_immediate)
    return engine


def schema_engine(url: str) -> Engine:
    """For changes of the schema: DDL is part of the transaction, foreign keys are not enforced.

    SQLite changes a table by making another in its place, during which keys point nowhere.
    """
    engine = _engine(url)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "begin", _begin_immediate)
    return engine


def explained(error: BaseException) -> Unavailable | None:
    """What to tell of an error that another try may cure: the database is away, or busy."""
    if isinstance(error, OperationalError | InterfaceError) or (
        isinstance(error, DBAPIError) and error.connection_invalidated
    ):
        lines = str(error.orig).strip().splitlines()
        return Unavailable(f"The database cannot be used: {lines[0] if lines else 'no answer'}")
    return None


def _engine(url: str, **options: Any) -> Engine:
    parsed = parse(url)
    try:
        return create_engine(
            parsed, poolclass=NullPool, connect_args=_connect_args(parsed), **options
        )
    except NoSuchModuleError as error:
        raise ConfigError(
            f"database url: databases of the kind {parsed.drivername!r} are not supported"
        ) from error
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"database url: {parsed.drivername!r} needs the Python package {error.name!r}"
        ) from error


def parse(url: str) -> URL:
    """The parts of ``url``; raises ``ConfigError`` if it is none."""
    try:
        return make_url(url)
    except (ArgumentError, ValueError) as error:
        # The text may hold a password: do not repeat it.
        raise ConfigError("database url: not a URL as SQLAlchemy reads it") from error


def _connect_args(url: URL) -> dict[str, Any]:
    if url.get_backend_name() == "sqlite":
        return {"timeout": BUSY_TIMEOUT}
    if url.get_backend_name() == "postgresql":
        return {key: value for key, value in LIBPQ_DEFAULTS.items() if key not in url.query}
    return {}


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.execute("PRAGMA journal_mode = WAL").close()
    connection.execute("PRAGMA foreign_keys = ON").close()


def _begin_immediate(connection: Any) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
