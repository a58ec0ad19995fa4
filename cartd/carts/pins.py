"""Pins of carts that are being sent, and access times of carts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from twisted.internet.defer import Deferred


class Pins:
    """Counts the downloads of each cart in this process; a pinned cart's files stay."""

    def __init__(self) -> None:
        self._pins: Counter[int] = Counter()
        self._waiters: dict[int, list[Deferred[None]]] = {}

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
                self._notify_waiters(cart_id)

    def is_pinned(self, cart_id: int) -> bool:
        return cart_id in self._pins

    def count(self) -> int:
        """Return the number of pins in all, which is the number of downloads."""
        return self._pins.total()

    def cart_ids(self) -> list[int]:
        """Return the ids of the pinned carts."""
        return list(self._pins)

    def when_unpinned(self, cart_id: int) -> Deferred[None]:
        """Fire as soon as the cart has no pin."""
        done: Deferred[None] = Deferred(lambda waiter: self._waiters[cart_id].remove(waiter))
        if self.is_pinned(cart_id):
            self._waiters.setdefault(cart_id, []).append(done)
        else:
            done.callback(None)
        return done

    def _notify_waiters(self, cart_id: int) -> None:
        """Fire the waiters; a callback may cancel other waiters, or pin the cart again."""
        waiters = self._waiters.get(cart_id, [])
        while waiters and not self.is_pinned(cart_id):
            waiters.pop(0).callback(None)
        if not waiters:
            self._waiters.pop(cart_id, None)

    async def wait_until_idle(self) -> None:
        """Wait until nothing is pinned."""
        while self._pins:
            await self.when_unpinned(next(iter(self._pins)))


class AccessTimes:
    """When each cart was last used, in Unix seconds, until it is written to the store.

    Access times are collected here and written now and then, in one statement, so that a download
    costs no transaction.
    """

    def __init__(self) -> None:
        self._last: dict[int, float] = {}

    def record(self, cart_id: int, now: float) -> None:
        """Remember that the cart was used ``now``."""
        self._last[cart_id] = now

    def last(self, cart_id: int, stored: float) -> float:
        """Return the later of the time remembered here and the ``stored`` one."""
        return max(stored, self._last.get(cart_id, stored))

    def drain(self) -> dict[int, float]:
        """Return, and forget, the times recorded since the last call."""
        drained, self._last = self._last, {}
        return drained

    def restore(self, times: dict[int, float]) -> None:
        """Remember times again that could not be written."""
        for cart_id, used in times.items():
            self._last[cart_id] = self.last(cart_id, used)
