"""PostgreSQL by psycopg: what a connection is opened with, and what a transaction begins with.

Strategy: nothing is set or prepared for as long as a connection lasts.  A pooler in transaction
mode (PgBouncer) gives each transaction any of its server connections: what is set once would be
lost, or reach strangers, and a prepared statement's name may be another program's statement.  So
every limit is set with the statement that begins a transaction, and ends with it.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from selectors import EVENT_READ, DefaultSelector
from typing import Any, NamedTuple

from sqlalchemy import URL, Engine

from cartd.errors import ConfigError

IDLE_TIMEOUT = 15.0
"""Seconds for which a transaction may stand still before the server ends it: a process that was
stopped, or a host that has gone, in the middle of one would keep its locks from all others."""
CONNECT_TIMEOUT = 10
"""Seconds that connecting to one host may take, unless the URL says otherwise."""
LIBPQ_DEFAULTS = {
    "connect_timeout": CONNECT_TIMEOUT,
    # A host that vanished without a word is noticed within a minute, not after two hours.
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
_RESERVED = frozenset({"autocommit", "context", "cursor_factory", "row_factory"})
"""Parameters of psycopg.connect() that are values of Python, and ours to choose."""


def begin(lock_timeout: float) -> str:
    """The statement that begins a transaction, with limits (in seconds) that end with it."""
    return (
        f"BEGIN; SET LOCAL lock_timeout = {lock_timeout * 1000:.0f};"
        f" SET LOCAL idle_in_transaction_session_timeout = {IDLE_TIMEOUT * 1000:.0f}"
    )


def connect_arguments(url: URL) -> tuple[URL, dict[str, Any]]:
    """The URL and the keyword arguments to connect with.

    Raises ``ConfigError`` for a parameter that libpq does not know; values are never shown.
    """
    import psycopg  # here and not above: SQLite does without
    from psycopg.conninfo import make_conninfo

    if own := sorted(_RESERVED & url.query.keys()):
        raise ConfigError(f"database url: {own[0]} cannot be chosen; leave it out")
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
    """Where a connection leads to: of several hosts, or addresses of one name, the one in use."""

    host: str
    address: str
    """Empty for a socket of this machine."""
    port: int


def server_of(driver: Any) -> Server:
    """Of an open connection of psycopg's."""
    return Server(driver.info.host, driver.info.hostaddr, driver.info.port)


def connect_timeout(engine: Engine) -> float:
    """Seconds after which an attempt to connect to one host is given up; psycopg takes no less."""
    return max(2, int(_parameters(engine)["connect_timeout"]))


def probe(engine: Engine, server: Server) -> None:
    """Connect anew to ``server`` alone, and leave; blocking.

    Raises ``TimeoutError`` if it says nothing; that it refuses is an answer, too.  Nothing is asked
    of it: in a pooler that would wait for what is under way.
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
    """How many of ``wanted`` connections answer while all of them are open; blocking.

    A server has limits of them, also for one role, and a pooler in session mode lets those wait
    for which it has none.
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
    """The keyword arguments by which ``engine`` connects."""
    _, parameters = engine.dialect.create_connect_args(engine.url)
    return {**LIBPQ_DEFAULTS, **parameters}


def _threshold(url: URL) -> int | None:
    """After how many uses psycopg prepares a statement; none: never, as poolers need it."""
    written = url.query.get("prepare_threshold", "none")
    if isinstance(written, str):
        if written.lower() in ("", "none"):
            return None
        if written.isascii() and written.isdecimal() and len(written) < 10:
            # 0 would prepare what begins a transaction, which is more than one statement.
            return max(1, int(written))
    raise ConfigError("database url: prepare_threshold is neither a whole number nor none")
