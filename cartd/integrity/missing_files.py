"""Staged files of an unfinished cart that are missing or damaged on the volume: restaged.

They appear after the store or the volume was restored from a backup, or after a power failure.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.logger import Logger

from cartd.model import Cart, FileStatus
from cartd.store import Store
from cartd.volume import Volume

log = Logger()


def may_have_files(cart: Cart) -> bool:
    """Whether files may be on the volume that were fetched for this cart.

    If not, files in its directory are of another cart with the same id: the database was restored.
    True for Pacifica's carts, whose progress is unknown.
    """
    return cart.files_staged > 0 or cart.bytes_total is not None or cart.fingerprint is None


async def invalidate_unreadable(store: Store, cart_id: int, holder: str, path: str) -> None:
    """Mark the file at ``path``, which the disk fails to read, to be fetched again."""
    after = -1
    while files := await store.files(cart_id, after=after):
        after = files[-1].position
        if found := [file.position for file in files if file.path == path]:
            await store.invalidate_files(cart_id, holder, found)


async def invalidate_missing(
    store: Store, volume: Volume, cart: Cart, holder: str, page: Callable[[], int]
) -> Cart:
    """Mark staged files of ``cart`` that are missing or have a wrong size to be fetched again.

    Names and sizes are compared, ``page()`` files at a time.  Return the updated cart.

    :raises LeaseLost: another process has taken over the cart.
    """
    after, lost = -1, 0
    while files := await store.files(cart.id, after=after, limit=page()):
        after = files[-1].position
        staged = [file for file in files if file.status is FileStatus.STAGED]
        found = await volume.stat_files(cart, staged)
        missing = [
            file.position
            for file, there in zip(staged, found, strict=True)
            if there is None or there[1] != file.size
        ]
        if missing:
            await store.invalidate_files(cart.id, holder, missing)
            lost += len(missing)
    if not lost:
        return cart
    log.warn("Cart {id}: {n} staged files are missing on the volume", id=cart.id, n=lost)
    return await store.cart(cart.id) or cart
