"""The service while PostgreSQL is restarted, killed, unreachable, or hangs."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from sqlalchemy import create_engine, text

from cartd.store import sync
from cartd.store.database import READERS
from tests.support.archive_faults import Gate, halted
from tests.support.archived_carts import content, in_a_thread, manifest_of, stage, url_of
from tests.support.cartd_with_archive import assert_no_unexpected_errors
from tests.support.database_proxy import DatabaseProxy
from tests.support.databases import UNAVAILABLE, Postgres, the_reactor
from tests.support.faulty_archive import FaultyArchive
from tests.support.running_cartd import Answer, RunningCartd, running_cartd, wait_for
from tests.support.slow_reader import TOO_MUCH_FOR_SOCKETS, slow_reader
from tests.support.with_values import with_values

pytest_plugins = ("tests.support.archive_fixtures", "tests.support.database_fixtures")

SOON = {
    "cartd.store.connections.PROBE_AFTER": 0.5,
    "cartd.store.connections.PROBE_GRACE": 0.5,
    "cartd.staging.stager.CLAIM_INTERVAL": 0.5,
}
INI = "[cartd]\nlru_interval = 0.5\n"


@pytest.fixture
def proxy(postgres: Postgres) -> Iterator[DatabaseProxy]:
    """A proxy to a database of the test's own."""
    url = postgres.create(template="synced")
    with DatabaseProxy.to(url) as proxy:
        yield proxy
    postgres.drop(url)


@contextmanager
def short_timeout_cartd(
    directory: Path, archive: FaultyArchive, database: str
) -> Iterator[RunningCartd]:
    """A service with short timeouts; in the end it must stop cleanly."""
    running = running_cartd(
        directory, archive=url_of(archive), database=database, ini=INI, started=False
    )
    with running as cartd:
        cartd.program = with_values(cartd.twistd, SOON)
        cartd.start()
        yield cartd
        if cartd.process is not None and cartd.process.poll() is None:
            assert cartd.terminate() == 0
        assert_no_unexpected_errors(cartd.log)


def is_refused(answer: Answer) -> bool:
    """Whether the answer asks the client to retry."""
    if answer.status != 503:
        return False
    assert answer.headers["retry-after"]
    assert answer.json["message"] == UNAVAILABLE
    return True


def resources(cartd: RunningCartd) -> int:
    """The threads and the open files of the service."""
    assert cartd.process is not None
    process = psutil.Process(cartd.process.pid)
    return int(process.num_threads()) + int(process.num_fds())


def warnings(cartd: RunningCartd) -> list[str]:
    """The lines of its log without those of requests."""
    return [line for line in cartd.log.splitlines() if "cartd.access_log" not in line]


@in_a_thread
def test_downloads_and_staging_survive_a_database_restart(
    archive: FaultyArchive, own_postgres: Postgres, tmp_path: Path
) -> None:
    url = own_postgres.create()
    sync(url)
    gate = Gate()
    with short_timeout_cartd(tmp_path / "cartd", archive, url) as cartd:
        stage(cartd, archive, "large", TOO_MUCH_FOR_SOCKETS)
        with slow_reader(cartd, "large") as reader:
            archive.fault("slow-1", halted(10, gate), method="GET")
            cartd.post("slow", manifest_of(archive, "slow", 3000, files=3))
            wait_for(lambda: cartd.staged("slow") == 2)
            own_postgres.kill()
            the_reactor().callFromThread(gate.open)
            assert is_refused(cartd.get("/large"))
            assert is_refused(cartd.post("new", manifest_of(archive, "new", 10)))
            assert is_refused(cartd.delete("slow"))
            assert cartd.request("HEAD", "/large").status == 503
            assert cartd.get("/").status == 200
            own_postgres.start()
            cartd.wait_until("slow", "ready")
            before = last_use(url)
            own_postgres.stop()
            assert is_refused(cartd.get("/large"))
            assert content("large-0", TOO_MUCH_FOR_SOCKETS) in reader.rest()
        own_postgres.start()
        wait_for(lambda: last_use(url) > before)
        assert len(cartd.download("slow")) == 3


def last_use(url: str) -> str:
    """When the large cart was last used, according to the database."""
    engine = create_engine(url)
    with engine.connect() as connection:
        found = connection.scalar(text("SELECT used_date FROM cart WHERE cart_uid = 'large'"))
    engine.dispose()
    return str(found)


@in_a_thread
def test_lost_connections_leak_no_threads_files_or_log_lines(
    archive: FaultyArchive, proxy: DatabaseProxy, tmp_path: Path
) -> None:
    with short_timeout_cartd(tmp_path / "cartd", archive, proxy.url) as cartd:
        stage(cartd, archive, "mine", 300_000, files=300)
        restarts = 20
        before = resources(cartd)
        for _ in range(restarts):
            proxy.close()
            proxy.disconnect_all()
            assert is_refused(cartd.get("/mine"))
            proxy.open()
            assert len(cartd.download("mine")) == 300
        # A few more persistent threads and connections may have been opened meanwhile.
        wait_for(lambda: resources(cartd) < before + restarts)
        lines = len(warnings(cartd))
        proxy.close()
        proxy.disconnect_all()
        for _ in range(100):
            assert is_refused(cartd.get("/mine"))
        assert len(warnings(cartd)) - lines <= 5
        proxy.open()
        wait_for(lambda: not is_refused(cartd.get("/mine")))
        wait_for(lambda: "The database is available again" in cartd.log)


@in_a_thread
def test_a_hanging_database_is_unavailable_until_it_answers(
    archive: FaultyArchive, proxy: DatabaseProxy, tmp_path: Path
) -> None:
    gate = Gate()
    with short_timeout_cartd(tmp_path / "cartd", archive, proxy.url) as cartd:
        stage(cartd, archive, "large", TOO_MUCH_FOR_SOCKETS)
        with slow_reader(cartd, "large") as reader:
            archive.fault("slow-0", halted(10, gate), method="GET")
            cartd.post("slow", manifest_of(archive, "slow", 1000))
            wait_for(lambda: archive.seen("GET", "slow-0"))
            proxy.block()
            assert is_refused(cartd.get("/large"))
            assert is_refused(cartd.post("new", manifest_of(archive, "new", 10)))
            the_reactor().callFromThread(gate.open)
            assert content("large-0", TOO_MUCH_FOR_SOCKETS) in reader.rest()
        proxy.unblock()
        cartd.wait_until("slow", "ready")
        wait_for(lambda: proxy.connected() <= READERS + 1)
        proxy.block()
        assert is_refused(cartd.get("/large"))
        assert cartd.terminate() == 0


@in_a_thread
def test_a_slow_query_continues_while_the_server_answers_probes(
    archive: FaultyArchive, proxy: DatabaseProxy, tmp_path: Path
) -> None:
    started = short_timeout_cartd(tmp_path / "cartd", archive, proxy.url)
    with started as cartd, ThreadPoolExecutor(1) as posting:
        stage(cartd, archive, "mine", 1000)
        engine = create_engine(proxy.url)
        with engine.begin() as connection:
            connection.execute(text("LOCK TABLE cart"))
            opened = proxy.opened
            waiting = posting.submit(cartd.post, "next", manifest_of(archive, "next", 10))
            wait_for(lambda: proxy.opened >= opened + 3)  # three probes were answered
            assert not waiting.done()
        assert waiting.result().status == 201
        engine.dispose()
        assert "cannot be used" not in cartd.log


@in_a_thread
def test_the_probe_goes_to_the_host_in_use_of_several(
    archive: FaultyArchive, proxy: DatabaseProxy, postgres: Postgres, tmp_path: Path
) -> None:
    with DatabaseProxy.to(postgres.url("synced")) as dead:
        dead.close()
        url = proxy.behind(dead)
        started = short_timeout_cartd(tmp_path / "cartd", archive, url)
        with started as cartd, ThreadPoolExecutor(1) as posting:
            stage(cartd, archive, "mine", 1000)
            dead.open()
            dead.block()
            engine = create_engine(proxy.url)
            with engine.begin() as connection:
                connection.execute(text("LOCK TABLE cart"))
                opened = proxy.opened
                waiting = posting.submit(cartd.post, "next", manifest_of(archive, "next", 10))
                wait_for(lambda: proxy.opened >= opened + 3)
            assert waiting.result().status == 201
            engine.dispose()
            assert dead.opened == 0
            assert "cannot be used" not in cartd.log
            cartd.run("cartd-cmd", "dbchk", "--equal")
