"""Queries and transactions over the kept connections."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import Executable, Table, bindparam, func, select, text
from twisted.internet.defer import CancelledError
from twisted.logger import Logger
from twisted.python.failure import Failure

from cartd.errors import CartdError, DatabaseUnavailable
from cartd.store import postgresql
from cartd.store.connections import Connection, Pool, detach_on_cancel
from cartd.store.database_errors import is_disconnect, translate_error, with_file_reason
from cartd.store.engines import parse, reading_engine, writing_engine
from cartd.store.outage_log import OutageLog
from cartd.store.watchdog import Watchdog
from cartd.threads import DedicatedThread

READERS = 3
CONNECTIONS = READERS + 1
"""Connections: those that read, and the one that writes."""
_CONNECTIONS_NOTE = f"cartd keeps {CONNECTIONS} connections and opens one more at times"
log = Logger()
# 64 bits of it: two names that share a turn wait for each other, and no more comes of it.
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
    """What may be asked while one transaction is open."""

    def __init__(self, connection: Connection, dialect: str) -> None:
        self._connection = connection
        self._dialect = dialect

    async def execute(self, statement: Executable, parameters: Parameters = None) -> int:
        """How many rows it changed."""
        result = await self._connection.execute(statement, parameters)
        return int(result.rowcount)

    async def insert(self, statement: Executable, parameters: Parameters = None) -> int:
        """The id of the one row that was inserted."""
        result = await self._connection.execute(statement, parameters)
        return int(result.inserted_primary_key[0])

    async def rows(self, statement: Executable, parameters: Parameters = None) -> Rows:
        return await self._connection.rows(statement, parameters)

    async def lock_table(self, table: Table) -> None:
        """Let nobody else change the table until the end; to be asked for before all else.

        SQLite has one writer at a time as it is.
        """
        if self._dialect == "postgresql":
            await self._connection.execute(text(f"LOCK TABLE {table.name} IN EXCLUSIVE MODE"))

    async def advance_ids(self, table: Table, last: int) -> None:
        """New rows of the table, which is locked, get ids beyond ``last``."""
        parameters = {"name": table.name, "last": last}
        if self._dialect == "postgresql":
            await self._connection.rows(_ADVANCE_POSTGRESQL, parameters)
        else:
            for statement in _ADVANCE_SQLITE:
                await self._connection.execute(statement, parameters)

    async def advisory_lock(self, name: str) -> None:
        """Let nobody else who asks for the turn of this name go on until the end.

        To be asked for before any row is changed.  SQLite has one writer at a time as it is.
        """
        if self._dialect == "postgresql":
            await self._connection.rows(_ADVISORY_LOCK, {"name": name})


def connection_limit_warning(url: str, within: float = 5.0) -> str | None:
    """A line for the administrator of a database that does not give as many as are kept; blocking.

    Seconds are waited ``within`` which all must have answered.
    """
    engine = reading_engine(url)
    if engine.dialect.name != "postgresql":
        return None
    given = postgresql.available_connections(engine, CONNECTIONS, within)
    if given == CONNECTIONS:
        return None
    return (
        f"The database answers on {given} of {CONNECTIONS} connections, and {_CONNECTIONS_NOTE}:"
        " requests and staging will wait for each other or fail. Raise the limit of the server"
        " or of the role, or PgBouncer's default_pool_size, or have that pool by transactions"
    )


class _Disconnected(DatabaseUnavailable):
    """The connection was lost: it may be only the kept one that is dead, and a new one tells."""


class Database:
    """A few connections that read, and one that writes: SQLite allows no more.

    Everything raises ``DatabaseUnavailable`` while the database is away, and works again when it is
    back; ``StatementRejected`` what would be refused again.  The log says when it is away, and
    since when it is not.
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
        """All rows of one query outside any transaction."""
        with self._outage.track("read"):
            try:
                return await self._read(statement, parameters)
            except _Disconnected:
                return await self._read(statement, parameters)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Commits at the end; an exception, or cancelling, leaves nothing written."""
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
        """Wait for what was asked, close all connections and end their threads."""
        await self._readers.close()
        await self._writer.close()
        self._watchdog.stop()

    async def _begin_retrying(self) -> tuple[Connection, Any]:
        """A connection in a transaction, known to live: nobody can begin anew in its middle."""
        try:
            return await self._begin()
        except _Disconnected:
            return await self._begin()

    async def _read(self, statement: Executable, parameters: Parameters) -> Rows:
        connection = await self._acquire(self._readers)

        def finished_late(outcome: object) -> None:
            """The query was cancelled, but has ended as if it were not."""
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
            # It may have a cursor open on an old state of the database.
            self._readers.discard(connection)
            self._raise_if_unavailable(error)
            raise
        self._readers.release(connection)
        return rows

    async def _begin(self) -> tuple[Connection, Any]:
        connection = await self._acquire(self._writer)
        try:
            # Asks the database, so that it is known to live.
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
        """Behind what still runs; then another may have the connection."""
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
        log.failure("The database refused a statement", Failure(error))
        raise unavailable from error

    async def _probe(self, server: postgresql.Server) -> None:
        """See whether a server of which something was asked answers anything."""
        await self._probe_thread.run(postgresql.probe, self._engine, server)
