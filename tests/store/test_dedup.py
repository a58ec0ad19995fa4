"""Files that several carts share by hard links: found, recorded and counted once."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from random import Random
from typing import Any

import pytest
import pytest_twisted
from sqlalchemy import text
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from cartd.errors import LeaseLost
from cartd.manifest import Entry
from cartd.model import Cart, CartStatus, FileStatus
from cartd.store import Store
from cartd.store.database import Database, lock_writers
from tests.support.databases import the_reactor
from tests.support.shared_files import Sharing
from tests.support.stored_carts import (
    SHA1,
    Ended,
    claimed,
    deleted,
    end_after,
    entries,
    found,
    gathered,
    linked,
    manifest,
    staged,
    with_status,
)
from tests.support.volume_parts import outcome

pytest_plugins = ("tests.support.database_fixtures",)

_WAITING = text(
    "SELECT count(*) FROM pg_stat_activity"
    " WHERE wait_event_type = 'Lock' AND datname = current_database()"
)


@pytest.mark.parametrize("seed", range(2))
@pytest_twisted.ensureDeferred
async def test_each_shared_byte_counts_once(
    store: Store, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cartd.store.removals.FILE_BATCH", (1, 3)[seed])
    monkeypatch.setattr("cartd.store.progress.BATCH", (2, 1)[seed])
    monkeypatch.setattr("cartd.store.durability.BATCH", (1, 2)[seed])
    sharing = Sharing(store, Random(seed))
    for _ in range(300):
        await sharing.step()
        await sharing.check()
    while sharing.trees:
        await sharing.delete()
    while sharing.leaving:
        await sharing.remove()
    assert await store.space.usage() == (0, 0)
    assert await store.space.shared_bytes() == []


@pytest_twisted.ensureDeferred
async def test_a_linked_file_is_staged_and_uses_no_more_space(store: Store) -> None:
    first = await staged(store, "first")
    cart = await linked(store, "again")
    assert (cart.files_staged, cart.bytes_staged, cart.volume_bytes) == (2, 20, 20)
    assert cart.bytes_linked == 20
    assert await store.space.usage() == (20, 0)
    files = await store.carts.files(cart.id)
    assert [(one.status, one.size, one.mtime) for one in files] == [(FileStatus.STAGED, 10, 7)] * 2
    assert await store.dedup.duplicates(cart.id, range(2)) == []
    assert await deleted(store, first) == 0
    assert (await found(store, cart)).bytes_linked == 0
    assert await store.space.usage() == (20, 0)
    assert await deleted(store, cart) == 20


@pytest.mark.parametrize(
    ("other", "number"),
    [
        pytest.param(Entry("id0", "p", "sha1", SHA1), 1, id="the same, elsewhere"),
        pytest.param(Entry("id0", "p", "sha1", ""), 0, id="of no known hash"),
        pytest.param(Entry("id0", "p", "sha1", "b" * 40), 0, id="of another hash"),
        pytest.param(Entry("id0", "p", "ripemd160", SHA1), 0, id="of another kind of hash"),
        pytest.param(Entry("id9", "p", "sha1", SHA1), 0, id="of another id"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_duplicate_has_the_same_id_and_hash(
    store: Store, other: Entry, number: int
) -> None:
    await staged(store, "first")
    cart = await claimed(store, "again", [other])
    assert len(await store.dedup.duplicates(cart.id, range(9))) == number


@pytest.mark.parametrize("status", [CartStatus.STAGING, CartStatus.ERROR, CartStatus.DELETED])
@pytest_twisted.ensureDeferred
async def test_a_duplicate_is_staged_in_an_undeleted_cart(store: Store, status: CartStatus) -> None:
    await with_status(store, "first", status)
    cart = await claimed(store, "again", 1)
    assert await store.dedup.duplicates(cart.id, range(1)) == []


@pytest_twisted.ensureDeferred
async def test_one_duplicate_is_returned_per_requested_position(
    store: Store,
) -> None:
    ids = {(await staged(store, uid, 5)).id for uid in "abc"}
    cart = await claimed(store, "again", [*entries(5)])
    duplicates = await store.dedup.duplicates(cart.id, range(1, 4))
    assert [duplicate.position for duplicate in duplicates] == [1, 2, 3]
    assert {duplicate.staged_cart for duplicate in duplicates} <= ids
    assert [duplicate.staged_path for duplicate in duplicates] == [
        f"dir/file{n}" for n in (1, 2, 3)
    ]


@pytest_twisted.ensureDeferred
async def test_a_link_to_a_deleted_duplicate_is_not_recorded(
    store: Store,
) -> None:
    """Otherwise its bytes would count for the new owner and for the linked cart."""
    first = await staged(store, "first")
    new_owner, cart = await claimed(store, "new_owner"), await claimed(store, "again")
    assert (
        await store.dedup.record_linked(
            new_owner.id, "me", await store.dedup.duplicates(new_owner.id, range(2))
        )
        == set()
    )
    duplicates = await store.dedup.duplicates(cart.id, range(2))
    assert {duplicate.staged_cart for duplicate in duplicates} == {first.id}
    await store.removals.mark_deleted(first.id, 20)
    assert await store.dedup.record_linked(cart.id, "me", duplicates) == {0, 1}
    assert (await found(store, cart)).files_staged == 0
    again = await store.dedup.duplicates(cart.id, range(2))
    assert {duplicate.staged_cart for duplicate in again} == {new_owner.id}
    assert await store.dedup.record_linked(cart.id, "me", again) == set()
    assert (await found(store, cart)).bytes_linked == 20
    assert await store.space.usage() == (20, 0)


@pytest_twisted.ensureDeferred
async def test_a_link_to_an_invalidated_duplicate_is_not_recorded(store: Store) -> None:
    """There are two files on the disk then, and both use space."""
    first = await staged(store, "first")
    cart = await claimed(store, "again")
    duplicates = await store.dedup.duplicates(cart.id, range(2))
    assert await store.progress.restage(first.id, lost=[0], now=20)
    await store.leases.claim(first.id, "me", now=20, until=1000)
    await store.progress.record_staged(first.id, "me", [(0, "")], now=20)
    assert await store.dedup.record_linked(cart.id, "me", duplicates) == {0, 1}
    again = await store.dedup.duplicates(cart.id, range(2))
    assert {duplicate.staged_cart for duplicate in again} == {first.id}
    assert await store.dedup.record_linked(cart.id, "me", again) == set()


@pytest_twisted.ensureDeferred
async def test_nothing_is_linked_once_the_lease_is_lost(store: Store) -> None:
    await staged(store, "first")
    cart = await claimed(store, "again")
    duplicates = await store.dedup.duplicates(cart.id, range(2))
    await store.leases.claim(cart.id, "you", now=200, until=300)
    with pytest.raises(LeaseLost):
        await store.dedup.record_linked(cart.id, "me", duplicates)
    assert await store.space.usage() == (20, 0)
    assert (await found(store, cart)).files_staged == 0


class TestRecordFound:
    """Files that a crash left on the volume without a record."""

    @pytest_twisted.ensureDeferred
    async def test_a_found_file_without_duplicates_belongs_to_the_cart(self, store: Store) -> None:
        await bundled(store)  # its files are in its tar
        await deleted(store, await staged(store, "gone"))
        cart = await measured(store, entries(2))
        assert await store.dedup.record_found(cart.id, "me", {0: "", 1: ""}) == {0, 1}
        cart = await found(store, cart)
        assert (cart.files_staged, cart.bytes_staged, cart.bytes_linked) == (2, 20, 0)
        assert await store.dedup.record_found(cart.id, "me", {}) == set()

    @pytest_twisted.ensureDeferred
    async def test_a_found_file_of_another_cart_is_left_to_be_linked(self, store: Store) -> None:
        await staged(store, "first", 1)
        cart = await measured(store, entries(2))
        assert await store.dedup.record_found(cart.id, "me", {0: "", 1: ""}) == {1}
        assert [
            duplicate.position for duplicate in await store.dedup.duplicates(cart.id, range(2))
        ] == [0]

    @pytest_twisted.ensureDeferred
    async def test_a_found_file_of_an_unwritten_bundle_is_left_to_link(self, store: Store) -> None:
        first = await staged(store, "first")
        bundle = await begun_bundle(store)
        await store.dedup.record_linked(
            bundle.id, "me", await store.dedup.duplicates(bundle.id, range(2))
        )
        await deleted(store, first)  # now the bundle owns the bytes
        cart = await measured(store, entries(2))
        assert await store.dedup.record_found(cart.id, "me", {0: "", 1: ""}) == set()

    @pytest_twisted.ensureDeferred
    async def test_a_found_file_named_twice_is_recorded_once(self, store: Store) -> None:
        twice = [Entry("id0", f"dir/{name}", "sha1", SHA1) for name in ("one", "another")]
        cart = await measured(store, twice)
        [first] = await store.dedup.record_found(cart.id, "me", {0: "", 1: ""})
        assert await store.dedup.record_found(cart.id, "me", {1 - first: ""}) == set()

    @pytest_twisted.ensureDeferred
    async def test_nothing_found_is_recorded_once_the_lease_is_lost(self, store: Store) -> None:
        cart = await measured(store, entries(1))
        await store.leases.claim(cart.id, "you", now=200, until=300)
        with pytest.raises(LeaseLost):
            await store.dedup.record_found(cart.id, "me", {0: ""})
        assert (await found(store, cart)).files_staged == 0


async def begun_bundle(store: Store) -> Cart:
    cart, _ = await store.carts.post("bundle", manifest(2, bundle=True), bundle=True, now=10)
    held = await store.leases.claim(cart.id, "me", now=10, until=100)
    assert held is not None
    return held


async def bundled(store: Store) -> None:
    cart = await begun_bundle(store)
    await store.progress.record_states(cart.id, "me", [(n, 10, 7) for n in range(2)])
    await store.progress.record_staged(cart.id, "me", [(0, ""), (1, "")], now=11)
    await store.progress.record_bundled(cart.id, "me")
    await store.progress.record_ready(cart.id, "me", volume_bytes=4096, now=12)


async def measured(store: Store, files: Sequence[Entry]) -> Cart:
    """A cart of files of 10 bytes, none of which is recorded as staged."""
    cart = await claimed(store, "measured", files)
    await store.progress.record_states(cart.id, "me", [(n, 10, 7) for n in range(len(files))])
    return await found(store, cart)


@pytest.mark.parametrize("ends_after", range(1, 4))
@pytest_twisted.ensureDeferred
async def test_a_bundle_killed_between_batches_can_be_recorded_again(
    store: Store, monkeypatch: pytest.MonkeyPatch, ends_after: int
) -> None:
    monkeypatch.setattr("cartd.store.progress.BATCH", 2)
    first = await staged(store, "first", 6)
    cart, _ = await store.carts.post("bundle", manifest(6, bundle=True), bundle=True, now=10)
    await store.leases.claim(cart.id, "me", now=10, until=100)
    await store.dedup.record_linked(cart.id, "me", await store.dedup.duplicates(cart.id, range(6)))
    last = await linked(store, "last", 6)
    await deleted(store, first)  # now the bundle owns the bytes
    assert (await found(store, last)).bytes_linked == 60
    end_after(monkeypatch, "cartd.store.progress.lock_writers", ends_after)
    with pytest.raises(Ended):
        await store.progress.record_bundled(cart.id, "me")
    monkeypatch.undo()
    assert (await found(store, last)).bytes_linked == 60 - 20 * ends_after
    assert list(await store.durability.dirty_rows("me"))[:1] == [cart.id]
    # The next holder finds the whole tar, so its files count as staged.
    assert (await found(store, cart)).files_staged == 6
    assert await store.leases.claim(cart.id, "you", now=200, until=300)
    with pytest.raises(LeaseLost):
        await store.progress.record_bundled(cart.id, "me")
    await store.progress.record_bundled(cart.id, "you")
    assert (await found(store, last)).bytes_linked == 0
    assert cart.id not in await store.durability.dirty_rows("me")


@pytest_twisted.ensureDeferred
async def test_a_tar_keeps_its_times_when_its_files_are_linked_again(store: Store) -> None:
    """So downloads of it can be resumed."""
    first = await staged(store, "first")
    cart = await claimed(store, "again")
    await store.progress.record_states(cart.id, "me", [(0, 10, 99)])
    await store.dedup.record_linked(cart.id, "me", await store.dedup.duplicates(cart.id, range(2)))
    assert [one.mtime for one in await store.carts.files(cart.id)] == [99, 7]
    assert [one.mtime for one in await store.carts.files(first.id)] == [7, 7]


async def restaged(store: Store, cart: Cart) -> None:
    await store.progress.record_ready(cart.id, "me", volume_bytes=0, now=12)
    assert await store.progress.restage(cart.id, lost=[0], now=20)


OPERATIONS: dict[str, Callable[[Store, Cart], Coroutine[Any, Any, Any]]] = {
    "link": lambda store, cart: store.dedup.record_linked(cart.id, "me", []),
    "bundle": lambda store, cart: store.progress.record_bundled(cart.id, "me"),
    "error": lambda store, cart: store.progress.record_error(
        cart.id, "me", "no", position=0, file_error="no", now=20
    ),
    "restage": lambda store, cart: restaged(store, cart),
    "delete": lambda store, cart: store.removals.mark_deleted(cart.id, 20),
    "remove": lambda store, cart: store.removals.record_removed(cart.id, 20),
    "use": lambda store, cart: store.carts.touch({cart.id: 20}),
    "release": lambda store, cart: store.leases.release_all("me"),
}


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
@pytest.mark.parametrize("what", OPERATIONS)
@pytest_twisted.ensureDeferred
async def test_lock_writers_serializes_changes_of_several_carts(
    store: Store, database: str, what: str
) -> None:
    """On SQLite every writer waits."""
    cart = await claimed(store)
    other = Database(database, the_reactor())
    async with other.transaction() as transaction:
        await lock_writers(transaction)
        ended = outcome(Deferred.fromCoroutine(OPERATIONS[what](store, cart)))
        while not (waiting := (await other.rows(_WAITING))[0][0]) and not ended:
            pass
        assert (waiting, ended) == (1, [])
    while not ended:
        await other.rows(_WAITING)
    await other.close()
    assert not isinstance(ended[0], Failure)


@pytest_twisted.ensureDeferred
async def test_concurrent_links_and_deletions_do_not_deadlock(store: Store, database: str) -> None:
    await staged(store, "first", 5)
    other = Store(database, the_reactor())

    async def live(number: int) -> None:
        mine, its = (store, other) if number % 2 else (other, store)
        cart = await linked(mine, f"u{number}", 5)
        await its.carts.touch({cart.id: 50, max(cart.id - 1, 1): 50})
        await mine.progress.record_error(cart.id, "me", "no", position=0, file_error="no", now=12)
        assert await its.progress.restage(cart.id, lost=[1], now=13)
        await deleted(its, cart)

    await gathered([live(number) for number in range(30)])
    await other.close()
    assert await store.space.usage() == (50, 0)
    assert await store.space.shared_bytes() == []


@pytest_twisted.ensureDeferred
async def test_staged_files_are_found_by_id_and_hash(store: Store) -> None:
    await staged(store, "there", 3)
    waiting = await claimed(store, "waiting", 4)
    await store.progress.record_states(waiting.id, "me", [(number, 10, 7) for number in range(4)])
    wanted = [(f"id{number}", "sha1", SHA1) for number in range(5)]
    assert await store.dedup.staged(wanted) == dict.fromkeys(wanted[:3], 10)
    assert ("id0", "sha1", "b" * 40) not in await store.dedup.staged([("id0", "sha1", "b" * 40)])
    assert await store.dedup.staged([]) == {}
