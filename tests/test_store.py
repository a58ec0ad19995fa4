"""The store on SQLite and on PostgreSQL: what is written is what is read, whoever comes between."""

# mypy: allow-untyped-decorators
from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred, FirstError, gatherResults

from cartd.errors import ConfigError, LeaseLost, Unavailable
from cartd.eviction import Candidate
from cartd.manifest import Entry, Manifest
from cartd.model import Cart, CartFile, CartStatus, FileStatus
from cartd.store import Store, sync
from cartd.store.carts import BATCH
from cartd.store.connections import THREAD_NAME
from tests.databases import Postgres, sqlite_url, the_reactor

pytest_plugins = ("tests.database_fixtures",)

T = TypeVar("T")
SHA1 = "a" * 40


def entries(number: int, hash_sum: str = SHA1) -> list[Entry]:
    return [Entry(f"id{n}", f"dir/file{n}", "sha1", hash_sum) for n in range(number)]


def manifest(
    files: int | Sequence[Entry] = 2, *, bundle: bool | None = None, mark: str = ""
) -> Manifest:
    listed = entries(files) if isinstance(files, int) else files
    fingerprint = hashlib.sha256(f"{len(listed)} {bundle} {mark}".encode()).hexdigest()
    return Manifest(listed, bundle, fingerprint)


async def posted(store: Store, uid: str = "u", files: int = 2, **more: Any) -> Cart:
    cart, new = await store.post(uid, manifest(files, **more), bundle=False, now=10)
    assert new
    return cart


async def claimed(store: Store, uid: str = "u", files: int = 2, **more: Any) -> Cart:
    """A cart that "me" holds until 100."""
    cart = await posted(store, uid, files, **more)
    held = await store.claim(cart.id, "me", now=10, until=100)
    assert held is not None
    return held


async def found(store: Store, cart: Cart) -> Cart:
    again = await store.cart(cart.id)
    assert again is not None
    return again


async def with_status(store: Store, uid: str, status: CartStatus) -> Cart:
    """A cart of one file of 100 bytes that was brought to ``status``."""
    cart = await claimed(store, uid, 1, bundle=True)
    await store.record_states(cart.id, "me", [(0, 100, 5)])
    await store.reserve(cart.id, "me", bytes_total=100, volume_bytes=100)
    if status is CartStatus.ERROR:
        await store.record_error(cart.id, "me", "why", position=0, file_error="whence", now=12)
    elif status is not CartStatus.STAGING:
        await store.record_staged(cart.id, "me", [(0, SHA1)], now=12)
    if status is CartStatus.BUNDLING:
        await store.begin_bundling(cart.id, "me", 13)
    if status in (CartStatus.READY, CartStatus.DELETED):
        await store.record_ready(cart.id, "me", volume_bytes=100, now=13)
    if status is CartStatus.DELETED:
        await store.mark_deleted(cart.id, 14)
    return await found(store, cart)


def store_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == THREAD_NAME]


class TestPosting:
    @pytest_twisted.ensureDeferred
    async def test_a_posted_cart_is_in_staging_with_all_that_was_posted(self, store: Store) -> None:
        listed = [Entry("7", "ä/ö", "md5", ""), Entry("x y", "b" * 300, "sha256", "b" * 64)]
        cart, new = await store.post("uid.1", manifest(listed, bundle=True), bundle=True, now=1.25)
        assert new
        assert cart == Cart(
            id=cart.id,
            uid="uid.1",
            status=CartStatus.STAGING,
            created=1.25,
            updated=1.25,
            used=1.25,
            bundle=True,
            bundle_asked=True,
            fingerprint=manifest(listed, bundle=True).fingerprint,
            files_total=2,
        )
        assert await store.cart(cart.id) == cart
        assert await store.newest("uid.1") == cart
        assert await store.files(cart.id) == [
            CartFile(0, "7", "ä/ö", "md5", ""),
            CartFile(1, "x y", "b" * 300, "sha256", "b" * 64),
        ]

    @pytest_twisted.ensureDeferred
    async def test_a_cart_bundled_by_the_site_did_not_ask_for_it(self, store: Store) -> None:
        cart, _ = await store.post("u", manifest(), bundle=True, now=1)
        assert (cart.bundle, cart.bundle_asked) == (True, False)

    @pytest_twisted.ensureDeferred
    async def test_a_manifest_of_several_batches_keeps_its_order(self, store: Store) -> None:
        cart = await posted(store, files=2 * BATCH + 1)
        files = await store.files(cart.id, limit=3 * BATCH)
        assert [file.archive_id for file in files] == [f"id{n}" for n in range(2 * BATCH + 1)]
        assert [file.position for file in files] == list(range(2 * BATCH + 1))

    @pytest_twisted.ensureDeferred
    async def test_an_empty_manifest_makes_a_cart_without_files(self, store: Store) -> None:
        cart = await posted(store, files=0)
        assert cart.files_total == 0
        assert await store.files(cart.id) == []

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
    async def test_the_same_manifest_again_makes_a_new_cart_only_where_the_old_one_failed(
        self, store: Store, status: CartStatus, same: bool
    ) -> None:
        old = await with_status(store, "u", status)
        cart, new = await store.post("u", manifest(1, bundle=True), bundle=True, now=20)
        assert new is not same
        assert (cart == old) is same
        assert await store.newest("u") == cart

    @pytest_twisted.ensureDeferred
    async def test_another_manifest_makes_a_newer_cart_that_answers(self, store: Store) -> None:
        first = await posted(store)
        second = await posted(store, mark="other")
        assert await store.newest("u") == second
        assert await store.carts_of("u") == [second, first]
        # Only the newest is compared: the first manifest again is a third cart.
        third, new = await store.post("u", manifest(), bundle=False, now=11)
        assert new
        assert third.id not in {first.id, second.id}

    @pytest_twisted.ensureDeferred
    async def test_the_same_manifest_under_another_uid_is_another_cart(self, store: Store) -> None:
        first, second = await posted(store, "a"), await posted(store, "b")
        assert first.id != second.id
        assert await store.carts_of("a") == [first]


class TestFinding:
    @pytest_twisted.ensureDeferred
    async def test_unknown_carts_are_none(self, store: Store) -> None:
        assert await store.newest("nobody") is None
        assert await store.cart(4711) is None
        assert await store.files(4711) == []

    @pytest_twisted.ensureDeferred
    async def test_files_come_in_pages_and_the_unstaged_alone(self, store: Store) -> None:
        cart = await claimed(store, files=5)
        await store.record_staged(cart.id, "me", [(1, SHA1), (3, SHA1)], now=11)

        async def positions(**page: Any) -> list[int]:
            return [file.position for file in await store.files(cart.id, **page)]

        assert await positions(limit=2) == [0, 1]
        assert await positions(after=1, limit=2) == [2, 3]
        assert await positions(after=3, limit=2) == [4]
        assert await positions(unstaged=True) == [0, 2, 4]
        assert await positions(unstaged=True, after=0, limit=1) == [2]

    @pytest_twisted.ensureDeferred
    async def test_lists_hold_the_carts_of_their_statuses_in_order(self, store: Store) -> None:
        carts = {status: await with_status(store, status, status) for status in STATUSES}
        staging, bundling, ready = (
            carts[CartStatus.STAGING],
            carts[CartStatus.BUNDLING],
            carts[CartStatus.READY],
        )
        error = carts[CartStatus.ERROR]
        assert await store.active() == [error, ready, bundling, staging]
        assert await store.unfinished() == [staging, bundling]
        assert await store.unmeasured() == []

    @pytest_twisted.ensureDeferred
    async def test_a_ready_cart_of_unknown_size_is_unmeasured_until_measured(
        self, store: Store
    ) -> None:
        cart = await claimed(store, files=2)
        await store.record_staged(cart.id, "me", [(0, SHA1), (1, SHA1)], now=11)
        await store.record_ready(cart.id, "me", volume_bytes=0, now=12)
        assert [other.id for other in await store.unmeasured()] == [cart.id]
        sizes = [(0, 5, 1), (1, 6, 2)]
        await store.record_measured(cart.id, sizes, bytes_total=11, volume_bytes=12)
        assert await store.unmeasured() == []
        measured = await found(store, cart)
        assert (measured.bytes_total, measured.bytes_staged, measured.volume_bytes) == (11, 11, 12)
        assert [(file.size, file.mtime) for file in await store.files(cart.id)] == [(5, 1), (6, 2)]


STATUSES = (
    CartStatus.STAGING,
    CartStatus.BUNDLING,
    CartStatus.READY,
    CartStatus.ERROR,
    CartStatus.DELETED,
)


class TestDeleting:
    @pytest_twisted.ensureDeferred
    async def test_a_deleted_cart_answers_no_more_and_an_older_one_does(self, store: Store) -> None:
        old, new = await posted(store), await posted(store, mark="new")
        assert await store.mark_deleted(new.id, 20)
        assert await store.newest("u") == old
        assert (await found(store, new)).status is CartStatus.DELETED
        assert await store.deleted_among([old.id, new.id, 4711]) == {new.id}

    @pytest_twisted.ensureDeferred
    async def test_a_cart_is_deleted_once(self, store: Store) -> None:
        cart = await posted(store)
        assert await store.mark_deleted(cart.id, 20)
        assert not await store.mark_deleted(cart.id, 30)
        assert not await store.mark_deleted(4711, 30)
        assert (await found(store, cart)).updated == 20

    @pytest_twisted.ensureDeferred
    async def test_deleted_carts_are_told_of_any_number_of_ids(self, store: Store) -> None:
        cart = await posted(store)
        await store.mark_deleted(cart.id, 20)
        assert await store.deleted_among(range(cart.id, cart.id + 40_000)) == {cart.id}
        assert await store.deleted_among([]) == set()


class TestUses:
    @pytest_twisted.ensureDeferred
    async def test_a_use_moves_forward_only(self, store: Store) -> None:
        first, second = await posted(store, "a"), await posted(store, "b")
        await store.touch({first.id: 50.5, second.id: 5, 4711: 60})
        assert (await found(store, first)).used == 50.5
        assert (await found(store, second)).used == 10
        assert (await found(store, first)).updated == 10
        await store.touch({})


class TestLeases:
    @pytest.mark.parametrize(
        ("holder", "now", "dead", "taken"),
        [
            pytest.param("me", 20, (), True, id="its own"),
            pytest.param("you", 20, (), False, id="another's"),
            pytest.param("you", 99.9, (), False, id="another's, almost run out"),
            pytest.param("you", 100, (), True, id="run out"),
            pytest.param("you", 20, ("me",), True, id="a dead one's"),
            pytest.param("you", 20, ("he", "she"), False, id="not of these dead"),
        ],
    )
    @pytest_twisted.ensureDeferred
    async def test_a_held_cart_goes_only_to(
        self, store: Store, holder: str, now: float, dead: tuple[str, ...], taken: bool
    ) -> None:
        cart = await claimed(store)
        again = await store.claim(cart.id, holder, now=now, until=300, dead=dead)
        assert again == (cart if taken else None)
        assert await store.renew(holder, 400) == ({cart.id} if taken else set())
        assert await store.holders() == {holder if taken else "me"}

    @pytest.mark.parametrize("status", [CartStatus.READY, CartStatus.ERROR, CartStatus.DELETED])
    @pytest_twisted.ensureDeferred
    async def test_a_cart_without_work_cannot_be_claimed(
        self, store: Store, status: CartStatus
    ) -> None:
        cart = await with_status(store, "u", status)
        assert await store.claim(cart.id, "me", now=20, until=100) is None
        assert await store.holders() == set()

    @pytest_twisted.ensureDeferred
    async def test_a_cart_in_bundling_is_claimed_as_it_is(self, store: Store) -> None:
        cart = await with_status(store, "u", CartStatus.BUNDLING)
        assert await store.claim(cart.id, "you", now=200, until=300) == cart

    @pytest_twisted.ensureDeferred
    async def test_of_many_who_claim_at_once_one_gets_the_cart(
        self, store: Store, database: str
    ) -> None:
        cart = await posted(store)
        other = Store(database, the_reactor())
        claims = [
            (store, other)[n % 2].claim(cart.id, f"holder {n}", now=10, until=100)
            for n in range(20)
        ]
        results = await gathered(claims)
        await other.close()
        assert [result for result in results if result] == [cart]

    @pytest_twisted.ensureDeferred
    async def test_a_released_cart_is_free_but_only_its_holder_releases_it(
        self, store: Store
    ) -> None:
        cart = await claimed(store)
        await store.release(cart.id, "you")
        assert await store.holders() == {"me"}
        await store.release(cart.id, "me")
        assert await store.holders() == set()
        assert await store.claim(cart.id, "you", now=11, until=100) == cart

    @pytest_twisted.ensureDeferred
    async def test_renewing_prolongs_all_leases_of_one_holder(self, store: Store) -> None:
        mine = [await claimed(store, uid) for uid in "abc"]
        theirs = await posted(store, "d")
        await store.claim(theirs.id, "you", now=10, until=100)
        await store.mark_deleted(mine[0].id, 20)
        assert await store.renew("me", 500) == {mine[1].id, mine[2].id}
        assert await store.claim(mine[1].id, "you", now=499, until=600) is None
        assert await store.claim(theirs.id, "me", now=499, until=600) == theirs


Record = Callable[[Store, int], Coroutine[Any, Any, None]]
RECORDS: dict[str, Record] = {
    "states": lambda store, cart: store.record_states(cart, "me", [(0, 1, 2)]),
    "reserve": lambda store, cart: store.reserve(cart, "me", bytes_total=3, volume_bytes=4),
    "staged": lambda store, cart: store.record_staged(cart, "me", [(0, SHA1)], now=60),
    "error": lambda store, cart: store.record_error(
        cart, "me", "no", position=0, file_error="no", now=60
    ),
    "bundling": lambda store, cart: store.begin_bundling(cart, "me", 60),
    "ready": lambda store, cart: store.record_ready(cart, "me", volume_bytes=5, now=60),
}


class TestProgress:
    @pytest.mark.parametrize("loss", ["taken over", "deleted", "released", "finished"])
    @pytest.mark.parametrize("record", RECORDS)
    @pytest_twisted.ensureDeferred
    async def test_nothing_is_written_once_the_lease_is_lost(
        self, store: Store, record: str, loss: str
    ) -> None:
        cart = await claimed(store, bundle=True)
        if loss == "taken over":
            assert await store.claim(cart.id, "you", now=100, until=200)
        elif loss == "deleted":
            await store.mark_deleted(cart.id, 20)
        elif loss == "released":
            await store.release(cart.id, "me")
        else:
            await store.record_ready(cart.id, "me", volume_bytes=0, now=20)
        before = await found(store, cart), await store.files(cart.id), await store.holders()
        with pytest.raises(LeaseLost):
            await RECORDS[record](store, cart.id)
        after = await found(store, cart), await store.files(cart.id), await store.holders()
        assert after == before

    @pytest_twisted.ensureDeferred
    async def test_a_lease_that_ran_out_is_good_until_another_takes_it(self, store: Store) -> None:
        cart = await claimed(store)
        await store.record_staged(cart.id, "me", [(0, SHA1)], now=1000)
        assert (await found(store, cart)).files_staged == 1

    @pytest_twisted.ensureDeferred
    async def test_the_archives_word_on_files_is_kept(self, store: Store) -> None:
        cart = await claimed(store, files=3)
        await store.record_states(cart.id, "me", [(2, 2**40, 2**33), (0, 0, -1)])
        await store.reserve(cart.id, "me", bytes_total=2**40, volume_bytes=2**41)
        first, second, third = await store.files(cart.id)
        assert (first.size, first.mtime, first.status) == (0, -1, FileStatus.STAGING)
        assert (second.size, second.mtime, second.status) == (None, None, FileStatus.WAITING)
        assert (third.size, third.mtime) == (2**40, 2**33)
        now = await found(store, cart)
        assert (now.bytes_total, now.volume_bytes, now.bytes_staged) == (2**40, 2**41, 0)

    @pytest_twisted.ensureDeferred
    async def test_counters_follow_the_staged_files_however_often_they_are_told(
        self, store: Store
    ) -> None:
        cart = await claimed(store, files=4)
        await store.record_states(cart.id, "me", [(n, 10**n, 0) for n in range(4)])
        await store.record_staged(cart.id, "me", [(0, SHA1), (2, SHA1)], now=11)
        await store.record_staged(cart.id, "me", [(2, SHA1), (3, SHA1), (3, SHA1)], now=12)
        await store.record_staged(cart.id, "me", [(0, SHA1)], now=13)
        await store.record_staged(cart.id, "me", [], now=13)
        now = await found(store, cart)
        assert (now.files_staged, now.bytes_staged) == (3, 1101)
        staged = [file.position for file in await store.files(cart.id) if file.status == "staged"]
        assert staged == [0, 2, 3]

    @pytest_twisted.ensureDeferred
    async def test_a_size_that_comes_after_the_file_counts_as_well(self, store: Store) -> None:
        cart = await claimed(store, files=2)
        await store.record_staged(cart.id, "me", [(0, SHA1)], now=11)
        await store.record_states(cart.id, "me", [(0, 70, 1), (1, 7, 1)])
        now = await found(store, cart)
        assert (now.files_staged, now.bytes_staged) == (1, 70)
        assert (await store.files(cart.id))[0].status is FileStatus.STAGED

    @pytest_twisted.ensureDeferred
    async def test_thousands_of_rows_are_recorded_at_once(self, store: Store) -> None:
        many = 2 * BATCH + 500
        cart = await claimed(store, files=many)
        await store.record_states(cart.id, "me", [(n, 3, n) for n in range(many)])
        await store.record_staged(cart.id, "me", [(n, SHA1) for n in range(many)], now=11)
        now = await found(store, cart)
        assert (now.files_staged, now.bytes_staged) == (many, 3 * many)
        assert await store.files(cart.id, unstaged=True) == []

    @pytest_twisted.ensureDeferred
    async def test_a_digest_is_kept_only_where_none_was_declared(self, store: Store) -> None:
        listed = [Entry("1", "a", "sha1", ""), Entry("2", "b", "sha1", SHA1)]
        cart, _ = await store.post("u", manifest(listed), bundle=False, now=10)
        await store.claim(cart.id, "me", now=10, until=100)
        await store.record_staged(cart.id, "me", [(0, "c" * 40), (1, "c" * 40)], now=11)
        assert [file.hash_sum for file in await store.files(cart.id)] == ["c" * 40, SHA1]

    @pytest_twisted.ensureDeferred
    async def test_an_error_names_cart_and_file_and_keeps_only_what_was_staged(
        self, store: Store
    ) -> None:
        cart = await claimed(store, files=2)
        await store.record_states(cart.id, "me", [(0, 30, 0), (1, 70, 0)])
        await store.reserve(cart.id, "me", bytes_total=100, volume_bytes=100)
        await store.record_staged(cart.id, "me", [(0, SHA1)], now=11)
        await store.record_error(cart.id, "me", "cart's", position=1, file_error="file's", now=12)
        now = await found(store, cart)
        assert (now.status, now.error, now.updated) == (CartStatus.ERROR, "cart's", 12)
        assert (now.volume_bytes, now.bytes_staged) == (30, 30)
        failed = (await store.files(cart.id))[1]
        assert (failed.status, failed.error) == (FileStatus.ERROR, "file's")
        assert await store.holders() == set()

    @pytest_twisted.ensureDeferred
    async def test_an_error_may_have_no_file(self, store: Store) -> None:
        cart = await claimed(store)
        await store.record_error(
            cart.id, "me", "No Space Available", position=None, file_error="", now=12
        )
        assert (await found(store, cart)).error == "No Space Available"
        assert {file.status for file in await store.files(cart.id)} == {FileStatus.WAITING}

    @pytest.mark.parametrize(
        ("asked", "status"), [(True, CartStatus.BUNDLING), (None, CartStatus.STAGING)]
    )
    @pytest_twisted.ensureDeferred
    async def test_bundling_is_said_only_to_who_asked_for_it(
        self, store: Store, asked: bool | None, status: CartStatus
    ) -> None:
        cart = await claimed(store, bundle=asked)
        await store.begin_bundling(cart.id, "me", 15)
        assert (await found(store, cart)).status is status
        assert await store.renew("me", 200) == {cart.id}

    @pytest_twisted.ensureDeferred
    async def test_a_ready_cart_is_nobodys(self, store: Store) -> None:
        cart = await claimed(store)
        await store.record_ready(cart.id, "me", volume_bytes=77, now=15.5)
        now = await found(store, cart)
        assert (now.status, now.updated, now.volume_bytes) == (CartStatus.READY, 15.5, 77)
        assert await store.holders() == set()


class TestRestaging:
    @pytest_twisted.ensureDeferred
    async def test_lost_files_wait_again_and_the_counters_know(self, store: Store) -> None:
        cart = await claimed(store, files=3)
        await store.record_states(cart.id, "me", [(n, 10**n, 0) for n in range(3)])
        await store.record_staged(cart.id, "me", [(n, SHA1) for n in range(3)], now=11)
        await store.record_ready(cart.id, "me", volume_bytes=111, now=12)
        assert await store.restage(cart.id, lost=[2, 0], now=20)
        now = await found(store, cart)
        assert (now.status, now.updated) == (CartStatus.STAGING, 20)
        assert (now.files_staged, now.bytes_staged) == (1, 10)
        assert [file.position for file in await store.files(cart.id, unstaged=True)] == [0, 2]

    @pytest_twisted.ensureDeferred
    async def test_a_cart_in_error_forgets_its_errors(self, store: Store) -> None:
        cart = await with_status(store, "u", CartStatus.ERROR)
        assert await store.restage(cart.id, lost=None, now=20)
        now, [file] = await found(store, cart), await store.files(cart.id)
        assert (now.status, now.error) == (CartStatus.STAGING, "")
        assert (file.status, file.error, file.size) == (FileStatus.WAITING, "", 100)

    @pytest.mark.parametrize(
        "status", [CartStatus.STAGING, CartStatus.BUNDLING, CartStatus.DELETED]
    )
    @pytest_twisted.ensureDeferred
    async def test_what_is_under_way_or_gone_is_left_alone(
        self, store: Store, status: CartStatus
    ) -> None:
        cart = await with_status(store, "u", status)
        files = await store.files(cart.id)
        assert not await store.restage(cart.id, lost=[0], now=20)
        assert await found(store, cart) == cart
        assert await store.files(cart.id) == files


class TestSpace:
    @pytest_twisted.ensureDeferred
    async def test_an_empty_store_takes_nothing(self, store: Store) -> None:
        assert await store.usage() == (0, 0)
        assert await store.evictable() == []

    @pytest_twisted.ensureDeferred
    async def test_usage_counts_the_living_and_what_they_were_promised(self, store: Store) -> None:
        for status in STATUSES:
            await with_status(store, status, status)
        # In error: nothing was staged, so it takes nothing.  Deleted: does not count.
        assert await store.usage() == (300, 100)
        cart = await store.newest(CartStatus.STAGING)
        assert cart is not None
        await store.record_staged(cart.id, "me", [(0, SHA1)], now=30)
        assert await store.usage() == (300, 0)

    @pytest_twisted.ensureDeferred
    async def test_only_finished_carts_with_bytes_may_be_evicted(self, store: Store) -> None:
        carts = {status: await with_status(store, status, status) for status in STATUSES}
        ready = carts[CartStatus.READY]
        assert await store.evictable() == [Candidate(ready.id, 100, 10)]
        failed = await claimed(store, files=2)
        await store.record_states(failed.id, "me", [(0, 40, 0)])
        await store.record_staged(failed.id, "me", [(0, SHA1)], now=11)
        await store.record_error(failed.id, "me", "x", position=1, file_error="x", now=12)
        await store.touch({failed.id: 99})
        assert Candidate(failed.id, 40, 99) in await store.evictable()


class WatchedEntries(list[Entry]):
    """Entries that tell when the second batch of them is on its way into the database."""

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
    async def test_a_cancelled_post_leaves_nothing_and_disturbs_nobody(self, store: Store) -> None:
        listed = WatchedEntries(5 * BATCH)
        posting = Deferred.fromCoroutine(store.post("cut", manifest(listed), bundle=False, now=10))
        await listed.reached
        next_one = Deferred.fromCoroutine(posted(store, "next"))
        posting.cancel()
        with pytest.raises(CancelledError):
            await posting
        cart = await next_one
        assert len(await store.files(cart.id)) == 2
        assert await store.newest("cut") is None
        assert await store.active() == [cart]

    @pytest_twisted.ensureDeferred
    async def test_cancelled_queries_cost_no_connection(self, store: Store) -> None:
        cart = await posted(store)
        for _ in range(20):
            cut = Deferred.fromCoroutine(store.newest("u"))
            waiting = Deferred.fromCoroutine(store.mark_deleted(4711, 1))
            cut.cancel()
            waiting.cancel()
            for cancelled in (cut, waiting):
                with pytest.raises(CancelledError):
                    await cancelled
        assert await gathered([store.newest("u") for _ in range(20)]) == [cart] * 20
        assert await store.mark_deleted(cart.id, 20)

    @pytest_twisted.ensureDeferred
    async def test_many_at_once_never_find_the_database_locked(
        self, store: Store, database: str
    ) -> None:
        other = Store(database, the_reactor())

        async def live(number: int) -> int:
            mine, its = (store, other) if number % 2 else (other, store)
            cart = await claimed(mine, f"u{number}", 20)
            await its.newest(f"u{number}")
            await mine.record_states(cart.id, "me", [(n, 1, 1) for n in range(20)])
            await its.touch({cart.id: 50})
            await mine.record_staged(cart.id, "me", [(n, SHA1) for n in range(20)], now=11)
            await mine.record_ready(cart.id, "me", volume_bytes=20, now=12)
            return (await found(its, cart)).bytes_staged

        assert await gathered([live(number) for number in range(40)]) == [20] * 40
        await other.close()
        assert await store.usage() == (800, 0)

    @pytest_twisted.ensureDeferred
    async def test_closing_ends_all_threads_and_lets_what_runs_finish(self, database: str) -> None:
        store = Store(database, the_reactor())
        assert store_threads() == []
        posting = Deferred.fromCoroutine(posted(store, files=BATCH + 1))
        reading = Deferred.fromCoroutine(gathered([store.newest("u") for _ in range(10)]))
        closing = Deferred.fromCoroutine(store.close())
        assert store_threads() != []
        await closing
        assert store_threads() == []
        assert (await posting).files_total == BATCH + 1
        with pytest.raises(Unavailable):
            await reading
        with pytest.raises(Unavailable):
            await store.newest("u")
        with pytest.raises(Unavailable):
            await store.touch({1: 1})

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
        await gathered([store.newest("u") for _ in range(10)])
        own_postgres.stop()
        for _ in range(5):
            with pytest.raises(Unavailable, match=r"^The database cannot be used: "):
                await store.newest("u")
            with pytest.raises(Unavailable):
                await store.record_staged(cart.id, "me", [(0, SHA1)], now=11)
        own_postgres.start()
        assert await gathered([store.newest("u") for _ in range(10)]) == [cart] * 10
        await store.record_staged(cart.id, "me", [(0, SHA1)], now=12)
        assert (await found(store, cart)).files_staged == 1
        await store.close()
        assert store_threads() == []

    @pytest_twisted.ensureDeferred
    async def test_a_server_that_was_restarted_meanwhile_is_not_missed(
        self, own_postgres: Postgres
    ) -> None:
        url = own_postgres.create()
        sync(url)
        store = Store(url, the_reactor())
        cart = await claimed(store)
        for once_more in range(2):
            await gathered([store.newest("u") for _ in range(10)])
            own_postgres.stop()
            own_postgres.start()
            if once_more:
                await store.record_staged(cart.id, "me", [(0, SHA1)], now=12)
            assert (await found(store, cart)).files_staged == once_more
        await store.close()

    @pytest_twisted.ensureDeferred
    async def test_a_directory_that_is_not_there_is_unavailable_until_it_is(
        self, tmp_path: Path
    ) -> None:
        url = sqlite_url(tmp_path / "later" / "cartd.sqlite3")
        store = Store(url, the_reactor())
        with pytest.raises(Unavailable, match="unable to open database file"):
            await store.newest("u")
        (tmp_path / "later").mkdir()
        sync(url)
        assert await store.newest("u") is None
        await store.close()
        assert store_threads() == []

    @pytest.mark.parametrize(
        ("url", "said"),
        [
            ("no url, secret", "not a URL"),
            ("oracle+nothing://u:secret@h/d", "'oracle\\+nothing' are not supported"),
            ("mysql+pymysql_absent://u:secret@h/d", "are not supported"),
        ],
    )
    def test_a_url_that_cannot_be_used_is_told_without_its_password(
        self, url: str, said: str
    ) -> None:
        with pytest.raises(ConfigError, match=said) as raised:
            Store(url, the_reactor())
        assert "secret" not in str(raised.value)


async def gathered(coroutines: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all, which run at once; or the first failure."""
    running = [Deferred.fromCoroutine(coroutine) for coroutine in coroutines]
    try:
        return await gatherResults(running, consumeErrors=True)
    except FirstError as error:
        error.subFailure.raiseException()
        raise
