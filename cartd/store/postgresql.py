"""PostgreSQL by psycopg: connection parameters, and the statement that begins a transaction.

Strategy: no session state.  A pooler in transaction mode (PgBouncer) runs each transaction on any
of its server connections: a setting would be lost or affect other clients, and a prepared
statement's name may belong to another program.  So every limit is set by the statement that begins
a transaction, and ends with it.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from selectors import EVENT_READ, DefaultSelector
from typing import Any, NamedTuple

from sqlalchemy import URL, Engine

from cartd.errors import ConfigError

IDLE_TIMEOUT = 15.0
"""Seconds after which the server ends an idle transaction: a stopped process or a host that
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


def begin(lock_timeout: float) -> str:
    """Return the statement that begins a transaction, with limits (in seconds) that end with it."""
    return (
        f"BEGIN; SET LOCAL lock_timeout = {lock_timeout * 1000:.0f};"
        f" SET LOCAL idle_in_transaction_session_timeout = {IDLE_TIMEOUT * 1000:.0f}"
    )


def connect_arguments(url: URL) -> tuple[URL, dict[str, Any]]:
    """Return the URL and the keyword arguments to connect with.

    Raises ``ConfigError`` for a parameter that libpq does not know; values are never shown.
    """
    import psycopg  # imported here: not needed for SQLite
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
    """Return the connect timeout for one host in seconds; psycopg's minimum is 2."""
    return max(2, int(_parameters(engine)["connect_timeout"]))


def probe(engine: Engine, server: Server) -> None:
    """Connect to ``server`` and disconnect; blocking.

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

    Servers and roles have connection limits, and a pooler in session mode lets further clients
    wait.
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
