"""Dirty rows: marked when files are staged, deleted after a sync, revalidated after a crash.

:mod:`tests.store.test_dedup` shows that each byte counts once whatever is revalidated.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from sqlalchemy import Engine, select, update

from cartd.model import Cart, CartStatus, FileStatus
from cartd.store import Store, tables
from cartd.store.database import Transaction, lock_writers
from cartd.store.engine import reading_engine, writing_engine
from cartd.store.tables import BATCH, dirty_files
from tests.support.databases import sqlite_url
from tests.support.stored_carts import (
    SHA1,
    Ended,
    claimed,
    end_after,
    found,
    linked,
    manifest,
    posted,
    staged,
    with_status,
)

pytest_plugins = ("tests.support.database_fixtures",)


async def rows_of(store: Store, cart: Cart, holder: str = "me") -> list[int]:
    return (await store.durability.dirty_rows(holder)).get(cart.id, [])


async def staged_positions(store: Store, cart: Cart) -> list[int]:
    files = await store.carts.files(cart.id)
    return [file.position for file in files if file.status is FileStatus.STAGED]


async def revalidate_all(store: Store, cart: Cart, holder: str = "me") -> int:
    return await store.durability.revalidate(cart.id, await rows_of(store, cart, holder), now=20)


class TestMarkDirty:
    @pytest_twisted.ensureDeferred
    async def test_each_staged_file_is_marked_dirty_once(self, store: Store) -> None:
        cart = await claimed(store, files=4)
        await store.progress.record_staged(cart.id, "me", [(0, SHA1), (2, SHA1)], now=11)
        first = await rows_of(store, cart)
        await store.progress.record_staged(cart.id, "me", [(2, SHA1), (3, SHA1)], now=11)
        await store.progress.record_staged(cart.id, "me", [(0, SHA1)], now=11)
        assert len(first) == 1
        assert await store.durability.revalidate(cart.id, first, now=20) == 2
        assert await staged_positions(store, cart) == [3]
        assert await revalidate_all(store, cart) == 1
        assert await staged_positions(store, cart) == []
        assert await store.durability.dirty_rows("me") == {}

    @pytest_twisted.ensureDeferred
    async def test_a_linked_file_is_marked_dirty(self, store: Store) -> None:
        await staged(store, "first")
        cart = await linked(store, "again")
        assert await staged_positions(store, cart) == [0, 1]
        assert await revalidate_all(store, cart) == 2
        now = await found(store, cart)
        assert (now.files_staged, now.bytes_staged, now.bytes_linked) == (0, 0, 0)

    @pytest_twisted.ensureDeferred
    async def test_a_dirty_row_names_at_most_one_batch_of_files(
        self, store: Store, database: str
    ) -> None:
        cart = await claimed(store, files=BATCH + 3)
        await store.progress.record_staged(
            cart.id, "me", [(n, SHA1) for n in range(BATCH + 3)], now=11
        )
        engine = reading_engine(database)
        with engine.connect() as connection:
            positions = connection.scalars(select(dirty_files.c.positions)).all()
        engine.dispose()
        assert [len(text.split(",")) for text in positions] == [BATCH, 3]

    @pytest_twisted.ensureDeferred
    async def test_a_sync_removes_only_the_dirty_rows_that_it_covers(self, store: Store) -> None:
        cart, other = await claimed(store), await claimed(store, "other")
        await store.progress.record_staged(cart.id, "me", [(0, SHA1)], now=11)
        taken = await rows_of(store, cart)
        await store.progress.record_staged(other.id, "me", [(0, SHA1)], now=11)
        await store.durability.record_synced(taken)
        assert list(await store.durability.dirty_rows("me")) == [other.id]
        assert await revalidate_all(store, cart) == 0
        assert await staged_positions(store, cart) == [0]

    @pytest_twisted.ensureDeferred
    async def test_ids_of_dirty_rows_are_not_reused_during_a_sync(self, store: Store) -> None:
        cart, other = await claimed(store), await claimed(store, "other")
        await store.progress.record_staged(cart.id, "me", [(0, SHA1)], now=11)
        taken = await rows_of(store, cart)
        await store.removals.mark_deleted(cart.id, 12)
        await store.progress.record_staged(other.id, "me", [(0, SHA1)], now=12)
        await store.durability.record_synced(taken)
        assert list(await store.durability.dirty_rows("me")) == [other.id]

    @pytest.mark.parametrize(
        "end",
        [
            lambda store, cart: store.removals.mark_deleted(cart.id, 12),
            lambda store, cart: store.progress.record_bundled(cart.id, "me"),
        ],
        ids=["deleted", "bundled"],
    )
    @pytest_twisted.ensureDeferred
    async def test_dirty_rows_are_cleared_when_the_tree_is_removed(
        self, store: Store, end: Callable[[Store, Cart], Coroutine[Any, Any, Any]]
    ) -> None:
        cart = await claimed(store)
        await store.progress.record_staged(cart.id, "me", [(0, SHA1), (1, SHA1)], now=11)
        await end(store, cart)
        assert await store.durability.dirty_rows("me") == {}


class TestAbandonedRows:
    @pytest_twisted.ensureDeferred
    async def test_dirty_rows_are_abandoned_when_dead_or_lease_expired(self, store: Store) -> None:
        cart = await staged(store, "mine")
        assert await store.leases.holders() == {}
        assert await store.durability.dirty_holders() == {"me"}
        for dead, now, is_left in [((), 99, False), (("me",), 99, True), ((), 100, True)]:
            left = await store.durability.abandoned_dirty_rows("you", dead=dead, now=now)
            assert list(left) == [cart.id] * is_left
        assert await store.durability.abandoned_dirty_rows("me", dead=(), now=1000) == {}
        assert list(await store.durability.dirty_rows_of_others(cart.id, "you")) == [cart.id]
        assert await store.durability.dirty_rows_of_others(cart.id, "me") == {}

    @pytest_twisted.ensureDeferred
    async def test_renewing_leases_renews_dirty_rows(self, store: Store) -> None:
        cart = await staged(store, "mine")
        assert await store.leases.renew("you", 500) == set()
        assert list(await store.durability.abandoned_dirty_rows("you", dead=(), now=101)) == [
            cart.id
        ]
        assert await store.leases.renew("me", 500) == set()
        assert await store.durability.abandoned_dirty_rows("you", dead=(), now=499) == {}


class TestRevalidate:
    @pytest_twisted.ensureDeferred
    async def test_a_revalidated_cart_is_restaged_and_keeps_its_space(self, store: Store) -> None:
        cart = await staged(store, "mine", 3)
        assert await revalidate_all(store, cart) == 3
        now = await found(store, cart)
        assert (now.status, now.updated) == (CartStatus.STAGING, 20)
        assert (now.files_staged, now.bytes_staged) == (0, 0)
        assert (now.bytes_total, now.volume_bytes) == (30, 30)
        files = await store.carts.files(cart.id)
        assert [(file.status, file.size, file.mtime) for file in files] == [
            (FileStatus.WAITING, 10, 7)
        ] * 3

    @pytest_twisted.ensureDeferred
    async def test_a_revalidated_failed_cart_offers_no_duplicates(self, store: Store) -> None:
        cart = await claimed(store, files=2)
        await store.progress.record_states(cart.id, "me", [(0, 30, 5), (1, 70, 5)])
        await store.progress.record_staged(cart.id, "me", [(0, SHA1)], now=11)
        await store.progress.record_error(
            cart.id, "me", "why", position=1, file_error="whence", now=12
        )
        again = await claimed(store, "again")
        assert len(await store.dedup.duplicates(again.id, range(2))) == 1
        assert await revalidate_all(store, cart) == 1
        now = await found(store, cart)
        assert (now.status, now.error, now.updated) == (CartStatus.STAGING, "", 20)
        assert (now.files_staged, now.bytes_staged, now.volume_bytes) == (0, 0, 30)
        assert [file.error for file in await store.carts.files(cart.id)] == ["", "whence"]
        assert await store.dedup.duplicates(again.id, range(2)) == []

    @pytest_twisted.ensureDeferred
    async def test_revalidation_ends_the_lease_of_the_rows_holder(self, store: Store) -> None:
        cart = await claimed(store)
        await store.progress.record_staged(cart.id, "me", [(0, SHA1)], now=11)
        assert await revalidate_all(store, cart) == 1
        assert await store.leases.holders() == {}
        assert (await found(store, cart)).status is CartStatus.STAGING

    @pytest_twisted.ensureDeferred
    async def test_revalidation_keeps_the_lease_of_another_holder(self, store: Store) -> None:
        cart = await claimed(store)
        await store.progress.record_staged(cart.id, "me", [(0, SHA1)], now=11)
        assert await store.leases.claim(cart.id, "you", now=100, until=200)
        assert await revalidate_all(store, cart) == 1
        assert list(await store.leases.holders()) == ["you"]
        assert await staged_positions(store, cart) == []

    @pytest_twisted.ensureDeferred
    async def test_revalidation_invalidates_all_files_of_a_bundled_cart(self, store: Store) -> None:
        cart, _ = await store.carts.post("u", manifest(bundle=True), bundle=True, now=10)
        await store.leases.claim(cart.id, "me", now=10, until=100)
        await store.progress.record_states(cart.id, "me", [(0, 10, 5), (1, 10, 5)])
        await store.progress.record_staged(cart.id, "me", [(0, SHA1)], now=11)
        await store.durability.record_synced(await rows_of(store, cart))
        await store.progress.record_staged(cart.id, "me", [(1, SHA1)], now=11)
        await store.progress.begin_bundling(cart.id, "me", 12)
        assert await revalidate_all(store, cart) == 1
        now = await found(store, cart)
        assert (now.status, now.files_staged, now.bytes_staged) == (CartStatus.STAGING, 0, 0)

    @pytest_twisted.ensureDeferred
    async def test_links_to_a_revalidated_bundle_take_over_its_bytes(self, store: Store) -> None:
        first = await staged(store, "first")
        cart, _ = await store.carts.post("u", manifest(bundle=True), bundle=True, now=10)
        await store.leases.claim(cart.id, "me", now=10, until=100)
        await store.dedup.record_linked(
            cart.id, "me", await store.dedup.duplicates(cart.id, range(2))
        )
        last = await linked(store, "last")
        await store.removals.mark_deleted(first.id, 12)
        await store.removals.record_removed(first.id, 12)
        assert (await found(store, last)).bytes_linked == 20
        assert await revalidate_all(store, cart) == 2
        assert (await found(store, last)).bytes_linked == 0

    @pytest.mark.parametrize("bundle", [False, True], ids=["a tree", "a bundle"])
    @pytest.mark.parametrize("ends_after", range(1, 4))
    @pytest_twisted.ensureDeferred
    async def test_a_revalidation_killed_between_batches_is_resumed(
        self, store: Store, monkeypatch: pytest.MonkeyPatch, ends_after: int, bundle: bool
    ) -> None:
        """Until all is revalidated, the next holder finds the rows, and the cart is not ready."""
        monkeypatch.setattr("cartd.store.durability.BATCH", 2)
        cart, _ = await store.carts.post("u", manifest(8, bundle=bundle), bundle=bundle, now=10)
        await store.leases.claim(cart.id, "me", now=10, until=100)
        await store.progress.record_states(cart.id, "me", [(n, 10, 5) for n in range(8)])
        for n in range(0, 8, 2):
            await store.progress.record_staged(cart.id, "me", [(n, SHA1), (n + 1, SHA1)], now=11)
        await store.progress.record_ready(cart.id, "me", volume_bytes=80, now=12)
        rows = await rows_of(store, cart)
        assert len(rows) == 4
        end_after(monkeypatch, "cartd.store.durability.lock_writers", ends_after)
        with pytest.raises(Ended):
            await store.durability.revalidate(cart.id, rows, now=20)
        monkeypatch.undo()
        now = await found(store, cart)
        lost = 2 * ends_after
        assert (now.status, now.files_staged) == (CartStatus.STAGING, 8 - lost)
        assert now.bytes_staged == 10 * now.files_staged
        assert await staged_positions(store, cart) == [*range(lost, 8)]
        assert await rows_of(store, cart) == (rows if bundle else rows[ends_after:])
        left = (await store.durability.dirty_rows_of_others(cart.id, "you")).get(cart.id, [])
        await store.durability.revalidate(cart.id, left, now=21)
        now = await found(store, cart)
        assert (now.files_staged, now.bytes_staged) == (0, 0)
        assert await store.durability.dirty_rows("me") == {}

    @pytest_twisted.ensureDeferred
    async def test_files_staged_during_a_revalidation_are_revalidated(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each batch ends the lease of the rows' holder, and discards what it stages meanwhile."""
        cart, _ = await store.carts.post("u", manifest(4, bundle=True), bundle=True, now=10)
        await store.leases.claim(cart.id, "me", now=10, until=100)
        await store.progress.record_states(cart.id, "me", [(n, 10, 5) for n in range(4)])
        await store.progress.record_staged(cart.id, "me", [(n, SHA1) for n in range(4)], now=11)
        rows = await rows_of(store, cart)
        monkeypatch.setattr("cartd.store.durability.BATCH", 2)
        calls = 0

        async def claim_in_between(transaction: Transaction) -> None:
            nonlocal calls
            calls += 1
            if calls == 2:
                await transaction.execute(
                    update(tables.cart).values(lease_holder="me", lease_until=100.0)
                )
            await lock_writers(transaction)

        monkeypatch.setattr("cartd.store.durability.lock_writers", claim_in_between)
        assert await store.durability.revalidate(cart.id, rows, now=20) == 4
        assert calls == 3
        assert await store.leases.holders() == {}
        assert await staged_positions(store, cart) == []

    @pytest.mark.parametrize("status", [CartStatus.READY, CartStatus.DELETED])
    @pytest_twisted.ensureDeferred
    async def test_revalidating_deleted_rows_changes_nothing(
        self, store: Store, status: CartStatus
    ) -> None:
        cart = await with_status(store, "mine", CartStatus.READY)
        rows = await rows_of(store, cart)
        if status is CartStatus.DELETED:
            await store.removals.mark_deleted(cart.id, 14)
        else:
            await store.durability.record_synced(rows)
        before = await found(store, cart), await store.carts.files(cart.id)
        assert await store.durability.revalidate(cart.id, rows, now=20) == 0
        assert (await found(store, cart), await store.carts.files(cart.id)) == before


class TestTakeOver:
    """Writes that are still in the page cache when their process has died."""

    @staticmethod
    async def note(store: Store, uid: str, holder: str, cache: str | None) -> Cart:
        """A cart with a file staged by ``holder``, whose page cache is ``cache``."""
        cart = await posted(store, uid)
        await store.leases.claim(cart.id, holder, now=10, until=100)
        await store.progress.record_staged(cart.id, holder, [(0, SHA1)], now=11)
        await store.durability.record_synced([], holder=holder, cache=cache)
        return cart

    @pytest.mark.parametrize(
        ("cache", "dead", "now", "mine"),
        [
            ("this boot", {"you"}, 20, True),
            ("another boot", {"you"}, 20, False),
            (None, {"you"}, 20, False),
            ("this boot", set(), 20, False),
            ("this boot", set(), 1000, True),
        ],
        ids=["dead", "another boot", "not known", "alive", "silent"],
    )
    @pytest_twisted.ensureDeferred
    async def test_dirty_rows_of_the_same_page_cache_are_taken_over(
        self, store: Store, cache: str | None, dead: set[str], now: float, mine: bool
    ) -> None:
        cart = await self.note(store, "mine", "you", cache)
        taken_over = await store.durability.take_over_dirty_rows(
            "me", "this boot", dead=dead, now=now, until=now + 100
        )
        assert taken_over == mine
        assert bool(await rows_of(store, cart, "me")) == mine
        left = await store.durability.abandoned_dirty_rows("me", dead={"you"}, now=20)
        assert (cart.id in left) != mine

    @pytest_twisted.ensureDeferred
    async def test_nothing_is_taken_over_during_or_after_a_failed_sync(self, store: Store) -> None:
        await self.note(store, "mine", "you", "this boot")
        await store.durability.forget_page_cache("you")
        assert not await store.durability.take_over_dirty_rows(
            "me", "this boot", dead={"you"}, now=20, until=100
        )

    @pytest_twisted.ensureDeferred
    async def test_page_caches_of_dead_holders_are_removed(self, store: Store) -> None:
        await self.note(store, "mine", "you", "this boot")
        assert await store.durability.dirty_holders() == {"you"}
        await store.durability.take_over_dirty_rows(
            "me", "this boot", dead={"you"}, now=20, until=100
        )
        assert await store.durability.dirty_holders() == {"me"}

    @pytest_twisted.ensureDeferred
    async def test_dirty_rows_are_taken_over_for_one_cart_only(self, store: Store) -> None:
        cart = await self.note(store, "mine", "you", "this boot")
        other = await self.note(store, "other", "you", "this boot")
        foreign = await self.note(store, "foreign", "them", "another boot")
        for one in (cart, foreign):
            await store.durability.take_over_dirty_rows_of_cart(
                one.id, "me", "this boot", until=100
            )
        assert list(await store.durability.dirty_rows("me")) == [cart.id]
        assert list(await store.durability.dirty_rows("you")) == [other.id]
        assert list(await store.durability.dirty_rows("them")) == [foreign.id]


@pytest.mark.parametrize("engine_for", [reading_engine, writing_engine])
def test_sqlite_commits_are_synced_to_disk(
    engine_for: Callable[[str], Engine], tmp_path: Path
) -> None:
    """Whatever the default of the SQLite build: 2 is FULL."""
    (tmp_path / "new.sqlite3").touch()
    engine = engine_for(sqlite_url(tmp_path / "new.sqlite3"))
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
    engine.dispose()
