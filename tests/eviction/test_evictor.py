"""The evictor: reservations on a nearly full disk, and the choice of carts to evict."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import LogLevel, capturedLogs, formatEvent

from cartd.errors import EvictionFailed, NoSpace
from cartd.model import Cart, CartStatus, Fit
from cartd.store import Store
from cartd.volume import Volume
from tests.support.evictor_fixture import Disk, reserve
from tests.support.stored_carts import (
    claimed,
    deleted,
    found,
    linked,
    manifest,
    staged,
    with_status,
)
from tests.support.volume_parts import InThisThread, result_of

pytest_plugins = ("tests.support.database_fixtures",)


@pytest.fixture(params=["sqlite"])
def database(request: pytest.FixtureRequest, synced_sqlite: Path, tmp_path: Path) -> str:
    copy = tmp_path / "cartd.sqlite3"
    copy.write_bytes(synced_sqlite.read_bytes())
    return f"sqlite:///{copy}"


@pytest_twisted.ensureDeferred
async def test_bytes_already_written_are_not_reserved_twice(store: Store) -> None:
    await with_status(store, "old", CartStatus.READY)
    disk = Disk(store, free=100)
    await reserve(disk.evictor(), await claimed(store, "large"), 100)
    disk.free, disk.incoming_bytes = 20, 80
    await disk.evictor().enforce_limits()
    assert disk.deleted == []
    disk.incoming_bytes = 70
    await disk.evictor().enforce_limits()
    assert disk.deleted == ["old"]


def uids(carts: list[Cart]) -> set[str]:
    return {cart.uid for cart in carts}


@pytest_twisted.ensureDeferred
async def test_an_unremovable_cart_is_replaced_by_another(store: Store) -> None:
    for uid in ("a", "b", "c"):
        await with_status(store, uid, CartStatus.READY)
    disk = Disk(store, free=0, unremovable={"a"})
    await reserve(disk.evictor(), await claimed(store, "new"), 100)
    assert disk.deleted == ["b"]
    assert uids(await store.carts.active()) == {"a", "c", "new"}


@pytest.fixture
def logged() -> Iterator[Callable[[], list[str]]]:
    """Warnings and errors that the evictor has logged."""
    with capturedLogs() as events:
        yield lambda: [
            formatEvent(event)
            for event in events
            if event["log_namespace"] == "cartd.eviction.evictor"
            and event["log_level"] >= LogLevel.warn
        ]


STUCK = "Cannot free space on the volume: Read-only file system"


@pytest.mark.parametrize("whose", ["a post's", "its own"])
@pytest_twisted.ensureDeferred
async def test_a_disk_that_removes_nothing_is_logged_once(
    store: Store, whose: str, logged: Callable[[], list[str]]
) -> None:
    names = list("abcdefgh")
    for uid in names:
        await with_status(store, uid, CartStatus.READY)
    disk = Disk(store, free=-50, unremovable=set(names))
    evictor = disk.evictor()
    new = await claimed(store, "new")
    for _ in range(20):
        if whose == "its own":
            await evictor.enforce_limits()
        else:
            with pytest.raises(EvictionFailed, match=STUCK):
                await reserve(evictor, new, 100)
    assert uids(await store.carts.active()) == {*names, "new"}
    assert await store.removals.evicting() == {}
    assert disk.tried == ["a", "b"]  # eviction ends at the second
    assert [line.partition(";")[0] for line in logged()] == [
        "Cart 1 (a) cannot be removed: Read-only file system",
        STUCK,
    ]
    # It is retried at growing intervals, not at the rate of the posts.
    for _ in range(1000):
        disk.clock.advance(10)
        await evictor.enforce_limits()
    assert len(disk.tried) < 20
    assert len(logged()) == 2
    disk.unremovable.clear()
    disk.clock.advance(3600)
    await evictor.enforce_limits()
    assert len(disk.deleted) == 1
    await reserve(evictor, new, 100)
    assert len(disk.deleted) == 3


@pytest_twisted.ensureDeferred
async def test_too_large_a_cart_fails_despite_unremovable_carts(
    store: Store,
) -> None:
    for uid in "ab":
        await with_status(store, uid, CartStatus.READY)
    disk = Disk(store, free=0, unremovable={"a"})
    evictor = disk.evictor()
    large = await claimed(store, "large")
    await reserve(evictor, await claimed(store, "small"), 100)
    disk.free = 100
    with pytest.raises(EvictionFailed):
        await reserve(evictor, large, 100)
    with pytest.raises(NoSpace):
        await reserve(evictor, large, 1000)


@pytest_twisted.ensureDeferred
async def test_a_candidate_that_is_reposted_is_not_evicted(
    store: Store,
) -> None:
    """At the same moment, with a clock that does not advance."""
    first, _ = [await with_status(store, uid, CartStatus.READY) for uid in "ab"]

    class PostedMeanwhile(Disk):
        async def in_use_of(self, cart_ids: Collection[int]) -> set[int]:
            if first.id in cart_ids and not self.tried:
                again = await store.carts.post("a", manifest(1, bundle=True), bundle=False, now=10)
                assert again == (await found(store, first), False)
            return await super().in_use_of(cart_ids)

    disk = PostedMeanwhile(store, free=0)
    await reserve(disk.evictor(), await claimed(store, "new"), 100)
    assert disk.deleted == ["b"]
    assert await store.carts.newest("a") is not None


@pytest_twisted.ensureDeferred
async def test_a_candidate_used_meanwhile_is_not_evicted(
    store: Store,
) -> None:
    first, _, _ = [await with_status(store, uid, CartStatus.READY) for uid in "abc"]

    class UsedMeanwhile(Disk):
        async def in_use_of(self, cart_ids: Collection[int]) -> set[int]:
            self.access_times.record(first.id, 49)
            return await super().in_use_of(cart_ids)

    disk = UsedMeanwhile(store, free=0)
    await reserve(disk.evictor(), await claimed(store, "new"), 100)
    assert disk.deleted == ["b"]


@pytest_twisted.ensureDeferred
async def test_carts_sent_by_other_processes_are_not_evicted(store: Store) -> None:
    for uid in "abc":
        await with_status(store, uid, CartStatus.READY)
    disk = Disk(store, free=0, in_use={"a"})
    with pytest.raises(NoSpace):
        await reserve(disk.evictor(), await claimed(store, "large"), 201)
    assert disk.deleted == []
    await reserve(disk.evictor(), await claimed(store, "new"), 100)
    assert disk.deleted == ["b"]


@pytest_twisted.ensureDeferred
async def test_leftovers_of_deleted_carts_are_removed_first(store: Store) -> None:
    old, gone = [await with_status(store, uid, CartStatus.READY) for uid in ("old", "gone")]
    await store.removals.mark_deleted(gone.id, 20)
    disk = Disk(store, free=1000, quota=200)
    await reserve(disk.evictor(), await claimed(store, "new"), 100)
    assert disk.deleted == []
    assert await store.removals.pending_removal() == set()
    assert await store.carts.cart(old.id) == old


@pytest_twisted.ensureDeferred
async def test_a_candidate_deleted_by_others_counts_as_freed(
    store: Store,
) -> None:
    first, second, _ = [await with_status(store, uid, CartStatus.READY) for uid in "abc"]

    class MeanwhileDeleted(Disk):
        async def evict(self, cart: Cart) -> int:
            if cart.id == first.id:
                await deleted(store, second)
            return await super().evict(cart)

    disk = MeanwhileDeleted(store, free=0)
    await reserve(disk.evictor(), await claimed(store, "new"), 200)
    assert disk.deleted == ["a"]


@pytest.mark.parametrize("how", ["downloaded", "staged again"])
@pytest_twisted.ensureDeferred
async def test_a_candidate_used_before_its_eviction_stays(store: Store, how: str) -> None:
    first, second, _ = [await with_status(store, uid, CartStatus.READY) for uid in "abc"]

    class MeanwhileInUse(Disk):
        async def evict(self, cart: Cart) -> int:
            if cart.id == first.id and how == "downloaded":
                downloads.enter_context(self.pins.pin(second.id))
            elif cart.id == first.id:
                await store.progress.restage(second.id, lost=None, now=20)
            return await super().evict(cart)

    disk = MeanwhileInUse(store, free=0)
    with ExitStack() as downloads:
        await reserve(disk.evictor(), await claimed(store, "new"), 200)
    assert disk.deleted == ["a", "c"]


@pytest_twisted.ensureDeferred
async def test_nothing_is_evicted_for_a_cart_that_cannot_fit(store: Store) -> None:
    for uid in "ab":
        await with_status(store, uid, CartStatus.READY)
    disk = Disk(store, free=99)
    new = await claimed(store, "new")
    with pytest.raises(NoSpace):
        await reserve(disk.evictor(), new, 300)
    assert disk.deleted == []
    await reserve(disk.evictor(), new, 299)
    assert disk.deleted == ["a", "b"]


async def ready(store: Store, cart: Cart) -> None:
    await store.progress.record_ready(cart.id, "me", volume_bytes=cart.bytes_staged, now=12)


@pytest_twisted.ensureDeferred
async def test_a_cart_that_shares_its_files_with_one_in_use_stays(store: Store) -> None:
    first = await staged(store, "a")
    await ready(store, again := await linked(store, "b"))
    await with_status(store, "c", CartStatus.READY)
    disk = Disk(store, free=0)
    with disk.pins.pin(again.id):
        with pytest.raises(NoSpace):
            await reserve(disk.evictor(), await claimed(store, "large"), 101)
        assert disk.deleted == []
        await reserve(disk.evictor(), await claimed(store, "new"), 20)
    assert disk.deleted == ["c"]
    assert (await store.carts.cart(first.id)) == first


@pytest_twisted.ensureDeferred
async def test_carts_that_share_files_are_evicted_together(store: Store) -> None:
    await staged(store, "a")
    await ready(store, await linked(store, "b"))
    await with_status(store, "c", CartStatus.READY)
    disk = Disk(store, free=0)
    await reserve(disk.evictor(), await claimed(store, "new"), 20)
    assert disk.deleted == ["a", "b"]


@pytest_twisted.ensureDeferred
async def test_bytes_taken_over_from_an_evicted_cart_still_count(store: Store) -> None:
    """It links to a cart that is evicted to free space for its other files."""
    await staged(store, "a", 3)
    cart = await claimed(store, "new", 4)
    await store.dedup.record_linked(cart.id, "me", await store.dedup.duplicates(cart.id, range(2)))
    cart = await found(store, cart)
    disk = Disk(store, free=0)
    await disk.evictor().reserve(cart, "me", bytes_total=30, volume_bytes=30)
    assert disk.deleted == ["a"]
    assert await store.space.usage() == (30, 10)


@pytest_twisted.ensureDeferred
async def test_a_cart_that_is_on_the_volume_needs_no_space(store: Store) -> None:
    await staged(store, "a")
    disk = Disk(store, free=-1000)
    cart = await linked(store, "b")
    await reserve(disk.evictor(), cart, 20)
    assert disk.deleted == []


@pytest_twisted.ensureDeferred
async def test_pinned_carts_are_recorded_as_used(store: Store) -> None:
    sent, other = [await with_status(store, uid, CartStatus.READY) for uid in "ab"]
    disk = Disk(store, free=1000)
    with disk.pins.pin(sent.id):
        await disk.evictor().enforce_limits()
    used = {cart.id: cart.used for cart in await store.carts.active()}
    assert used == {sent.id: 50.0, other.id: other.used}


def test_incoming_bytes_of_files_and_bundles(
    tmp_path: Path,
) -> None:
    volume = Volume(tmp_path / "volume", InThisThread())
    volume.prepare()
    assert result_of(volume.incoming.size()) == 0
    put(tmp_path / "volume/7/mine/ready", 1)
    put(tmp_path / "volume/8/other.tar", 2)
    assert result_of(volume.incoming.size()) == 0
    put(tmp_path / "volume/incoming/7/0-x", 10)
    put(tmp_path / "volume/incoming/9/0-x", 20)
    assert result_of(volume.incoming.size()) == 30
    put(tmp_path / "volume/incoming/8/tree-x/file", 100)
    assert result_of(volume.incoming.size()) == 32


def put(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)


@pytest_twisted.ensureDeferred
async def test_a_cart_that_fits_is_not_delayed_by_an_eviction(store: Store) -> None:
    """Bytes freed for one cart are reserved for it; others that need an eviction wait."""
    for uid in "abc":
        await with_status(store, uid, CartStatus.READY)
    carts = {uid: await claimed(store, uid, 1) for uid in ("large", "small", "greedy", "next")}

    class Slow(Disk):
        async def evict(self, cart: Cart) -> int:
            going.append(cart.uid)
            await gone
            return await super().evict(cart)

    going: list[str] = []
    gone: Deferred[None] = Deferred()
    disk = Slow(store, free=10_000, quota=350)
    evictor = disk.evictor()
    large = Deferred.fromCoroutine(reserve(evictor, carts["large"], 120))
    while not going:
        await deferLater(reactor, 0)
    await reserve(evictor, carts["small"], 20)
    # Of the 50 free bytes, ``large`` needs 20 beside the 100 that are freed.
    greedy = Deferred.fromCoroutine(reserve(evictor, carts["greedy"], 15))
    await reserve(evictor, carts["next"], 10)
    assert not large.called
    assert not greedy.called
    assert going == ["a"]
    gone.callback(None)
    await large
    await greedy
    assert disk.deleted == ["a", "b"]
    assert (await store.space.usage())[0] == 100 + 120 + 20 + 15 + 10


@pytest_twisted.ensureDeferred
async def test_why_a_cart_finds_no_space_is_in_the_log_with_numbers(
    store: Store, logged: Callable[[], list[str]]
) -> None:
    await with_status(store, "a", CartStatus.READY)
    disk = Disk(store, free=10_000, quota=6_000_000)
    with pytest.raises(NoSpace, match=r"^No Space Available$"):
        await reserve(disk.evictor(), await claimed(store, "new"), 64_000_000)
    assert logged() == [
        "Cart 2 (new): no space for 64,000,000 more bytes: 63,990,000 are missing after all"
        " possible evictions; all carts use 100, volume_quota = 6000000"
    ]


@pytest_twisted.ensureDeferred
async def test_whether_bytes_fit_is_told_without_an_eviction(store: Store) -> None:
    disk = Disk(store, free=100)
    await staged(store, "old", 3)
    evictor = disk.evictor()

    assert [await evictor.fit(size) for size in (0, 100, 101, 130, 131)] == [
        *(Fit.NOW, Fit.NOW),
        *(Fit.AFTER_EVICTION, Fit.AFTER_EVICTION),
        Fit.NO,
    ]
    disk.in_use.add("old")
    assert await evictor.fit(101) is Fit.NO
    assert disk.tried == []
