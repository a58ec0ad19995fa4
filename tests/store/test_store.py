"""Carts in the store, on SQLite and PostgreSQL: what is written is what is read."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Coroutine
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from cartd.errors import Unavailable
from cartd.manifest import Entry
from cartd.model import UNRESTRICTED, Cart, CartFile, CartStatus, EvictionCandidate, FileStatus
from cartd.store import Store
from cartd.store.tables import BATCH
from tests.support.stored_carts import (
    SHA1,
    STATUSES,
    claimed,
    found,
    gathered,
    linked,
    manifest,
    posted,
    staged,
    with_status,
)

pytest_plugins = ("tests.support.database_fixtures",)


class TestPosting:
    @pytest_twisted.ensureDeferred
    async def test_a_posted_cart_is_in_staging_with_all_that_was_posted(self, store: Store) -> None:
        listed = [Entry("7", "ä/ö", "md5", ""), Entry("x y", "b" * 300, "sha256", "b" * 64)]
        cart, new = await store.carts.post(
            "uid.1", manifest(listed, bundle=True), bundle=True, now=1.25
        )
        assert new
        assert cart == Cart(
            id=cart.id,
            uid="uid.1",
            status=CartStatus.STAGING,
            created=1.25,
            updated=1.25,
            used=1.25,
            bundle=True,
            fingerprint=manifest(listed, bundle=True).fingerprint,
            files_total=2,
        )
        assert await store.carts.cart(cart.id) == cart
        assert await store.carts.newest("uid.1") == cart
        assert await store.carts.files(cart.id) == [
            CartFile(0, "7", "ä/ö", "md5", ""),
            CartFile(1, "x y", "b" * 300, "sha256", "b" * 64),
        ]

    @pytest_twisted.ensureDeferred
    async def test_a_manifest_of_several_batches_keeps_its_order(self, store: Store) -> None:
        cart = await posted(store, files=2 * BATCH + 1)
        files = await store.carts.files(cart.id, limit=3 * BATCH)
        assert [file.archive_id for file in files] == [f"id{n}" for n in range(2 * BATCH + 1)]
        assert [file.position for file in files] == list(range(2 * BATCH + 1))

    @pytest_twisted.ensureDeferred
    async def test_an_empty_manifest_makes_a_cart_without_files(self, store: Store) -> None:
        cart = await posted(store, files=0)
        assert cart.files_total == 0
        assert await store.carts.files(cart.id) == []

    @pytest.mark.parametrize(
        ("status", "same"),
        [
            (CartStatus.STAGING, True),
            (CartStatus.BUNDLING, True),
            (CartStatus.READY, True),
            (CartStatus.ERROR, False),
            (CartStatus.DELETED, False),
        ],
        ids=lambda value: str(value),
    )
    @pytest_twisted.ensureDeferred
    async def test_reposting_a_manifest_reuses_the_cart_unless_it_failed(
        self, store: Store, status: CartStatus, same: bool
    ) -> None:
        old = await with_status(store, "u", status)
        cart, new = await store.carts.post("u", manifest(1, bundle=True), bundle=True, now=20)
        assert new is not same
        assert (cart == replace(old, used=20)) is same
        assert await store.carts.newest("u") == cart

    @pytest_twisted.ensureDeferred
    async def test_another_manifest_makes_a_newer_cart(self, store: Store) -> None:
        first = await posted(store)
        second = await posted(store, mark="other")
        assert await store.carts.newest("u") == second
        assert await store.carts.carts_for(UNRESTRICTED, "u") == [second, first]
        # Only the newest is compared: the first manifest again is a third cart.
        third, new = await store.carts.post("u", manifest(), bundle=False, now=11)
        assert new
        assert third.id not in {first.id, second.id}

    @pytest_twisted.ensureDeferred
    async def test_the_same_manifest_under_another_uid_is_another_cart(self, store: Store) -> None:
        first, second = await posted(store, "a"), await posted(store, "b")
        assert first.id != second.id
        assert await store.carts.carts_for(UNRESTRICTED, "a") == [first]


class TestFinding:
    @pytest_twisted.ensureDeferred
    async def test_unknown_carts_are_none(self, store: Store) -> None:
        assert await store.carts.newest("nobody") is None
        assert await store.carts.cart(4711) is None
        assert await store.carts.files(4711) == []

    @pytest_twisted.ensureDeferred
    async def test_files_are_paged_and_can_be_filtered_to_unstaged(self, store: Store) -> None:
        cart = await claimed(store, files=5)
        await store.progress.record_staged(cart.id, "me", [(1, SHA1), (3, SHA1)], now=11)

        async def positions(**page: Any) -> list[int]:
            return [file.position for file in await store.carts.files(cart.id, **page)]

        assert await positions(limit=2) == [0, 1]
        assert await positions(after=1, limit=2) == [2, 3]
        assert await positions(after=3, limit=2) == [4]
        assert await positions(unstaged=True) == [0, 2, 4]
        assert await positions(unstaged=True, after=0, limit=1) == [2]
        some = await store.carts.files_at(cart.id, [4, 0, 1, 99])
        assert [file.position for file in some] == [0, 4]

    @pytest_twisted.ensureDeferred
    async def test_lists_hold_the_carts_of_their_statuses_in_order(self, store: Store) -> None:
        carts = {status: await with_status(store, status, status) for status in STATUSES}
        staging, bundling, ready = (
            carts[CartStatus.STAGING],
            carts[CartStatus.BUNDLING],
            carts[CartStatus.READY],
        )
        error = carts[CartStatus.ERROR]
        assert await store.carts.active() == [error, ready, bundling, staging]
        assert await store.leases.claimable("you", now=100) == [staging.id, bundling.id]
        assert await store.carts.unmeasured() == []

    @pytest_twisted.ensureDeferred
    async def test_a_ready_cart_of_unknown_size_is_listed_until_measured(
        self, store: Store
    ) -> None:
        cart = await claimed(store, files=2)
        await store.progress.record_staged(cart.id, "me", [(0, SHA1), (1, SHA1)], now=11)
        await store.progress.record_ready(cart.id, "me", volume_bytes=0, now=12)
        assert [other.id for other in await store.carts.unmeasured()] == [cart.id]
        sizes = [(0, 5, 1), (1, 6, 2)]
        await store.progress.record_measured(cart.id, sizes, bytes_total=11, volume_bytes=12)
        assert await store.carts.unmeasured() == []
        measured = await found(store, cart)
        assert (measured.bytes_total, measured.bytes_staged, measured.volume_bytes) == (11, 11, 12)
        assert [(file.size, file.mtime) for file in await store.carts.files(cart.id)] == [
            (5, 1),
            (6, 2),
        ]


class TestEvicting:
    @pytest_twisted.ensureDeferred
    async def test_eviction_does_not_begin_if_the_cart_has_changed(self, store: Store) -> None:
        seen = await with_status(store, "u", CartStatus.READY)
        await store.carts.touch({seen.id: seen.used + 1})
        assert not await store.removals.begin_eviction(seen, "a")
        assert await store.removals.evicting() == {}
        now = await found(store, seen)
        assert await store.removals.begin_eviction(now, "a")
        assert await store.removals.evicting() == {seen.id: "a"}
        assert not await store.removals.begin_eviction(now, "b")
        await store.removals.end_eviction(seen.id, "b")
        assert await found(store, seen) == replace(now, evicting="a")
        assert await store.space.evictable() == []
        await store.removals.end_eviction(seen.id, "a")
        assert await found(store, seen) == now
        assert await store.removals.mark_deleted(seen.id, 20)
        assert not await store.removals.begin_eviction(now, "a")

    @pytest_twisted.ensureDeferred
    async def test_reposting_at_the_time_of_the_last_use_is_a_later_use(self, store: Store) -> None:
        for seen in [
            await with_status(store, "u", CartStatus.READY),
            await with_status(store, "v", CartStatus.ERROR),
        ]:
            for now in (seen.used, seen.used - 100):  # the clock has not advanced, or was set back
                if seen.status is CartStatus.READY:
                    again, new = await store.carts.post(
                        seen.uid, manifest(1, bundle=True), bundle=False, now=now
                    )
                    assert not new
                    assert again == await found(store, seen)
                    assert not await store.removals.begin_eviction(seen, "a")
                    seen = again
            assert await store.removals.begin_eviction(seen, "a")

    @pytest_twisted.ensureDeferred
    async def test_a_cart_being_evicted_is_neither_restaged_nor_reused(self, store: Store) -> None:
        seen = await with_status(store, "u", CartStatus.READY)
        assert await store.removals.begin_eviction(seen, "a")
        assert not await store.progress.restage(seen.id, lost=[0], now=20)
        other, new = await store.carts.post("u", manifest(1, bundle=True), bundle=False, now=20)
        assert new
        assert other.id != seen.id

    @pytest.mark.parametrize("number", range(20))
    @pytest_twisted.ensureDeferred
    async def test_concurrent_post_and_eviction_are_serialized(
        self, store: Store, number: int
    ) -> None:
        seen = await with_status(store, "u", CartStatus.READY)
        both: list[Coroutine[Any, Any, Any]] = [
            store.carts.post("u", manifest(1, bundle=True), bundle=False, now=20),
            store.removals.begin_eviction(seen, "a"),
        ]
        if number % 2:
            both.reverse()
        results = await gathered(both)
        if number % 2:
            results.reverse()
        (_, new), evicted = results
        assert new == evicted


class TestDeleting:
    @pytest.mark.parametrize("cut_after", [0, 1, 2])
    @pytest_twisted.ensureDeferred
    async def test_files_of_a_removed_cart_are_recorded_in_batches(
        self, store: Store, monkeypatch: pytest.MonkeyPatch, cut_after: int
    ) -> None:
        """Interrupted between two of them, each byte still counts once; the rest is repeatable."""
        monkeypatch.setattr("cartd.store.removals.FILE_BATCH", 2)
        owner = await staged(store, "owner", 5)
        await store.removals.mark_deleted((gone := await staged(store, "gone", 5)).id, 14)
        await store.removals.record_removed(gone.id, 14)
        new_owner = await linked(store, "new_owner", 5)
        await store.progress.record_ready(new_owner.id, "me", volume_bytes=50, now=12)
        assert await store.space.usage() == (50, 0)
        await store.removals.mark_deleted(owner.id, 20)
        done = store.removals._record_files_removed
        batches: list[int] = []

        async def cut(cart_id: int, first: int) -> bool:
            if len(batches) == cut_after:
                raise Unavailable("The database is unavailable")
            batches.append(first)
            return await done(cart_id, first)

        monkeypatch.setattr(store.removals, "_record_files_removed", cut)
        with pytest.raises(Unavailable):
            await store.removals.record_removed(owner.id, 20)
        assert batches == [0, 2][:cut_after]
        assert await store.space.usage() == (50, 0)
        assert await store.removals.pending_removal() == {owner.id}
        monkeypatch.setattr(store.removals, "_record_files_removed", done)
        assert await store.removals.record_removed(owner.id, 21) == 0
        assert await store.space.usage() == (50, 0)
        assert (await found(store, new_owner)).bytes_linked == 0
        assert {one.status for one in await store.carts.files(owner.id)} == {FileStatus.DELETED}
        await store.removals.mark_deleted(new_owner.id, 22)
        assert await store.removals.record_removed(new_owner.id, 22) == 50
        assert await store.space.usage() == (0, 0)

    @pytest_twisted.ensureDeferred
    async def test_an_older_cart_is_found_after_the_newest_is_deleted(self, store: Store) -> None:
        old, new = await posted(store), await posted(store, mark="new")
        assert await store.removals.mark_deleted(new.id, 20)
        assert await store.carts.newest("u") == old
        assert (await found(store, new)).status is CartStatus.DELETED
        assert await store.carts.deleted_among([old.id, new.id, 4711]) == {new.id}

    @pytest_twisted.ensureDeferred
    async def test_a_cart_is_deleted_once(self, store: Store) -> None:
        cart = await posted(store)
        assert await store.removals.mark_deleted(cart.id, 20)
        assert not await store.removals.mark_deleted(cart.id, 30)
        assert not await store.removals.mark_deleted(4711, 30)
        assert (await found(store, cart)).updated == 20

    @pytest_twisted.ensureDeferred
    async def test_a_deleted_cart_uses_space_until_it_is_removed(self, store: Store) -> None:
        cart = await with_status(store, "u", CartStatus.READY)
        assert await store.removals.record_removed(cart.id, 20) == 0
        await store.removals.mark_deleted(cart.id, 20)
        assert await store.space.usage() == (100, 0)
        assert await store.removals.pending_removal() == {cart.id}
        assert await store.removals.record_removed(cart.id, 20) == 100
        assert await store.removals.record_removed(cart.id, 30) == 0
        assert await store.space.usage() == (0, 0)
        assert await store.removals.pending_removal() == set()
        gone = await found(store, cart)
        assert (gone.files_staged, gone.bytes_staged) == (0, 0)
        assert [file.status for file in await store.carts.files(cart.id)] == [FileStatus.DELETED]

    @pytest_twisted.ensureDeferred
    async def test_deleted_among_takes_any_number_of_ids(self, store: Store) -> None:
        cart = await posted(store)
        await store.removals.mark_deleted(cart.id, 20)
        assert await store.carts.deleted_among(range(cart.id, cart.id + 40_000)) == {cart.id}
        assert await store.carts.deleted_among([]) == set()


class TestAccessTimes:
    @pytest_twisted.ensureDeferred
    async def test_a_use_moves_forward_only(self, store: Store) -> None:
        first, second = await posted(store, "a"), await posted(store, "b")
        await store.carts.touch({first.id: 50.5, second.id: 5, 4711: 60})
        assert (await found(store, first)).used == 50.5
        assert (await found(store, second)).used == 10
        assert (await found(store, first)).updated == 10
        await store.carts.touch({})


class TestSpace:
    @pytest_twisted.ensureDeferred
    async def test_an_empty_store_uses_no_space(self, store: Store) -> None:
        assert await store.space.usage() == (0, 0)
        assert await store.space.evictable() == []

    @pytest_twisted.ensureDeferred
    async def test_usage_counts_undeleted_carts_and_their_reservations(self, store: Store) -> None:
        for status in STATUSES:
            await with_status(store, status, status)
        # In error: nothing was staged, so it uses no space.  Deleted: does not count.
        assert await store.space.usage() == (300, 100)
        cart = await store.carts.newest(CartStatus.STAGING)
        assert cart is not None
        await store.progress.record_staged(cart.id, "me", [(0, SHA1)], now=30)
        assert await store.space.usage() == (300, 0)
        # A finished cart has no unwritten bytes, though a tar is larger than its files.
        await store.progress.record_ready(cart.id, "me", volume_bytes=110, now=31)
        assert await store.space.usage() == (310, 0)

    @pytest_twisted.ensureDeferred
    async def test_only_finished_carts_with_bytes_may_be_evicted(self, store: Store) -> None:
        carts = {status: await with_status(store, status, status) for status in STATUSES}
        ready = carts[CartStatus.READY]
        assert await store.space.evictable() == [EvictionCandidate(ready.id, 100, 10)]
        failed = await claimed(store, files=2)
        await store.progress.record_states(failed.id, "me", [(0, 40, 0)])
        await store.progress.record_staged(failed.id, "me", [(0, SHA1)], now=11)
        await store.progress.record_error(failed.id, "me", "x", position=1, file_error="x", now=12)
        await store.carts.touch({failed.id: 99})
        assert EvictionCandidate(failed.id, 40, 99) in await store.space.evictable()


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest_twisted.ensureDeferred
async def test_all_dates_have_one_form_on_sqlite(store: Store, tmp_path: Path) -> None:
    """Python's own conversion, deprecated since 3.12, omits the fraction at whole seconds."""
    waiting, _ = await store.carts.post("waiting", manifest(1), bundle=False, now=10)
    assert await store.leases.claim(waiting.id, "me", now=11, until=100)
    cart = await with_status(store, "ready", CartStatus.READY)
    await store.durability.revalidate(
        cart.id, (await store.durability.dirty_rows("me"))[cart.id], now=20
    )
    with closing(sqlite3.connect(tmp_path / "cartd.sqlite3")) as database:
        dates = database.execute("SELECT updated_date, creation_date FROM cart").fetchall()
    form = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}")
    assert len(dates) == 2
    assert all(form.fullmatch(date) for row in dates for date in row), dates
