"""Two processes that reserve space on one volume never reserve more than there is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import pytest_twisted

from cartd.errors import NoSpace
from cartd.model import CartStatus
from cartd.store import Store
from tests.support.databases import the_reactor
from tests.support.evictor_fixture import Disk, reserve
from tests.support.stored_carts import claimed, gathered, with_status

pytest_plugins = ("tests.support.database_fixtures",)


@pytest_twisted.ensureDeferred
async def test_space_reserved_by_another_process_is_not_reused(store: Store, database: str) -> None:
    """Both find space for 100 bytes beside the old cart; the second one checks again."""
    await with_status(store, "old", CartStatus.READY)
    theirs, mine, late = [await claimed(store, uid) for uid in ("theirs", "mine", "late")]
    other = Store(database, the_reactor())
    their_disk = Disk(other, free=1000, quota=200)
    disk = Disk(store, free=1000, quota=200)
    disk.meanwhile.append(reserve(their_disk.evictor(), theirs, 100))
    await reserve(disk.evictor(), mine, 100)
    assert (disk.deleted, their_disk.deleted) == (["old"], [])
    assert await store.space.usage() == (200, 200)
    with pytest.raises(NoSpace):
        await reserve(their_disk.evictor(), late, 1)
    await other.close()


@pytest_twisted.ensureDeferred
async def test_concurrent_reservations_fit_into_the_last_space(store: Store, database: str) -> None:
    other = Store(database, the_reactor())
    evictors = [Disk(one, free=10_000, quota=450).evictor() for one in (store, other)]
    carts = [await claimed(store, f"u{number}") for number in range(10)]

    async def promised(number: int) -> bool:
        try:
            await reserve(evictors[number % 2], carts[number], 100)
        except NoSpace:
            return False
        return True

    assert sum(await gathered([promised(number) for number in range(10)])) == 4
    assert await store.space.usage() == (400, 400)
    await other.close()


@pytest_twisted.ensureDeferred
async def test_the_store_rejects_more_than_the_limit(store: Store) -> None:
    await with_status(store, "old", CartStatus.READY)
    cart = await claimed(store, "new")
    wanted = {"bytes_total": 70, "volume_bytes": 80}
    assert not await store.progress.reserve(cart.id, "me", **wanted, limit=179)
    assert await store.carts.cart(cart.id) == cart
    for _ in range(2):  # bytes already counted count once
        assert await store.progress.reserve(cart.id, "me", **wanted, limit=180)
    assert await store.space.usage() == (180, 80)


@pytest_twisted.ensureDeferred
async def test_a_stale_cart_is_read_again(store: Store) -> None:
    """Otherwise it would request too little for as long as the store rejects it."""
    cart = await claimed(store, "new")
    disk = Disk(store, free=1000, quota=200)
    await reserve(disk.evictor(), replace(cart, volume_bytes=60), 100)
    assert await store.space.usage() == (100, 100)
