"""A real SQLite database with injected faults, before or after a commit."""

from __future__ import annotations

import sqlite3
from random import Random
from typing import Any, Self

from sqlalchemy import Engine, event

from cartd.store.engine import reading_engine, writing_engine

FAULT = "disk I/O error (simulated)"


class Database:
    """The faults, and the connections that one process has open.

    The engines outlive the processes: they hold compiled statements and nothing else.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.reading = self._intercepted(reading_engine(url))
        self.writing = self._intercepted(writing_engine(url))
        self.reset(Random(0))

    def reset(self, random: Random) -> None:
        self.random = random
        self.chance = 0.0
        """Probability that a statement fails, or that a commit fails, done or not."""
        self.failed = 0
        self._open: list[_Connection] = []

    def delay(self) -> float:
        """Return the seconds that a call of its thread takes."""
        return self.random.choice((0.0, 0.0, 0.0, 0.0, 0.0, 0.001, 0.002, 0.01))

    def on_death(self) -> None:
        """Close all connections, as the system does when a process dies."""
        for connection in self._open:
            connection.dead = True
            # A statement of the dead process would keep its lock.
            sqlite3.Connection.rollback(connection)
            sqlite3.Connection.close(connection)
        self._open.clear()

    def heal(self) -> None:
        self.chance = 0.0

    def maybe_fail(self) -> None:
        if self.chance and self.random.random() < self.chance:
            self.failed += 1
            raise sqlite3.OperationalError(FAULT)

    def closed(self, connection: _Connection) -> None:
        if connection in self._open:
            self._open.remove(connection)

    def _intercepted(self, engine: Engine) -> Engine:
        def connect(_dialect: Any, _record: Any, cargs: Any, cparams: Any) -> sqlite3.Connection:
            self.maybe_fail()
            connection: _Connection = sqlite3.connect(*cargs, factory=_Connection, **cparams)
            connection.database = self
            sqlite3.Connection.execute(connection, "PRAGMA synchronous = OFF")
            self._open.append(connection)
            return connection

        event.listen(engine, "do_connect", connect)
        return engine


class _Connection(sqlite3.Connection):
    database: Database
    dead = False

    def cursor(self, factory: Any = None) -> Any:
        return super().cursor(_Cursor)

    def commit(self) -> None:
        if self.dead:
            return
        self.database.maybe_fail()
        super().commit()
        self.database.maybe_fail()

    def rollback(self) -> None:
        if not self.dead:
            super().rollback()

    def close(self) -> None:
        if not self.dead:
            super().close()
            self.database.closed(self)


class _Cursor(sqlite3.Cursor):
    connection: _Connection

    def execute(self, statement: str, parameters: Any = (), /) -> Self:
        self.connection.database.maybe_fail()
        return super().execute(statement, parameters)

    def executemany(self, statement: str, parameters: Any, /) -> Self:
        self.connection.database.maybe_fail()
        return super().executemany(statement, parameters)
