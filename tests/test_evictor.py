"""What the evictor counts on a disk that is nearly full, and whom it takes."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
import pytest_twisted

from cartd.errors import NoSpace
from cartd.model import Cart, CartStatus
from cartd.store import Store
from cartd.volume import Volume
from tests.evicting import Disk, reserve
from tests.stored_carts import claimed, deleted, found, linked, staged, with_status
from tests.volume_parts import InThisThread, result_of

pytest_plugins = ("tests.database_fixtures",)


@pytest.fixture(params=["sqlite"])
def database(request: pytest.FixtureRequest, synced_sqlite: Path, tmp_path: Path) -> str:
    copy = tmp_path / "cartd.sqlite3"
    copy.write_bytes(synced_sqlite.read_bytes())
    return f"sqlite:///{copy}"


@pytest_twisted.ensureDeferred
async def test_what_a_promised_file_has_written_so_far_is_not_promised_again(store: Store) -> None:
    await with_status(store, "old", CartStatus.READY)
    disk = Disk(store, free=100)
    await reserve(disk.evictor(), await claimed(store, "large"), 100)
    disk.free, disk.arriving = 20, 80
    await disk.evictor().keep_room()
    assert disk.deleted == []
    disk.arriving = 70
    await disk.evictor().keep_room()
    assert disk.deleted == ["old"]


@pytest_twisted.ensureDeferred
async def test_a_cart_whose_files_stay_makes_no_room_and_another_goes(store: Store) -> None:
    for uid in ("a", "b", "c"):
        await with_status(store, uid, CartStatus.READY)
    disk = Disk(store, free=0, kept={"a"})
    await reserve(disk.evictor(), await claimed(store, "new"), 100)
    assert disk.deleted == ["a", "b"]


@pytest_twisted.ensureDeferred
async def test_what_another_process_sends_is_passed_over(store: Store) -> None:
    for uid in "abc":
        await with_status(store, uid, CartStatus.READY)
    disk = Disk(store, free=0, in_use={"a"})
    with pytest.raises(NoSpace):
        await reserve(disk.evictor(), await claimed(store, "large"), 201)
    assert disk.deleted == []
    await reserve(disk.evictor(), await claimed(store, "new"), 100)
    assert disk.deleted == ["b"]


@pytest_twisted.ensureDeferred
async def test_what_deleted_carts_have_left_goes_before_any_other(store: Store) -> None:
    old, gone = [await with_status(store, uid, CartStatus.READY) for uid in ("old", "gone")]
    await store.mark_deleted(gone.id, 20)
    disk = Disk(store, free=1000, quota=200)
    await reserve(disk.evictor(), await claimed(store, "new"), 100)
    assert disk.deleted == []
    assert await store.leaving() == set()
    assert await store.cart(old.id) == old


@pytest_twisted.ensureDeferred
async def test_a_chosen_cart_that_somebody_else_deletes_meanwhile_is_not_made_up_for(
    store: Store,
) -> None:
    first, second, _ = [await with_status(store, uid, CartStatus.READY) for uid in "abc"]

    class MeanwhileDeleted(Disk):
        async def delete(self, cart: Cart) -> int:
            if cart.id == first.id:
                await deleted(store, second)
            return await super().delete(cart)

    disk = MeanwhileDeleted(store, free=0)
    await reserve(disk.evictor(), await claimed(store, "new"), 200)
    assert disk.deleted == ["a"]


@pytest.mark.parametrize("how", ["downloaded", "staged again"])
@pytest_twisted.ensureDeferred
async def test_a_chosen_cart_that_is_in_use_before_its_turn_escapes(store: Store, how: str) -> None:
    first, second, _ = [await with_status(store, uid, CartStatus.READY) for uid in "abc"]

    class MeanwhileInUse(Disk):
        async def delete(self, cart: Cart) -> int:
            if cart.id == first.id and how == "downloaded":
                downloads.enter_context(self.uses.pin(second.id))
            elif cart.id == first.id:
                await store.restage(second.id, lost=None, now=20)
            return await super().delete(cart)

    disk = MeanwhileInUse(store, free=0)
    with ExitStack() as downloads:
        await reserve(disk.evictor(), await claimed(store, "new"), 200)
    assert disk.deleted == ["a", "c"]


@pytest_twisted.ensureDeferred
async def test_nothing_goes_in_vain_for_a_cart_that_cannot_fit(store: Store) -> None:
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
    await store.record_ready(cart.id, "me", volume_bytes=cart.bytes_staged, now=12)


@pytest_twisted.ensureDeferred
async def test_a_cart_that_shares_its_files_with_one_in_use_stays(store: Store) -> None:
    first = await staged(store, "a")
    await ready(store, again := await linked(store, "b"))
    await with_status(store, "c", CartStatus.READY)
    disk = Disk(store, free=0)
    with disk.uses.pin(again.id):
        with pytest.raises(NoSpace):
            await reserve(disk.evictor(), await claimed(store, "large"), 101)
        assert disk.deleted == []
        await reserve(disk.evictor(), await claimed(store, "new"), 20)
    assert disk.deleted == ["c"]
    assert (await store.cart(first.id)) == first


@pytest_twisted.ensureDeferred
async def test_carts_that_share_their_files_go_together(store: Store) -> None:
    await staged(store, "a")
    await ready(store, await linked(store, "b"))
    await with_status(store, "c", CartStatus.READY)
    disk = Disk(store, free=0)
    await reserve(disk.evictor(), await claimed(store, "new"), 20)
    assert disk.deleted == ["a", "b"]


@pytest_twisted.ensureDeferred
async def test_a_cart_that_inherits_what_is_evicted_for_it_still_counts_it(store: Store) -> None:
    """It links to a cart that must go for the room of its other files."""
    await staged(store, "a", 3)
    cart = await claimed(store, "new", 4)
    await store.record_linked(cart.id, "me", await store.twins(cart.id, range(2)))
    cart = await found(store, cart)
    disk = Disk(store, free=0)
    await disk.evictor().reserve(cart, "me", bytes_total=30, volume_bytes=30)
    assert disk.deleted == ["a"]
    assert await store.usage() == (30, 10)


@pytest_twisted.ensureDeferred
async def test_a_cart_that_is_all_there_needs_no_room(store: Store) -> None:
    await staged(store, "a")
    disk = Disk(store, free=-1000)
    cart = await linked(store, "b")
    await reserve(disk.evictor(), cart, 20)
    assert disk.deleted == []


@pytest_twisted.ensureDeferred
async def test_what_is_being_sent_is_written_down_as_used(store: Store) -> None:
    sent, other = [await with_status(store, uid, CartStatus.READY) for uid in "ab"]
    disk = Disk(store, free=1000)
    with disk.uses.pin(sent.id):
        await disk.evictor().keep_room()
    used = {cart.id: cart.used for cart in await store.active()}
    assert used == {sent.id: 50.0, other.id: other.used}


def test_files_that_are_being_written_arrive_and_so_do_bundles_in_their_trees_place(
    tmp_path: Path,
) -> None:
    volume = Volume(tmp_path / "volume", InThisThread())
    volume.prepare()
    assert result_of(volume.arriving()) == 0
    put(tmp_path / "volume/7/mine/ready", 1)
    put(tmp_path / "volume/8/other.tar", 2)
    assert result_of(volume.arriving()) == 0
    put(tmp_path / "volume/incoming/7/0-x", 10)
    put(tmp_path / "volume/incoming/9/0-x", 20)
    assert result_of(volume.arriving()) == 30
    put(tmp_path / "volume/incoming/8/tree-x/file", 100)
    assert result_of(volume.arriving()) == 32


def put(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
