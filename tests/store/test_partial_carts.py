"""What the store keeps of partial carts: their failed files, through a retry and interruptions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import pytest_twisted

from cartd.errors import Problem
from cartd.model import Cart, CartStatus, FileFailure, FileStatus, Outcome, TarFacts
from cartd.store import Store
from tests.support.stored_carts import SHA1, Ended, claimed, end_after, found

pytest_plugins = ("tests.support.database_fixtures",)

TAR = TarFacts(1, "d" * 64, "[1,1,0,[],[]]", 20.0)


async def partial(store: Store) -> Cart:
    """A ready cart of three files of 10 bytes, the second of which has failed."""
    cart = await claimed(store, files=3)
    await store.progress.record_states(cart.id, "me", [(n, 10, 5) for n in range(3)])
    await store.progress.reserve(cart.id, "me", bytes_total=30, volume_bytes=30)
    await store.progress.record_staged(cart.id, "me", [(0, SHA1), (2, SHA1)], now=12)
    failed = FileFailure(1, "404", Problem.FILE_NOT_IN_ARCHIVE)
    await store.progress.record_file_errors(cart.id, "me", [failed])
    await store.progress.record_ready(
        cart.id, "me", volume_bytes=20, now=20, tar=TAR, may_lack=True
    )
    return await found(store, cart)


async def failed(store: Store, cart: Cart) -> list[tuple[int, str, str | None]]:
    files = await store.statuses.files(cart.id, status=FileStatus.ERROR, limit=9)
    return [(one.position, one.error, one.problem) for one in files]


async def waiting(store: Store, cart: Cart) -> list[int]:
    files = await store.statuses.files(cart.id, status=FileStatus.WAITING, limit=9)
    return [one.position for one in files]


@pytest_twisted.ensureDeferred
async def test_a_partial_cart_counts_what_is_there(store: Store) -> None:
    cart = await partial(store)
    assert (cart.outcome, cart.files_staged, cart.files_failed) == (Outcome.PARTIAL, 2, 1)
    assert (cart.bytes_total, cart.bytes_staged, cart.volume_bytes) == (20, 20, 20)
    assert await failed(store, cart) == [(1, "404", "file-not-in-archive")]
    assert await store.space.usage() == (20, 0)
    assert [one.size for one in await store.space.evictable()] == [20]
    assert await store.carts.unmeasured() == [] and await store.carts.unfinished() == 0
    totals = (await store.totals.by_status())[CartStatus.READY]
    assert (totals.files, totals.staged, totals.failed) == (3, 2, 1)
    assert (await store.carts.members(cart.id, range(9))).sizes == [10, 10]
    assert await store.durability.least_recently_verified(99) == cart
    assert await store.statuses.newest(limit=9, partial=True) == [cart.id]


@pytest_twisted.ensureDeferred
async def test_a_retry_resets_only_the_failed_files(store: Store) -> None:
    cart = await partial(store)
    assert await store.progress.restage(cart.id, lost=(), now=30)
    now = await found(store, cart)
    assert (now.status, now.files_staged, now.files_failed) == (CartStatus.STAGING, 2, 0)
    assert await waiting(store, cart) == [1] and now.tar == TAR
    [left] = await store.statuses.remaining()
    assert left.files == 1
    assert await store.statuses.newest(limit=9, partial=True) == []


@pytest_twisted.ensureDeferred
async def test_a_restaging_that_is_interrupted_leaves_the_failed_files_known(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cart that is ready has the files in error that it counts: its tar lists them."""
    monkeypatch.setattr("cartd.store.progress.BATCH", 1)
    cart = await partial(store)
    end_after(monkeypatch, "cartd.store.progress.lock_writers", 1)
    with pytest.raises(Ended):
        await store.progress.restage(cart.id, lost=[0, 2], now=30)
    now = await found(store, cart)
    assert (now.outcome, now.files_failed) == (Outcome.PARTIAL, 1)
    assert await failed(store, cart) == [(1, "404", "file-not-in-archive")]


@pytest_twisted.ensureDeferred
async def test_files_that_are_linked_in_the_end_have_not_failed(store: Store) -> None:
    cart = await claimed(store, files=3)
    await store.progress.record_states(cart.id, "me", [(n, 10, 5) for n in range(3)])
    await store.progress.record_file_errors(cart.id, "me", [FileFailure(n, "404") for n in (0, 1)])
    other = await claimed(store, "other", files=1)
    await store.progress.record_states(other.id, "me", [(0, 10, 5)])
    await store.progress.record_staged(other.id, "me", [(0, SHA1)], now=12)
    [duplicate] = await store.dedup.duplicates(cart.id, range(3))
    assert await store.dedup.record_linked(cart.id, "me", [duplicate]) == set()
    assert await store.progress.recount_failed(cart.id, "me") == [1]
    assert (await found(store, cart)).files_failed == 1


@pytest_twisted.ensureDeferred
async def test_an_attempt_begins_without_failures(store: Store) -> None:
    cart = await claimed(store, files=2)
    await store.progress.record_file_errors(cart.id, "me", [FileFailure(0, "404")])
    await store.progress.retry_failed(cart.id, "me")
    assert (await found(store, cart)).files_failed == 0
    assert await failed(store, cart) == [] and await waiting(store, cart) == [0, 1]


@pytest_twisted.ensureDeferred
async def test_a_tar_is_not_recorded_for_a_cart_that_has_changed(store: Store) -> None:
    cart = await partial(store)
    other = replace(TAR, digest="e" * 64)
    await store.progress.restage(cart.id, lost=(), now=30)
    await store.progress.record_tar(cart.id, other, seen=cart.updated)
    assert (await found(store, cart)).tar == TAR
    await store.leases.claim(cart.id, "me", now=30, until=99)
    await store.progress.record_ready(cart.id, "me", volume_bytes=20, now=40, may_lack=True)
    await store.progress.record_tar(cart.id, other, seen=cart.updated)
    assert (await found(store, cart)).tar == TAR
    await store.progress.record_tar(cart.id, other, seen=40.0)
    assert (await found(store, cart)).tar == replace(other, since=20.0)
