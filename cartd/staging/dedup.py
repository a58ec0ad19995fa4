"""Deduplication: files that another cart has on the volume are linked, not fetched again."""

from __future__ import annotations

from collections.abc import Callable

from twisted.logger import Logger

from cartd.model import Cart
from cartd.store import Store
from cartd.volume import Volume

log = Logger()


async def link_duplicates(
    store: Store,
    volume: Volume,
    cart: Cart,
    holder: str,
    page: Callable[[], int],
    *,
    hashed: bool,
) -> Cart:
    """Link files of ``cart`` to those of other carts, ``page()`` files at a time.

    Return the updated cart.  A file that cannot be linked is fetched later.  If a duplicate is
    removed before its link is recorded, the next one is used.

    ``hashed``: link only to files whose hash is right.  For a cart that is restaged, which may have
    been damaged: the damage must not come back from a cart that shares the file.  A new cart trusts
    the size, as downloads do.

    :raises LeaseLost: another process has taken over the cart.
    """
    linked = first = 0
    unlinked = ""
    while first < cart.files_total:
        positions = range(first, first + page())
        first = positions.stop
        duplicates = await store.dedup.duplicates(cart.id, positions)
        while duplicates:
            if hashed:
                duplicates = await volume.verification.intact_duplicates(duplicates)
            shared, reason = await volume.links.link_duplicates(cart, duplicates)
            gone = await store.dedup.record_linked(cart.id, holder, shared)
            linked += len(shared) - len(gone)
            unlinked = unlinked or reason
            again = await store.dedup.duplicates(cart.id, positions) if gone else []
            duplicates = [duplicate for duplicate in again if duplicate.position in gone]
        if unlinked and not linked:
            break  # if no link of a page works (no hard links here), none of the next will
    if unlinked:
        log.info(
            "Cart {id}: some duplicates cannot be linked: {reason}", id=cart.id, reason=unlinked
        )
    if linked:
        log.info(
            "Cart {id}: {number} files linked to other carts' files", id=cart.id, number=linked
        )
        return await store.carts.cart(cart.id) or cart
    return cart
