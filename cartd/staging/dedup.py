"""Files that are on the volume already, in another cart: linked, and not fetched again."""

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
    """Link into ``cart`` what other carts have staged, ``page()`` files at a time.

    The cart as it is then.  A file that cannot be linked is left to be fetched.  If a duplicate
    goes before its link is recorded, another is looked for.

    ``hashed``: only to files whose bytes have their hash.  So it is for a cart that is staged
    again, which may have been found damaged: what is wrong with it shall not come back from a cart
    that shares it.  A new one trusts the size, as downloads do.

    :raises LeaseLost: somebody else has the cart now.
    """
    linked = first = 0
    unlinked = ""
    while first < cart.files_total:
        positions = range(first, first + page())
        first = positions.stop
        duplicates = await store.duplicates(cart.id, positions)
        while duplicates:
            if hashed:
                duplicates = await volume.intact_duplicates(duplicates)
            shared, reason = await volume.link_duplicates(cart, duplicates)
            gone = await store.record_linked(cart.id, holder, shared)
            linked += len(shared) - len(gone)
            unlinked = unlinked or reason
            again = await store.duplicates(cart.id, positions) if gone else []
            duplicates = [duplicate for duplicate in again if duplicate.position in gone]
        if unlinked and not linked:
            break  # what fails for a whole page (no hard links here) fails for the next
    if unlinked:
        log.info("Not all of cart {id} can be linked: {reason}", id=cart.id, reason=unlinked)
    if linked:
        log.info("Cart {id}: {number} files are links to other carts'", id=cart.id, number=linked)
        return await store.cart(cart.id) or cart
    return cart
