"""Fixtures of databases and stores, one per test, on SQLite and PostgreSQL.

Use with ``pytest_plugins = ("tests.support.database_fixtures",)`` in a test module.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from cartd.store import Store, sync
from tests.support.databases import (
    DatabasePool,
    Postgres,
    sqlite_url,
    the_reactor,
    without_carts,
    without_tables,
)
from tests.support.sqlite_store import SqliteFile, SqliteStore
from tests.support.volume_parts import result_of

BACKENDS = ("sqlite", "postgresql")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A server for all tests, with cartd's tables in the database ``synced``."""
    server = Postgres()
    server.execute("CREATE DATABASE synced")
    sync(server.url("synced"))
    yield server
    server.remove()


@pytest.fixture(scope="session")
def synced_postgres(postgres: Postgres) -> DatabasePool:
    """Databases with cartd's tables."""
    return DatabasePool(postgres, "synced", without_carts)


@pytest.fixture(scope="session")
def empty_postgres(postgres: Postgres) -> DatabasePool:
    """Databases without tables."""
    return DatabasePool(postgres, "template1", without_tables)


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A server that one test may stop and start."""
    server = Postgres()
    yield server
    server.remove()


@pytest.fixture(scope="session")
def synced_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with cartd's tables, to be copied."""
    path = tmp_path_factory.mktemp("sqlite") / "synced.sqlite3"
    sync(sqlite_url(path))
    return path


@pytest.fixture(params=BACKENDS)
def empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database without tables."""
    if request.param == "sqlite":
        yield sqlite_url(tmp_path / "empty.sqlite3")
        return
    empty: DatabasePool = request.getfixturevalue("empty_postgres")
    with empty.one() as url:
        yield url


@pytest.fixture(params=BACKENDS)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database with cartd's tables and no carts."""
    if request.param == "sqlite":
        path = tmp_path / "cartd.sqlite3"
        shutil.copy(request.getfixturevalue("synced_sqlite"), path)
        yield sqlite_url(path)
        return
    synced: DatabasePool = request.getfixturevalue("synced_postgres")
    with synced.one() as url:
        yield url


@pytest_twisted.async_yield_fixture
async def store(database: str) -> Any:
    """A store over that database, closed when the test ends."""
    store = Store(database, the_reactor())
    yield store
    await store.close()


@pytest.fixture(scope="session")
def sqlite_file(tmp_path_factory: pytest.TempPathFactory) -> SqliteFile:
    return SqliteFile(tmp_path_factory.mktemp("sqlite"))


@pytest.fixture
def sqlite_store(sqlite_file: SqliteFile) -> Iterator[SqliteStore]:
    """A store on SQLite whose queries run at once, closed when the test ends."""
    sqlite_file.clean()
    store = SqliteStore(sqlite_file)
    yield store
    result_of(store.close())
