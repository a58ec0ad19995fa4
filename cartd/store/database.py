"""Queries and transactions over the pools of connections, and what happens if they fail.

Strategy for errors: every error that the environment can cause counts as "unavailable", transient
or permanent: callers wait, and no cart fails because of it.  Only errors caused by the data
themselves (PostgreSQL's classes 22, 23 and 54) would recur with the same data.  An outage is logged
once at its start and once at its end.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Executable, Table, bindparam, func, select, text
from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    IntegrityError,
    NotSupportedError,
    ProgrammingError,
    StatementError,
)
from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from cartd.deferreds.threads import DedicatedThread
from cartd.errors import CartdError, DatabaseUnavailable, StatementRejected
from cartd.files import this_user, user_name
from cartd.metrics import UNEXPOSED, Metrics
from cartd.store.connections import Connection, Pool, Watchdog, detach_on_cancel
from cartd.store.engine import (
    Server,
    available_connections,
    connect_timeout,
    parse,
    probe,
    reading_engine,
    writing_engine,
)
from cartd.store.tables import cartsystem

log = Logger()

READERS = 3
CONNECTIONS = READERS + 1
"""Persistent connections: the readers and the writer."""
_CONNECTIONS_NOTE = f"cartd keeps {CONNECTIONS} connections open, and sometimes one more"
# A hash of 64 bits: names that collide only wait for each other.
_ADVISORY_LOCK = select(func.pg_advisory_xact_lock(func.hashtextextended(bindparam("name"), 0)))
_ADVANCE_POSTGRESQL = text(
    "SELECT setval(s, greatest(coalesce(pg_sequence_last_value(s), 0), :last))"
    " FROM (SELECT pg_get_serial_sequence(:name, 'id')::regclass AS s) AS named"
)
_ADVANCE_SQLITE = (
    text(
        "INSERT INTO sqlite_sequence (name, seq) SELECT :name, :last"
        " WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = :name)"
    ),
    text("UPDATE sqlite_sequence SET seq = max(seq, :last) WHERE name = :name"),
)
Rows = Sequence[Any]
Parameters = Mapping[str, Any] | Sequence[Mapping[str, Any]] | None
_WRITERS_ROW = select(cartsystem.c.value).where(cartsystem.c.part == "major").with_for_update()


class Transaction:
    """The statements of one open transaction."""

    def __init__(self, connection: Connection, dialect: str) -> None:
        self._connection = connection
        self._dialect = dialect

    async def execute(self, statement: Executable, parameters: Parameters = None) -> int:
        """Return the number of changed rows."""
        result = await self._connection.execute(statement, parameters)
        return int(result.rowcount)

    async def insert(self, statement: Executable, parameters: Parameters = None) -> int:
        """Return the id of the one inserted row."""
        result = await self._connection.execute(statement, parameters)
        return int(result.inserted_primary_key[0])

    async def rows(self, statement: Executable, parameters: Parameters = None) -> Rows:
        return await self._connection.rows(statement, parameters)

    async def lock_table(self, table: Table) -> None:
        """Lock the table against all other writers until the end; call this first.

        SQLite has a single writer anyway.
        """
        if self._dialect == "postgresql":
            await self._connection.execute(text(f"LOCK TABLE {table.name} IN EXCLUSIVE MODE"))

    async def advance_ids(self, table: Table, last: int) -> None:
        """Make new rows of the table, which is locked, get ids greater than ``last``."""
        parameters = {"name": table.name, "last": last}
        if self._dialect == "postgresql":
            await self._connection.rows(_ADVANCE_POSTGRESQL, parameters)
        else:
            for statement in _ADVANCE_SQLITE:
                await self._connection.execute(statement, parameters)

    async def advisory_lock(self, name: str) -> None:
        """Lock out other transactions that take the lock of this name, until the end.

        Call this before any row is changed.  SQLite has a single writer anyway.
        """
        if self._dialect == "postgresql":
            await self._connection.rows(_ADVISORY_LOCK, {"name": name})


async def lock_writers(transaction: Transaction) -> None:
    """Lock out all other transactions that change rows of several carts, until this one ends.

    Every such transaction must call this first: two that lock the same carts in different orders
    would deadlock.  SQLite has a single writer anyway.
    """
    await transaction.rows(_WRITERS_ROW)


def connection_limit_warning(url: str, within: float = 5.0) -> str | None:
    """Return a warning if the database accepts too few connections, else None; blocking.

    All connections must have answered ``within`` so many seconds.
    """
    engine = reading_engine(url)
    if engine.dialect.name != "postgresql":
        return None
    given = available_connections(engine, CONNECTIONS, within)
    if given == CONNECTIONS:
        return None
    return (
        f"The database answers on {given} of {CONNECTIONS} connections. {_CONNECTIONS_NOTE};"
        " requests and staging will be delayed or fail. Raise the connection limit of the server"
        " or of the role, or PgBouncer's default_pool_size, or set its pool_mode to transaction"
    )


class _Disconnected(DatabaseUnavailable):
    """The connection was lost; a new connection may succeed."""


class Database:
    """A pool of readers and one writer: SQLite allows only one.

    All methods raise ``DatabaseUnavailable`` while the database is unavailable, and work again once
    it is back; ``StatementRejected`` if a retry would fail again.  Outages are logged.
    """

    def __init__(self, url: str, reactor: Any, metrics: Metrics = UNEXPOSED) -> None:
        self._url = parse(url)
        self._read_seconds = metrics.store_seconds.labels("read")
        self._write_seconds = metrics.store_seconds.labels("write")
        self._clock: IReactorTime = reactor
        self._outage = OutageLog(reactor)
        engine = writing_engine(url)
        self._dialect = engine.dialect.name
        self._probe_thread = DedicatedThread(reactor)
        self._engine = engine
        is_remote = self._dialect == "postgresql"
        timeout = connect_timeout(engine) if is_remote else 0
        self._watchdog = Watchdog(reactor, self._probe, timeout)
        self._readers = Pool(reactor, reading_engine(url), READERS, self._watchdog)
        self._writer = Pool(reactor, engine, 1, self._watchdog)

    async def rows(self, statement: Executable, parameters: Parameters = None) -> Rows:
        """Return all rows of one query outside a transaction."""
        began = self._clock.seconds()
        try:
            with self._outage.track("read"):
                try:
                    return await self._read(statement, parameters)
                except _Disconnected:
                    return await self._read(statement, parameters)
        finally:
            self._read_seconds.observe(self._clock.seconds() - began)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Commits at the end; an exception or a cancellation rolls back."""
        began = self._clock.seconds()
        try:
            with self._outage.track("write"):
                async with self._transaction() as transaction:
                    yield transaction
        finally:
            self._write_seconds.observe(self._clock.seconds() - began)

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Transaction]:
        connection, transaction = await self._begin_retrying()
        try:
            yield Transaction(connection, self._dialect)
            await connection.commit(transaction)
        except (CancelledError, CartdError):
            self._roll_back(connection)
            raise
        except BaseException as error:
            self._writer.discard(connection)
            self._raise_if_unavailable(error)
            raise
        self._writer.release(connection)

    @property
    def outage(self) -> str | None:
        """Why the last read or the last write failed; None if neither did."""
        return self._outage.reason

    async def close(self) -> None:
        """Wait for running calls, close all connections and end their threads."""
        await self._readers.close()
        await self._writer.close()
        self._watchdog.stop()

    async def _begin_retrying(self) -> tuple[Connection, Any]:
        """Begin on a live connection; later, a lost one cannot be replaced."""
        try:
            return await self._begin()
        except _Disconnected:
            return await self._begin()

    async def _read(self, statement: Executable, parameters: Parameters) -> Rows:
        connection = await self._acquire(self._readers)

        def finished_late(outcome: object) -> None:
            """The query was cancelled, but has ended all the same."""
            if isinstance(outcome, Failure):
                self._readers.discard(connection)
            else:
                self._readers.release(connection)

        try:
            rows = await detach_on_cancel(
                connection.autocommit_rows(statement, parameters), finished_late
            )
        except CancelledError:
            raise
        except BaseException as error:
            # It may have a cursor open on an old snapshot of the database.
            self._readers.discard(connection)
            self._raise_if_unavailable(error)
            raise
        self._readers.release(connection)
        return rows

    async def _begin(self) -> tuple[Connection, Any]:
        connection = await self._acquire(self._writer)
        try:
            # BEGIN is a round trip, so the connection is known to be alive.
            begun = connection.begin()
            transaction = await detach_on_cancel(begun, lambda _: self._roll_back(connection))
        except CancelledError:
            raise
        except BaseException as error:
            self._writer.discard(connection)
            self._raise_if_unavailable(error)
            raise
        return connection, transaction

    def _roll_back(self, connection: Connection) -> None:
        """Roll back after the running call, then release the connection."""
        connection.rollback().addCallbacks(
            lambda _: self._writer.release(connection),
            lambda _: self._writer.discard(connection),
        )

    async def _acquire(self, pool: Pool) -> Connection:
        try:
            return await pool.acquire()
        except Exception as error:
            self._raise_if_unavailable(error)
            raise

    def _raise_if_unavailable(self, error: BaseException) -> None:
        unavailable = translate_error(error, _CONNECTIONS_NOTE)
        if unavailable is None:
            return
        if isinstance(unavailable, DatabaseUnavailable):
            self._readers.close_idle()
            self._writer.close_idle()
            unavailable = with_file_reason(unavailable, self._url)
            raise (
                _Disconnected(unavailable.reason) if is_disconnect(error) else unavailable
            ) from error
        log.failure("The database rejected a statement", Failure(error))
        raise unavailable from error

    async def _probe(self, server: Server) -> None:
        """Check whether a server answers a new connection."""
        await self._probe_thread.run(probe, self._engine, server)


LOG_INTERVAL = 60.0
"""Minimum seconds between two log lines with a cause."""


class OutageLog:
    """Logs an outage once, for all callers that fail because of it.

    Reads and writes are tracked separately: a full disk or a read-only server stops only writes.
    The outage is over when the last read and the last write have succeeded.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._failing: set[str] = set()
        self._reason = ""
        """The cause that was logged last."""
        self._logged_at: float | None = None
        self._is_logged = False
        """Whether the end of this outage has to be logged."""

    @contextmanager
    def track(self, kind: str) -> Iterator[None]:
        """Track the outcome of the block; ``kind`` is ``read`` or ``write``."""
        try:
            yield
        except DatabaseUnavailable as error:
            self._failed(kind, error)
            raise
        self._worked(kind)

    @property
    def reason(self) -> str | None:
        """The cause of the present outage; None if there is none."""
        return self._reason if self._failing else None

    def _failed(self, kind: str, error: DatabaseUnavailable) -> None:
        is_new = not self._failing
        self._failing.add(kind)
        now = self._clock.seconds()
        is_same = error.reason == self._reason
        is_recent = self._logged_at is not None and now - self._logged_at < LOG_INTERVAL
        if not (is_same and is_recent if is_new else is_same or is_recent):
            log.warn("{error}; retrying", error=error.admin_message)
            self._reason, self._logged_at, self._is_logged = error.reason, now, True

    def _worked(self, kind: str) -> None:
        if self._failing:
            self._failing.discard(kind)
            if not self._failing and self._is_logged:
                self._is_logged = False
                log.info("The database is available again")


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
        if os.access(needed, wanted, effective_ids=effective):
            continue
        with suppress(FileNotFoundError):  # SQLite may remove -wal and -shm at any moment
            return DatabaseUnavailable(
                f"{needed}: permission denied ({_ownership(needed.stat())})", transient=False
            )
    return unavailable


def _ownership(found: os.stat_result) -> str:
    if sys.platform == "win32":
        return "check its permissions"
    return (
        f"owner {user_name(found.st_uid)}, mode {found.st_mode & 0o7777:o};"
        f" cartd runs as {this_user()}"
    )
