"""The scrub: verifies the hashes of ready carts, one after the other, while the service runs.

:class:`CartVerifier` reads all bytes of a cart and compares them with the recorded hashes, for the
scrub and for ``cartd-cmd verify``.

Strategy: the cart that was verified longest ago is next; the dates are in the store, so that a
restart continues.  A cart is not pinned: it may be evicted or deleted while it is read, and is then
skipped.  After each read the scrub pauses for nine times as long.

If several carts in a row are damaged, the disk is broken, and restaging all others would not help:
the scrub pauses, for longer each time, until an administrator has repaired the disk.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from cartd.backoff import Backoff
from cartd.errors import VolumeNotWritable
from cartd.integrity.repair import Repair
from cartd.metrics import UNEXPOSED, Metrics
from cartd.model import Cart, CartFile, CartStatus, FileStatus
from cartd.store import Store
from cartd.volume import Volume

log = Logger()

PAGE = 2000
"""Files verified at a time."""
REST_RATIO = 9
"""Seconds of pause per second of reading."""
MAX_DAMAGED_IN_A_ROW = 3
"""Damaged carts in a row after which the scrub pauses."""
INITIAL_PAUSE = 600.0
MAX_PAUSE = 86_400.0
"""Seconds; consecutive pauses double."""
MAX_NAMED = 3
"""Maximum number of damaged files that are logged by name."""


@dataclass(frozen=True, slots=True)
class Damage:
    """What is wrong with one file of a cart."""

    position: int
    path: str
    fault: str
    """A short description, as ``is missing``."""


class CartVerifier:
    """Reads carts; changes nothing."""

    def __init__(self, store: Store, volume: Volume, metrics: Metrics = UNEXPOSED) -> None:
        self._store = store
        self._volume = volume
        self._verified = metrics.verified_files

    async def damages(self, cart: Cart, read: Callable[[int], Awaitable[None]]) -> list[Damage]:
        """Return all damage of a ready cart, in the order of the manifest.

        ``read`` is called with each number of bytes read, and may pause.  A cart that is deleted
        while it is read has missing files.
        """
        damages = []
        async for files, faults in self._checked(cart, read):
            found = zip(files, faults, strict=True)
            damaged = [Damage(it.position, it.path, fault) for it, fault in found if fault]
            self._verified.labels("damaged").inc(len(damaged))
            self._verified.labels("intact").inc(len(files) - len(damaged))
            damages += damaged
        return damages

    async def _checked(
        self, cart: Cart, read: Callable[[int], Awaitable[None]]
    ) -> AsyncIterator[tuple[list[CartFile], list[str]]]:
        """Yield the files page by page, with the fault of each; '' if it is intact."""
        if cart.has_tar:
            async for page in self._volume.verification.bundle_faults(
                cart, self._pages(cart), read
            ):
                yield page
            return
        async for files in self._pages(cart):
            yield files, await self._volume.verification.faults(cart, files, read)

    async def _pages(self, cart: Cart) -> AsyncIterator[list[CartFile]]:
        after = -1
        while page := await self._store.carts.files(cart.id, after=after, limit=PAGE):
            # The failed files of a partial cart are on no volume.
            yield [file for file in page if file.status is not FileStatus.ERROR]
            after = page[-1].position


class Scrub:
    """Verifies every ready cart about once per ``interval`` seconds, if the disk is fast enough."""

    def __init__(
        self,
        store: Store,
        verification: CartVerifier,
        repair: Repair,
        clock: IReactorTime,
        now: Callable[[], float],
        interval: float,
    ) -> None:
        """``clock`` is for the pauses; ``now`` returns Unix time, for the dates in the store."""
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
        """One key: after several damaged carts in a row, or while the volume is not writable."""

    async def scrub(self) -> None:
        """Verify all carts that are due, one after the other, unless the scrub is paused."""
        in_a_row = 0
        while not self._backoff.is_waiting(None):
            before = self._now() - self._interval
            cart = await self._store.durability.least_recently_verified(before)
            if cart is None:
                return
            try:
                in_a_row = 0 if await self._verify(cart) else in_a_row + 1
            except VolumeNotWritable:
                # Logged already.  The same cart is the next one after the pause.
                self._backoff.failed(None)
                return
            if in_a_row >= MAX_DAMAGED_IN_A_ROW:
                log.error(
                    "{number} carts in a row were damaged and are restaged: check the volume's"
                    " disk. The scrub is paused",
                    number=in_a_row,
                )
                self._backoff.failed(None)

    async def _verify(self, cart: Cart) -> bool:
        """Verify the cart and restage it if it is damaged; return whether it was intact."""
        begun = self._now()
        self._since = self._clock.seconds()
        damages = await self._verification.damages(cart, self._rest)
        if not damages:
            await self._store.durability.record_verified(cart.id, begun)
            self._backoff.succeeded(None)
            return True
        now = await self._store.carts.cart(cart.id)
        if now is None or now.status is not CartStatus.READY or now.updated != cart.updated:
            return True  # it was removed or replaced while it was read
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
        "{cart} is damaged, {number} of its {total} files: {named}",
        cart=cart,
        number=len(damages),
        total=cart.files_total,
        named=named if len(damages) <= MAX_NAMED else f"{named}; ...",
    )
