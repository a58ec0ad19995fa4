"""Files that are on the volume already, in another cart: linked, and not fetched again."""

from __future__ import annotations

from collections.abc import Callable

from twisted.logger import Logger

from cartd.model import Cart
from cartd.store import Store
from cartd.volume import Volume

log = Logger()


async def link_twins(
    store: Store, volume: Volume, cart: Cart, holder: str, page: Callable[[], int]
) -> Cart:
    """Link into ``cart`` what other carts have staged, ``page()`` files at a time.

    The cart as it is then.  A file that cannot be linked is left to be fetched.

    A damaged cart is repaired so too, but not with the damage: a twin of a wrong size is refused.
    Other bytes of the right number are not found out here, as they are not by a download: both
    trust the size.  Whoever verifies hashes on the volume must deal with all names of a bad file,
    or what it takes from one cart is linked into it again.

    :raises LeaseLost: somebody else has the cart now.
    """
    linked = first = 0
    unlinked = ""
    while first < cart.files_total:
        positions = range(first, first + page())
        first = positions.stop
        twins = await store.twins(cart.id, positions)
        if twins:
            shared, reason = await volume.share(cart, twins)
            await store.record_linked(cart.id, holder, shared)
            linked += len(shared)
            unlinked = unlinked or reason
            if not shared:
                break  # what fails for a whole page (no hard links here) fails for the next
    if unlinked:
        log.info("Not all of cart {id} can be linked: {reason}", id=cart.id, reason=unlinked)
    if linked:
        log.info("Cart {id}: {number} files are links to other carts'", id=cart.id, number=linked)
        return await store.cart(cart.id) or cart
    return cart
