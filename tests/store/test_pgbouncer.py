"""The service behind a real PgBouncer, which shares server connections between clients."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import psycopg
import pytest

from cartd.config import sqlalchemy_url
from cartd.store import connection_limit_warning
from cartd.store.database import CONNECTIONS
from tests.support.archived_carts import in_a_thread, manifest_of, url_of
from tests.support.cartd_with_archive import assert_no_unexpected_errors
from tests.support.databases import Postgres
from tests.support.faulty_archive import FaultyArchive
from tests.support.pgbouncer import pgbouncer
from tests.support.running_cartd import RunningCartd, running_cartd

pytest_plugins = ("tests.support.archive_fixtures", "tests.support.database_fixtures")

CARTS = 10
REQUESTS = 1000
"""For each of the two pools."""
CLIENTS = 4


@pytest.fixture
def database(postgres: Postgres) -> Iterator[str]:
    url = postgres.create(template="synced")
    yield url
    postgres.drop(url)


def statuses(cartd: RunningCartd, client: int) -> set[int]:
    """The statuses of one client's requests over one connection."""
    connection = HTTPConnection("127.0.0.1", cartd.port)
    seen = set()
    for number in range(REQUESTS // CLIENTS):
        uid = f"cart-{(number + client) % CARTS}"
        connection.request("GET" if number % 8 == 0 else "HEAD", f"/{uid}")
        answer = connection.getresponse()
        answer.read()
        seen.add(answer.status)
    connection.close()
    return seen


@pytest.mark.parametrize("size", [2, 20])
@in_a_thread
def test_transaction_pooling_costs_no_cart_and_no_request(
    size: int, archive: FaultyArchive, database: str, tmp_path: Path
) -> None:
    with (
        pgbouncer(database, pool_mode="transaction", pool_size=size) as url,
        running_cartd(tmp_path, archive=url_of(archive), database=url) as cartd,
        ThreadPoolExecutor(CLIENTS) as clients,
    ):
        for number in range(CARTS):
            uid = f"cart-{number}"
            assert cartd.post(uid, manifest_of(archive, uid, 1000, files=5)).status == 201
        for number in range(CARTS):
            cartd.wait_until(f"cart-{number}", "ready")
        seen = set().union(*clients.map(lambda client: statuses(cartd, client), range(CLIENTS)))
        assert seen == {200, 204}
        for number in range(CARTS):
            assert cartd.delete(f"cart-{number}").status == 200
        assert_leaves_no_state(url, size)
        assert cartd.terminate() == 0
        assert_no_unexpected_errors(cartd.log)


def assert_leaves_no_state(url: str, size: int) -> None:
    """Every server connection of the pool has PostgreSQL's defaults."""
    plain = [psycopg.connect(url) for _ in range(size)]
    for connection in plain:
        with connection.cursor() as cursor:
            settings = (
                "current_setting('lock_timeout'), current_setting('default_transaction_isolation')"
            )
            cursor.execute(f"SELECT {settings}, (SELECT count(*) FROM pg_prepared_statements)")
            assert cursor.fetchone() == ("0", "read committed", 0)
    for connection in plain:
        connection.close()


def test_the_connection_check_opens_all_connections_at_once(database: str) -> None:
    assert connection_limit_warning(database) is None
    with pgbouncer(database, pool_mode="transaction", pool_size=2) as url:
        assert connection_limit_warning(sqlalchemy_url(url)) is None
    with pgbouncer(database, pool_mode="session", pool_size=CONNECTIONS) as url:
        assert connection_limit_warning(sqlalchemy_url(url)) is None
    with pgbouncer(database, pool_mode="session", pool_size=2) as url:
        line = connection_limit_warning(sqlalchemy_url(url), within=0.5) or ""
        assert f"on 2 of {CONNECTIONS} connections" in line
        assert "default_pool_size" in line


@in_a_thread
def test_too_few_connections_are_reported_in_one_line(
    archive: FaultyArchive, database: str, postgres: Postgres, tmp_path: Path
) -> None:
    postgres.execute(
        "CREATE ROLE few LOGIN CONNECTION LIMIT 2 IN ROLE pg_read_all_data, pg_write_all_data"
    )
    few = database.replace("//postgres:@", "//few@")
    try:
        with running_cartd(tmp_path, archive=url_of(archive), database=few) as cartd:
            assert cartd.log.count(f"on 2 of {CONNECTIONS} connections") == 1
            cartd.kill()
    finally:
        postgres.execute("DROP ROLE few")
