"""Queries and transactions over the pools of connections."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import Executable, Table, bindparam, func, select, text
from twisted.internet.defer import CancelledError
from twisted.logger import Logger
from twisted.python.failure import Failure

from cartd.deferreds.threads import DedicatedThread
from cartd.errors import CartdError, DatabaseUnavailable
from cartd.store import postgresql
from cartd.store.connections import Connection, Pool, detach_on_cancel
from cartd.store.database_errors import is_disconnect, translate_error, with_file_reason
from cartd.store.engine import parse, reading_engine, writing_engine
from cartd.store.outage_log import OutageLog
from cartd.store.watchdog import Watchdog

READERS = 3
CONNECTIONS = READERS + 1
"""Persistent connections: the readers and the writer."""
_CONNECTIONS_NOTE = f"cartd keeps {CONNECTIONS} connections open, and sometimes one more"
log = Logger()
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


def connection_limit_warning(url: str, within: float = 5.0) -> str | None:
    """Return a warning if the database accepts too few connections, else None; blocking.

    All connections must have answered ``within`` so many seconds.
    """
    engine = reading_engine(url)
    if engine.dialect.name != "postgresql":
        return None
    given = postgresql.available_connections(engine, CONNECTIONS, within)
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

    def __init__(self, url: str, reactor: Any) -> None:
        self._url = parse(url)
        self._outage = OutageLog(reactor)
        engine = writing_engine(url)
        self._dialect = engine.dialect.name
        self._probe_thread = DedicatedThread(reactor)
        self._engine = engine
        is_remote = self._dialect == "postgresql"
        timeout = postgresql.connect_timeout(engine) if is_remote else 0
        self._watchdog = Watchdog(reactor, self._probe, timeout)
        self._readers = Pool(reactor, reading_engine(url), READERS, self._watchdog)
        self._writer = Pool(reactor, engine, 1, self._watchdog)

    async def rows(self, statement: Executable, parameters: Parameters = None) -> Rows:
        """Return all rows of one query outside a transaction."""
        with self._outage.track("read"):
            try:
                return await self._read(statement, parameters)
            except _Disconnected:
                return await self._read(statement, parameters)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Commits at the end; an exception or a cancellation rolls back."""
        with self._outage.track("write"):
            async with self._transaction() as transaction:
                yield transaction

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

    async def _probe(self, server: postgresql.Server) -> None:
        """Check whether a server answers a new connection."""
        await self._probe_thread.run(postgresql.probe, self._engine, server)
