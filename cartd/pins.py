"""Which carts are being sent at this moment, and when each was last used.

Uses are remembered here and written to the store now and then, in one statement, so that
a download costs no transaction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from twisted.internet.defer import Deferred


class Uses:
    """Pins by cart id (a pinned cart's files stay), and last uses in Unix seconds."""

    def __init__(self) -> None:
        self._pins: Counter[int] = Counter()
        self._unpinned: dict[int, list[Deferred[None]]] = {}
        self._last: dict[int, float] = {}

    @contextmanager
    def pin(self, cart_id: int) -> Iterator[None]:
        """Keep the cart's files on the volume for as long as the block runs."""
        self._pins[cart_id] += 1
        try:
            yield
        finally:
            self._pins[cart_id] -= 1
            if not self._pins[cart_id]:
                del self._pins[cart_id]
                self._tell_unpinned(cart_id)

    def is_pinned(self, cart_id: int) -> bool:
        return cart_id in self._pins

    def pinned(self) -> int:
        """How many pins are held in all: the number of downloads."""
        return self._pins.total()

    def unpinned(self, cart_id: int) -> Deferred[None]:
        """Fire as soon as nobody pins the cart."""
        done: Deferred[None] = Deferred(lambda gone: self._unpinned[cart_id].remove(gone))
        if self.is_pinned(cart_id):
            self._unpinned.setdefault(cart_id, []).append(done)
        else:
            done.callback(None)
        return done

    def _tell_unpinned(self, cart_id: int) -> None:
        """Fire for those who wait; each may cancel others, or pin the cart again."""
        waiting = self._unpinned.get(cart_id, [])
        while waiting and not self.is_pinned(cart_id):
            waiting.pop(0).callback(None)
        if not waiting:
            self._unpinned.pop(cart_id, None)

    async def idle(self) -> None:
        """Wait until nothing is pinned."""
        while self._pins:
            await self.unpinned(next(iter(self._pins)))

    def note(self, cart_id: int, now: float) -> None:
        """Remember that the cart was used ``now``."""
        self._last[cart_id] = now

    def note_pinned(self, now: float) -> None:
        """Remember that what is pinned is used ``now``."""
        for cart_id in self._pins:
            self.note(cart_id, now)

    def last(self, cart_id: int, recorded: float) -> float:
        """The later of what is remembered here and what the store has ``recorded``."""
        return max(recorded, self._last.get(cart_id, recorded))

    def take(self) -> dict[int, float]:
        """Hand over, and forget, the uses since the last time."""
        taken, self._last = self._last, {}
        return taken

    def put_back(self, uses: dict[int, float]) -> None:
        """Remember again what could not be written."""
        for cart_id, used in uses.items():
            self._last[cart_id] = self.last(cart_id, used)
