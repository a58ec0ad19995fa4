"""Carts in a store, in the states that tests need."""

from __future__ import annotations

import hashlib
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import pytest
from twisted.internet.defer import Deferred, FirstError, gatherResults

from cartd.errors import CartdError
from cartd.manifest import Entry, Manifest
from cartd.model import Cart, CartStatus
from cartd.store import Store
from cartd.store.database import Transaction, lock_writers

T = TypeVar("T")
SHA1 = "a" * 40
STATUSES = (
    CartStatus.STAGING,
    CartStatus.BUNDLING,
    CartStatus.READY,
    CartStatus.ERROR,
    CartStatus.DELETED,
)


class Ended(CartdError):
    """The process ends between two transactions."""


def end_after(monkeypatch: pytest.MonkeyPatch, where: str, transactions: int) -> None:
    """Raise ``Ended`` at the next ``lock_writers`` after so many transactions with one."""
    locked = 0

    async def lock_or_end(transaction: Transaction) -> None:
        nonlocal locked
        locked += 1
        if locked > transactions:
            raise Ended
        await lock_writers(transaction)

    monkeypatch.setattr(where, lock_or_end)


def entries(number: int, hash_sum: str = SHA1) -> list[Entry]:
    return [Entry(f"id{n}", f"dir/file{n}", "sha1", hash_sum) for n in range(number)]


def manifest(
    files: int | Sequence[Entry] = 2, *, bundle: bool | None = None, mark: str = ""
) -> Manifest:
    listed = entries(files) if isinstance(files, int) else files
    fingerprint = hashlib.sha256(f"{len(listed)} {bundle} {mark}".encode()).hexdigest()
    return Manifest(listed, bundle, fingerprint)


async def posted(
    store: Store, uid: str = "u", files: int | Sequence[Entry] = 2, **more: Any
) -> Cart:
    cart, new = await store.carts.post(uid, manifest(files, **more), bundle=False, now=10)
    assert new
    return cart


async def claimed(
    store: Store, uid: str = "u", files: int | Sequence[Entry] = 2, **more: Any
) -> Cart:
    """A cart that "me" holds until 100."""
    cart = await posted(store, uid, files, **more)
    held = await store.leases.claim(cart.id, "me", now=10, until=100)
    assert held is not None
    return held


async def found(store: Store, cart: Cart) -> Cart:
    again = await store.carts.cart(cart.id)
    assert again is not None
    return again


async def with_status(store: Store, uid: str, status: CartStatus) -> Cart:
    """A cart of one file of 100 bytes that was brought to ``status``."""
    cart = await claimed(store, uid, 1, bundle=True)
    await store.progress.record_states(cart.id, "me", [(0, 100, 5)])
    await store.progress.reserve(cart.id, "me", bytes_total=100, volume_bytes=100)
    if status is CartStatus.ERROR:
        await store.progress.record_error(
            cart.id, "me", "why", position=0, file_error="whence", now=12
        )
    elif status is not CartStatus.STAGING:
        await store.progress.record_staged(cart.id, "me", [(0, SHA1)], now=12)
    if status is CartStatus.BUNDLING:
        await store.progress.begin_bundling(cart.id, "me", 13)
    if status in (CartStatus.READY, CartStatus.DELETED):
        await store.progress.record_ready(cart.id, "me", volume_bytes=100, now=13)
    if status is CartStatus.DELETED:
        await deleted(store, cart)
    return await found(store, cart)


async def staged(store: Store, uid: str, files: int = 2) -> Cart:
    """A ready cart of files of 10 bytes."""
    cart = await claimed(store, uid, files)
    await store.progress.record_states(cart.id, "me", [(n, 10, 7) for n in range(files)])
    await store.progress.reserve(cart.id, "me", bytes_total=10 * files, volume_bytes=10 * files)
    await store.progress.record_staged(cart.id, "me", [(n, "") for n in range(files)], now=11)
    await store.progress.record_ready(cart.id, "me", volume_bytes=10 * files, now=12)
    return await found(store, cart)


async def linked(store: Store, uid: str, files: int = 2) -> Cart:
    """A cart in staging all of whose files are links."""
    cart = await claimed(store, uid, files)
    await store.dedup.record_linked(
        cart.id, "me", await store.dedup.duplicates(cart.id, range(files))
    )
    return await found(store, cart)


async def deleted(store: Store, cart: Cart) -> int:
    """Delete the cart and remove it from the volume; return the number of bytes freed."""
    assert await store.removals.mark_deleted(cart.id, 14)
    return await store.removals.record_removed(cart.id, 14)


async def gathered(coroutines: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Run all concurrently and return their results; raise the first failure."""
    running = [Deferred.fromCoroutine(coroutine) for coroutine in coroutines]
    try:
        return await gatherResults(running, consumeErrors=True)
    except FirstError as error:
        error.subFailure.raiseException()
        raise
