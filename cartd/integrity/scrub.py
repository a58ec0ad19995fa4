"""Ready carts compared with their hashes, one after the other, while the service runs.

Strategy: the cart whose last comparison is longest ago is next, and the dates are in the store, so
a restart goes on where the last one was.  A cart is not pinned: it may be evicted or deleted while
it is read, and is then given up.  After each trip the disk has nine times as long for others.

When a few carts in a row are damaged it is the disk that is broken, and to have all others fetched
again would not mend it: the rest waits for an administrator, or for a long while.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from cartd.backoff import Backoff
from cartd.errors import VolumeNotWritable
from cartd.integrity.repair import Repair
from cartd.integrity.verification import Damage, Verification
from cartd.model import Cart, CartStatus
from cartd.store import Store

REST_RATIO = 9
"""Times as long as it has read it rests."""
MAX_DAMAGED_IN_A_ROW = 3
"""Carts that are found damaged one after the other before it pauses."""
INITIAL_PAUSE = 600.0
MAX_PAUSE = 86_400.0
"""Seconds; each pause in a row is twice as long as the one before."""
MAX_NAMED = 3
"""Damaged files that the log names."""

log = Logger()


class Scrub:
    """Compares every ready cart about once in ``interval`` seconds, if the disk is quick enough."""

    def __init__(
        self,
        store: Store,
        verification: Verification,
        repair: Repair,
        clock: IReactorTime,
        now: Callable[[], float],
        interval: float,
    ) -> None:
        """``clock`` is for the rests; ``now`` gives Unix time, for the dates in the store."""
        self._store = store
        self._verification = verification
        self._repair = repair
        self._clock = clock
        self._now = now
        self._interval = interval
        self._since = 0.0
        self._backoff: Backoff[None] = Backoff(
            clock.seconds, first=INITIAL_PAUSE, longest=MAX_PAUSE
        )
        """One key: after damage to a few carts in a row, or while the volume cannot be written."""

    async def scrub(self) -> None:
        """Compare, one after the other, all carts whose time has come, unless it pauses."""
        in_a_row = 0
        while not self._backoff.is_waiting(None):
            before = self._now() - self._interval
            cart = await self._store.least_recently_verified(before)
            if cart is None:
                return
            try:
                in_a_row = 0 if await self._verify(cart) else in_a_row + 1
            except VolumeNotWritable:
                # That has been said.  The cart is the next one again.
                self._backoff.failed(None)
                return
            if in_a_row >= MAX_DAMAGED_IN_A_ROW:
                log.error(
                    "{number} carts in a row were found damaged, and are staged again: please look"
                    " after the volume's disk. The others are compared later",
                    number=in_a_row,
                )
                self._backoff.failed(None)

    async def _verify(self, cart: Cart) -> bool:
        """Compare the cart and give it back if it is damaged; whether it was not."""
        begun = self._now()
        self._since = self._clock.seconds()
        damages = await self._verification.damages(cart, self._rest)
        if not damages:
            await self._store.record_verified(cart.id, begun)
            self._backoff.succeeded(None)
            return True
        now = await self._store.cart(cart.id)
        if now is None or now.status is not CartStatus.READY or now.updated != cart.updated:
            return True  # what was missing had been taken away, or replaced
        await self._repair.restage(cart, [damage.position for damage in damages])
        _log_damage(cart, damages)
        return False

    async def _rest(self, _size: int) -> None:
        busy = self._clock.seconds() - self._since
        await deferLater(self._clock, busy * REST_RATIO)
        self._since = self._clock.seconds()


def _log_damage(cart: Cart, damages: Sequence[Damage]) -> None:
    named = "; ".join(f"{damage.path!r} {damage.fault}" for damage in damages[:MAX_NAMED])
    log.warn(
        "Cart {id} ({uid}) is damaged, {number} of its {total} files: {named}",
        id=cart.id,
        uid=cart.display_uid,
        number=len(damages),
        total=cart.files_total,
        named=named if len(damages) <= MAX_NAMED else f"{named}; ...",
    )
