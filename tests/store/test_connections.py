"""The store under concurrency, cancellation and outages of the database."""

from __future__ import annotations

import gc
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
import pytest_twisted
from sqlalchemy import create_engine, func, make_url, select, text, update
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure

from cartd.errors import ConfigError, DatabaseUnavailable, Unavailable
from cartd.manifest import Entry
from cartd.model import UNRESTRICTED, Viewer
from cartd.store import Store, engine, schema_state, sync
from cartd.store.connections import THREAD_NAME, driver_connection
from cartd.store.database import READERS, lock_writers, with_file_reason
from cartd.store.tables import BATCH
from cartd.store.tables import cart as cart_table
from tests.support.database_proxy import DatabaseProxy
from tests.support.databases import Postgres, database_unavailable, sqlite_url, the_reactor
from tests.support.running_cartd import wait_for
from tests.support.stored_carts import (
    SHA1,
    claimed,
    entries,
    found,
    gathered,
    manifest,
    posted,
)

pytest_plugins = ("tests.support.database_fixtures",)


@pytest.fixture
def without_collector() -> Iterator[None]:
    """Without the collector, only objects without references are freed."""
    gc.disable()
    yield
    gc.enable()


def store_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == THREAD_NAME]


class WatchedEntries(list[Entry]):
    """Entries that report when the second batch of them is being inserted."""

    def __init__(self, number: int) -> None:
        super().__init__(entries(number))
        self.reached: Deferred[None] = Deferred()

    def __iter__(self) -> Iterator[Entry]:
        for number, entry in enumerate(super().__iter__()):
            if number == 2 * BATCH - 1:
                the_reactor().callLater(0, self.reached.callback, None)
            yield entry


class TestConnections:
    @pytest_twisted.ensureDeferred
    async def test_a_cancelled_post_writes_nothing_and_disturbs_no_other(
        self, store: Store
    ) -> None:
        listed = WatchedEntries(5 * BATCH)
        posting = Deferred.fromCoroutine(
            store.carts.post("cut", manifest(listed), bundle=False, now=10)
        )
        await listed.reached
        next_one = Deferred.fromCoroutine(posted(store, "next"))
        posting.cancel()
        with pytest.raises(CancelledError):
            await posting
        cart = await next_one
        assert len(await store.carts.files(cart.id)) == 2
        assert await store.carts.newest("cut") is None
        assert await store.carts.active() == [cart]

    @pytest_twisted.ensureDeferred
    async def test_cancelled_queries_cost_no_connection(self, store: Store) -> None:
        cart = await posted(store)
        for _ in range(20):
            cut = Deferred.fromCoroutine(store.carts.newest("u"))
            waiting = Deferred.fromCoroutine(store.removals.mark_deleted(4711, 1))
            cut.cancel()
            waiting.cancel()
            for cancelled in (cut, waiting):
                with pytest.raises(CancelledError):
                    await cancelled
        assert await gathered([store.carts.newest("u") for _ in range(20)]) == [cart] * 20
        assert await store.removals.mark_deleted(cart.id, 20)

    @pytest.mark.parametrize("given_up", ["query", "beginning", "statement", "commit"])
    @pytest_twisted.ensureDeferred
    async def test_a_cancelled_query_returns_its_connection_to_the_pool(
        self, given_up: str, postgres: Postgres
    ) -> None:
        async def write(store: Store, reached: Deferred[None], date: int) -> None:
            async with store._database.transaction() as transaction:
                if given_up == "statement":
                    the_reactor().callLater(0, reached.callback, None)
                await transaction.execute(update(cart_table).values(invalidations=date))
                if given_up == "commit":
                    the_reactor().callLater(0, reached.callback, None)

        async def read(store: Store) -> None:
            await store.carts.active()

        url = postgres.create(template="synced")
        with DatabaseProxy.to(url) as proxy:
            store = Store(proxy.url, the_reactor())
            cart = await posted(store)
            await gathered(
                [store.carts.newest("u"), store.carts.cart(cart.id), store.carts.active()]
            )
            opened = proxy.opened
            for number in range(100):
                reached: Deferred[None] = Deferred()
                work = read(store) if given_up == "query" else write(store, reached, number)
                cut = Deferred.fromCoroutine(work)
                if given_up in ("statement", "commit"):
                    await reached
                cut.cancel()
                with suppress(CancelledError):
                    await cut
                assert await store.carts.active()
                await store.carts.touch({cart.id: 20 + number})
            assert proxy.opened == opened
            assert (await found(store, cart)).used == 119
            await store.close()
        postgres.drop(url)

    @pytest_twisted.ensureDeferred
    async def test_a_connection_lost_after_a_cancelled_query_is_discarded(
        self, postgres: Postgres
    ) -> None:
        url = postgres.create(template="synced")
        with DatabaseProxy.to(url) as proxy:
            store = Store(proxy.url, the_reactor())
            cart = await posted(store)
            await store.carts.active()
            proxy.block()
            reading = Deferred.fromCoroutine(store.carts.active())
            writing = Deferred.fromCoroutine(store.carts.touch({cart.id: 30}))
            for cut in (reading, writing):
                cut.cancel()
                with pytest.raises(CancelledError):
                    await cut
            proxy.disconnect_all()
            proxy.unblock()
            assert await gathered([store.carts.cart(cart.id) for _ in range(5)]) == [cart] * 5
            await store.carts.touch({cart.id: 40})
            assert (await found(store, cart)).used == 40
            await store.close()
        postgres.drop(url)

    @pytest_twisted.ensureDeferred
    async def test_many_at_once_never_find_the_database_locked(
        self, store: Store, database: str
    ) -> None:
        other = Store(database, the_reactor())

        async def live(number: int) -> int:
            mine, its = (store, other) if number % 2 else (other, store)
            cart = await claimed(mine, f"u{number}", 20)
            await its.carts.newest(f"u{number}")
            await mine.progress.record_states(cart.id, "me", [(n, 1, 1) for n in range(20)])
            await its.carts.touch({cart.id: 50})
            await mine.progress.record_staged(cart.id, "me", [(n, SHA1) for n in range(20)], now=11)
            await mine.progress.record_ready(cart.id, "me", volume_bytes=20, now=12)
            return (await found(its, cart)).bytes_staged

        assert await gathered([live(number) for number in range(40)]) == [20] * 40
        await other.close()
        assert await store.space.usage() == (800, 0)

    @pytest_twisted.ensureDeferred
    async def test_a_manifest_posted_to_two_nodes_at_once_is_one_cart(
        self, store: Store, database: str
    ) -> None:
        other = Store(database, the_reactor())

        async def post(node: Store, uid: str, owner: str | None) -> tuple[int, bool]:
            viewer = UNRESTRICTED if owner is None else Viewer(owner, sees_all=False)
            cart, new = await node.carts.post(
                uid, manifest(50), bundle=False, now=10, viewer=viewer
            )
            return cart.id, new

        for number in range(20):
            owner = None if number % 2 else "ada"
            both = await gathered([post(node, f"u{number}", owner) for node in (store, other)])
            assert both[0][0] == both[1][0]
            assert sorted(new for _, new in both) == [False, True]
        await other.close()

    @pytest_twisted.ensureDeferred
    async def test_closing_ends_all_threads_and_lets_what_runs_finish(self, database: str) -> None:
        store = Store(database, the_reactor())
        assert store_threads() == []
        posting = Deferred.fromCoroutine(posted(store, files=BATCH + 1))
        reading = Deferred.fromCoroutine(gathered([store.carts.newest("u") for _ in range(10)]))
        closing = Deferred.fromCoroutine(store.close())
        assert store_threads() != []
        await closing
        assert store_threads() == []
        assert (await posting).files_total == BATCH + 1
        with pytest.raises(Unavailable):
            await reading
        with pytest.raises(Unavailable):
            await store.carts.newest("u")
        with pytest.raises(Unavailable):
            await store.carts.touch({1: 1})

    @pytest_twisted.ensureDeferred
    async def test_any_number_may_wait_when_it_closes(self, database: str) -> None:
        """Waiters must not fail recursively: that would exceed Python's recursion limit."""
        store = Store(database, the_reactor())
        outcomes: list[object] = []
        for _ in range(1000):
            Deferred.fromCoroutine(store.carts.cart(1)).addBoth(outcomes.append)
        await store.close()
        refused = [one for one in outcomes if isinstance(one, Failure) and one.check(Unavailable)]
        assert len(outcomes) == 1000
        assert len(refused) >= 1000 - READERS

    @pytest_twisted.ensureDeferred
    async def test_a_store_that_was_never_used_closes(self, database: str) -> None:
        await Store(database, the_reactor()).close()

    @pytest_twisted.ensureDeferred
    async def test_a_server_that_stops_is_unavailable_until_it_is_back(
        self, own_postgres: Postgres
    ) -> None:
        url = own_postgres.create()
        sync(url)
        store = Store(url, the_reactor())
        cart = await claimed(store)
        await gathered([store.carts.newest("u") for _ in range(10)])
        own_postgres.stop()
        for _ in range(5):
            with database_unavailable("."):
                await store.carts.newest("u")
            with pytest.raises(Unavailable):
                await store.progress.record_staged(cart.id, "me", [(0, SHA1)], now=11)
        own_postgres.start()
        assert await gathered([store.carts.newest("u") for _ in range(10)]) == [cart] * 10
        await store.progress.record_staged(cart.id, "me", [(0, SHA1)], now=12)
        assert (await found(store, cart)).files_staged == 1
        await store.close()
        assert store_threads() == []

    @pytest_twisted.ensureDeferred
    async def test_a_restarted_server_is_reconnected_without_an_error(
        self, own_postgres: Postgres
    ) -> None:
        url = own_postgres.create()
        sync(url)
        store = Store(url, the_reactor())
        cart = await claimed(store)
        for once_more in range(2):
            await gathered([store.carts.newest("u") for _ in range(10)])
            await store.leases.renew("me", 200)
            own_postgres.stop()
            own_postgres.start()
            if once_more:
                await store.progress.record_staged(cart.id, "me", [(0, SHA1)], now=12)
            assert (await found(store, cart)).files_staged == once_more
        await store.close()

    @pytest_twisted.ensureDeferred
    async def test_a_missing_directory_is_unavailable_until_it_exists(self, tmp_path: Path) -> None:
        url = sqlite_url(tmp_path / "later" / "cartd.sqlite3")
        store = Store(url, the_reactor())
        with database_unavailable("unable to open database file"):
            await store.carts.newest("u")
        (tmp_path / "later").mkdir()
        sync(url)
        assert await store.carts.newest("u") is None
        await store.close()
        assert store_threads() == []

    @pytest_twisted.ensureDeferred
    async def test_all_waiters_fail_at_once_when_connecting_fails(
        self, postgres: Postgres, without_collector: None
    ) -> None:
        url = postgres.create(template="synced")
        with DatabaseProxy.to(url) as proxy:
            proxy.block()
            store = Store(proxy.url, the_reactor())
            outcomes: list[object] = []
            lookups = [
                Deferred.fromCoroutine(store.carts.cart(1)).addBoth(outcomes.append)
                for _ in "12345"
            ]
            await gatherResults(lookups)
            assert all(isinstance(one, Failure) and one.check(Unavailable) for one in outcomes)
            assert proxy.opened == READERS
            proxy.unblock()
            await deferToThread(wait_for, lambda: proxy.connected() == 0)
            await store.close()
        postgres.drop(url)

    def test_wal_mode_is_set_once_another_connection_has_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path, pauses = tmp_path / "cartd.sqlite3", []
        with closing(sqlite3.connect(path)) as other:
            other.execute("BEGIN IMMEDIATE")
            other.execute("CREATE TABLE written (id INTEGER)")

            def commit(seconds: float) -> None:
                pauses.append(seconds)
                other.commit()

            monkeypatch.setattr(time, "sleep", commit)
            with engine.writing_engine(sqlite_url(path)).connect() as connection:
                assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
        assert pauses == [engine.BUSY_PAUSE]

    @pytest_twisted.ensureDeferred
    async def test_a_removed_sqlite_file_is_unavailable_and_not_recreated(
        self, synced_sqlite: Path, tmp_path: Path
    ) -> None:
        path, kept = tmp_path / "cartd.sqlite3", tmp_path / "kept.sqlite3"
        shutil.copy(synced_sqlite, path)
        store = Store(sqlite_url(path), the_reactor())
        await posted(store)
        path.rename(kept)
        for _ in range(2):
            with database_unavailable("unable to open database file"):
                await posted(store, "lost")
            with pytest.raises(Unavailable):
                await store.carts.newest("u")
        assert not path.exists()
        kept.rename(path)
        await posted(store, "new")
        assert [cart.uid for cart in await store.carts.active()] == ["new", "u"]
        await store.close()

    @pytest.mark.parametrize(
        ("damage", "said"),
        [
            (b"no database " * 10_000, "file is not a database"),
            (b"", "no such table: cart"),
            (None, "database disk image is malformed"),
        ],
        ids=["garbage", "empty", "damaged"],
    )
    @pytest_twisted.ensureDeferred
    async def test_an_unusable_sqlite_file_is_unavailable_with_the_reason(
        self, damage: bytes | None, said: str, synced_sqlite: Path, tmp_path: Path
    ) -> None:
        path, whole = tmp_path / "cartd.sqlite3", synced_sqlite.read_bytes()
        page = 4096
        path.write_bytes(whole[:page] + bytes(len(whole) - page) if damage is None else damage)
        store = Store(sqlite_url(path), the_reactor())
        with database_unavailable(f"^{said}$"):
            await store.carts.active()
        with database_unavailable(said):
            await posted(store)
        await store.close()

    def test_a_file_that_sqlite_removes_meanwhile_is_no_reason(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path, shm = tmp_path / "cartd.sqlite3", tmp_path / "cartd.sqlite3-shm"
        path.touch()
        shm.touch()
        access = os.access

        def remove_first(name: Path, mode: int, *, effective_ids: bool) -> bool:
            if name == shm:
                shm.unlink()
            return access(name, mode, effective_ids=effective_ids)

        monkeypatch.setattr(os, "access", remove_first)
        error = DatabaseUnavailable("malformed")
        assert with_file_reason(error, make_url(sqlite_url(path))) is error

    @pytest_twisted.ensureDeferred
    async def test_a_forbidden_database_is_unavailable_with_the_reason(
        self, postgres: Postgres
    ) -> None:
        url = postgres.create(template="synced")
        name = make_url(url).database
        postgres.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        store = Store(url, the_reactor())
        with database_unavailable("in a read-only transaction"):
            await posted(store)
        assert await store.carts.active() == []
        await store.close()
        empty = postgres.create()
        store = Store(empty, the_reactor())
        with database_unavailable('relation "cart" does not exist'):
            await store.carts.active()
        await store.close()
        postgres.drop(url)
        postgres.drop(empty)

    @pytest_twisted.ensureDeferred
    async def test_waiting_for_a_lock_of_another_program_times_out(
        self, store: Store, database: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("cartd.store.engine.BUSY_TIMEOUT", 0.1)
        impatient = Store(database, the_reactor())
        cart = await posted(impatient)
        engine = create_engine(database)
        with engine.begin() as connection:
            if engine.dialect.name == "sqlite":
                connection.exec_driver_sql("BEGIN EXCLUSIVE")
                assert await impatient.carts.active() == [cart]
            else:
                connection.exec_driver_sql("LOCK TABLE cart")
                with database_unavailable("lock timeout"):
                    await impatient.carts.active()
            with database_unavailable(r"locked|lock timeout"):
                await posted(impatient, "next")
        engine.dispose()
        await posted(impatient, "next")
        await impatient.close()

    def test_a_too_old_sqlite_is_reported_in_one_line(
        self, synced_sqlite: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 26, 0))
        monkeypatch.setattr(sqlite3, "sqlite_version", "3.26.0")
        for opened in (schema_state, lambda url: Store(url, the_reactor())):
            with pytest.raises(ConfigError, match=r"has SQLite 3\.26\.0, and cartd needs 3\.33"):
                opened(sqlite_url(synced_sqlite))

    @pytest.mark.parametrize(
        ("url", "said"),
        [
            ("no url, secret", "not a valid SQLAlchemy URL"),
            ("oracle+nothing://u:secret@h/d", "'oracle\\+nothing' are not supported"),
            ("mysql+pymysql_absent://u:secret@h/d", "are not supported"),
        ],
    )
    def test_an_unusable_url_is_reported_without_its_password(self, url: str, said: str) -> None:
        with pytest.raises(ConfigError, match=said) as raised:
            Store(url, the_reactor())
        assert "secret" not in str(raised.value)


class TestPostgresqlState:
    @pytest_twisted.ensureDeferred
    async def test_an_idle_transaction_loses_its_locks_after_a_timeout(
        self, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("cartd.store.engine.IDLE_TIMEOUT", 0.2)
        url = postgres.create(template="synced")
        frozen, other = Store(url, the_reactor()), Store(url, the_reactor())
        cart = await posted(frozen)
        with pytest.raises(Unavailable):
            async with frozen._database.transaction() as transaction:
                await lock_writers(transaction)
                assert await other.removals.mark_deleted(cart.id, 20)
                await transaction.rows(select(1))
        assert await frozen.carts.active() == []
        await frozen.close()
        await other.close()
        postgres.drop(url)

    @pytest_twisted.ensureDeferred
    async def test_leases_are_renewed_despite_a_held_writers_lock_or_row(
        self, postgres: Postgres
    ) -> None:
        url = postgres.create(template="synced")
        busy, other = Store(url, the_reactor()), Store(url, the_reactor())
        first, second = await claimed(other, "first"), await claimed(other, "second")
        await other.progress.record_staged(second.id, "me", [(0, SHA1)], now=11)
        async with busy._database.transaction() as transaction:
            await lock_writers(transaction)
            await transaction.execute(
                update(cart_table).where(cart_table.c.id == first.id).values(invalidations=1)
            )
            assert await other.leases.renew("me", 900) == {first.id, second.id}
        claimable = [await other.leases.claimable("you", now=now) for now in (200, 1000)]
        assert claimable == [[first.id], [first.id, second.id]]
        assert await other.leases.renew("me", 900) == {first.id, second.id}
        assert await other.leases.claimable("you", now=200) == []
        await busy.close()
        await other.close()
        postgres.drop(url)

    @pytest_twisted.ensureDeferred
    async def test_no_session_settings_or_prepared_statements_are_left(
        self, postgres: Postgres
    ) -> None:
        url = postgres.create(template="synced")
        store = Store(url, the_reactor())
        cart = await posted(store)
        for used in range(10):
            await store.carts.touch({cart.id: used})
            await store.carts.cart(cart.id)
        state = select(
            func.current_setting("lock_timeout"),
            text("(SELECT count(*) FROM pg_prepared_statements)"),
        )
        within = await store._database.rows(state)
        assert within == [("30s", 0)]
        for pool in (store._database._readers, store._database._writer):
            connection = await pool.acquire()
            raw = driver_connection(connection._alchimia)
            assert raw.info.transaction_status == 0  # idle
            timeout = raw.execute("SHOW lock_timeout").fetchone()
            assert timeout == ("0",)
            pool.release(connection)
        await store.close()
        postgres.drop(url)

    @pytest.mark.parametrize(
        ("query", "said"),
        [
            ("autocommit=1", "autocommit cannot be set"),
            ("row_factory=x", "row_factory cannot be set"),
            ("prepare_threshold=many", "prepare_threshold is neither a whole number nor none"),
            ("prepare_threshold=1&prepare_threshold=2", "prepare_threshold is neither"),
            ("connect_timeout=soon", "connect_timeout is not a whole number"),
            ("colour=red", 'invalid connection option "colour"'),
        ],
    )
    def test_a_useless_url_parameter_is_rejected_by_name(self, query: str, said: str) -> None:
        with pytest.raises(ConfigError, match=f"^database url: {said}") as raised:
            Store(f"postgresql+psycopg://u:secret@h/d?{query}", the_reactor())
        assert "secret" not in str(raised.value)

    @pytest.mark.parametrize("threshold", ["0", "None", "none", "5", "1000000"])
    @pytest_twisted.ensureDeferred
    async def test_prepare_threshold_in_the_url_is_understood(
        self, threshold: str, postgres: Postgres
    ) -> None:
        store = Store(f"{postgres.url('synced')}&prepare_threshold={threshold}", the_reactor())
        for _ in range(8):
            assert await store.carts.active() == []
        prepared = text("SELECT count(*) FROM pg_prepared_statements")
        [(number,)] = await store._database.rows(prepared)
        assert (number > 0) == (threshold in ("0", "5"))
        await store.close()
