"""What the store says is staged of an unfinished cart, and is not on the volume.

So it may be after a restore of either of them from a backup, or after a power failure.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.logger import Logger

from cartd.model import Cart, FileStatus
from cartd.store import Store
from cartd.volume import Volume

log = Logger()


def may_have_files(cart: Cart) -> bool:
    """Whether something may be on the volume that was fetched for this cart.

    If not, what is in its place is of another that had the same id: the database was restored.
    How far Pacifica's carts had come nobody knows.
    """
    return cart.files_staged > 0 or cart.bytes_total is not None or cart.fingerprint is None


async def invalidate_unreadable(store: Store, cart_id: int, holder: str, path: str) -> None:
    """Have the file at ``path``, whose bytes the disk does not give, fetched again."""
    after = -1
    while files := await store.files(cart_id, after=after):
        after = files[-1].position
        if found := [file.position for file in files if file.path == path]:
            await store.invalidate_files(cart_id, holder, found)


async def invalidate_missing(
    store: Store, volume: Volume, cart: Cart, holder: str, page: Callable[[], int]
) -> Cart:
    """Have the staged files of ``cart`` that are missing, or have a wrong size, staged again.

    Names and sizes are compared, ``page()`` files at a time.  The cart as it is then.

    :raises LeaseLost: somebody else has the cart now.
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
    log.warn("Cart {id}: {n} files that were staged are not on the volume", id=cart.id, n=lost)
    return await store.cart(cart.id) or cart
