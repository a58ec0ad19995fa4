"""SQLAlchemy engines for a database URL, and how they connect to SQLite and to PostgreSQL.

Creating an engine does not connect.  Engines have no pool: the caller keeps its connection or
closes it for good.

On SQLite every transaction is begun explicitly: the driver would begin one only at the first write,
so DDL would run outside it, and of two writers that had both read neither could continue.  A
persistent connection to a file that was removed or replaced would write to the unlinked file, so
every transaction checks the file's identity; only the schema's engine creates a missing file.

On PostgreSQL, by psycopg, there is no session state.  A pooler in transaction mode (PgBouncer) runs
each transaction on any of its server connections: a setting would be lost or affect other clients,
and a prepared statement's name may belong to another program.  So every limit is set by the
statement that begins a transaction, and ends with it.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import ExitStack
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from typing import Any, NamedTuple

from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError
from sqlalchemy.pool import NullPool

from cartd.errors import ConfigError

BUSY_TIMEOUT = 30.0
"""Seconds to wait for a lock held by another program."""
BUSY_PAUSE = 0.01
OLDEST_SQLITE = (3, 33)
"""The first version with UPDATE ... FROM; window functions and partial indexes are older."""
IDLE_TIMEOUT = 15.0
"""Seconds after which PostgreSQL ends an idle transaction: a stopped process or a host that
vanished would otherwise hold its locks for ever."""
CONNECT_TIMEOUT = 10
"""Seconds that connecting to one host may take, unless the URL sets another value."""
LIBPQ_DEFAULTS = {
    "connect_timeout": CONNECT_TIMEOUT,
    # Detect a vanished host within a minute, not after two hours.
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
_RESERVED = frozenset({"autocommit", "context", "cursor_factory", "row_factory"})
"""Parameters of psycopg.connect() that take Python objects, and are set by cartd."""


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
        return _postgresql_arguments(url)
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
    _set_wal(connection)
    # Commits survive a power failure; some builds of SQLite default to less.
    connection.execute("PRAGMA synchronous = FULL").close()
    connection.execute("PRAGMA foreign_keys = ON").close()
    record.info["file"] = file = connection.execute("PRAGMA database_list").fetchone()[2]
    record.info["identity"] = _identity(file)


def _set_wal(connection: Any) -> None:
    """Set WAL mode, which a file keeps.

    The change needs the file for a moment, and SQLite fails at once, in spite of its timeout, if
    another connection begins to write or changes the mode, too.
    """
    deadline = time.monotonic() + BUSY_TIMEOUT
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").close()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        else:
            return
        time.sleep(BUSY_PAUSE)


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


def _postgresql_arguments(url: URL) -> tuple[URL, dict[str, Any]]:
    """Return the URL and the keyword arguments to connect with.

    Raises ``ConfigError`` for a parameter that libpq does not know; values are never shown.
    """
    import psycopg  # imported where it is used: not needed for SQLite
    from psycopg.conninfo import make_conninfo

    if own := sorted(_RESERVED & url.query.keys()):
        raise ConfigError(f"database url: {own[0]} cannot be set; remove it")
    threshold = _threshold(url)
    plain = url.difference_update_query(["prepare_threshold"])
    try:
        make_conninfo("", **dict.fromkeys(plain.query, "x"))
    except psycopg.ProgrammingError as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"database url: {reason}") from error
    defaults = {key: value for key, value in LIBPQ_DEFAULTS.items() if key not in plain.query}
    timeout = plain.query.get("connect_timeout", "0")
    if not (isinstance(timeout, str) and timeout.isascii() and timeout.isdecimal()):
        raise ConfigError("database url: connect_timeout is not a whole number of seconds")
    return plain, {**defaults, "prepare_threshold": threshold}


def _threshold(url: URL) -> int | None:
    """Return after how many uses psycopg prepares a statement; None: never, as poolers need it."""
    written = url.query.get("prepare_threshold", "none")
    if isinstance(written, str):
        if written.lower() in ("", "none"):
            return None
        if written.isascii() and written.isdecimal() and len(written) < 10:
            # 0 would prepare the BEGIN, which is more than one statement.
            return max(1, int(written))
    raise ConfigError("database url: prepare_threshold is neither a whole number nor none")


def _begin_postgresql(connection: Any) -> None:
    # In autocommit mode the driver begins no transaction itself, but ends an open one.
    connection.exec_driver_sql(
        f"BEGIN; SET LOCAL lock_timeout = {BUSY_TIMEOUT * 1000:.0f};"
        f" SET LOCAL idle_in_transaction_session_timeout = {IDLE_TIMEOUT * 1000:.0f}"
    )


class Server(NamedTuple):
    """The server of a connection: with several hosts or addresses, the one in use."""

    host: str
    address: str
    """Empty for a Unix socket."""
    port: int


def server_of(driver: Any) -> Server:
    """Return the server of an open psycopg connection."""
    return Server(driver.info.host, driver.info.hostaddr, driver.info.port)


def connect_timeout(engine: Engine) -> float:
    """Return the connect timeout for one host of PostgreSQL in seconds; psycopg's minimum is 2."""
    return max(2, int(_parameters(engine)["connect_timeout"]))


def probe(engine: Engine, server: Server) -> None:
    """Connect to the PostgreSQL ``server`` and disconnect; blocking.

    Raises ``TimeoutError`` if there is no answer; a rejection is an answer.  No query is sent: in a
    pooler it would wait for running transactions.
    """
    import psycopg

    there = {"host": server.host, "port": server.port, "hostaddr": server.address or None}
    parameters = {**_parameters(engine), **there, "target_session_attrs": None}
    try:
        psycopg.connect(**parameters).close()
    except psycopg.errors.ConnectionTimeout:
        raise TimeoutError from None
    except psycopg.Error:
        pass


def available_connections(engine: Engine, wanted: int, within: float) -> int:
    """Return how many of ``wanted`` connections answer while all of them are open; blocking.

    Servers and roles of PostgreSQL have connection limits, and a pooler in session mode lets
    further clients wait.
    """
    import psycopg

    with ExitStack() as opened, DefaultSelector() as waiting:
        for _ in range(wanted):
            try:
                connection = psycopg.connect(**_parameters(engine), autocommit=True)
            except psycopg.Error:
                break
            opened.callback(connection.close)
            connection.pgconn.send_query(b"SELECT 1")
            waiting.register(connection.fileno(), EVENT_READ)
        answered, end = 0, time.monotonic() + within
        while waiting.get_map() and (left := end - time.monotonic()) > 0:
            for key, _ in waiting.select(left):
                waiting.unregister(key.fileobj)
                answered += 1
        return answered


def _parameters(engine: Engine) -> dict[str, Any]:
    """Return the keyword arguments with which ``engine`` connects."""
    _, parameters = engine.dialect.create_connect_args(engine.url)
    return {**LIBPQ_DEFAULTS, **parameters}
