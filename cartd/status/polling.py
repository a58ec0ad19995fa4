"""Long polling: requests that wait until a cart changes, all by one query now and then."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

POLL_INTERVAL = 0.5
"""Seconds between two queries for the versions of all carts that requests wait for."""
MAX_WAITING = 1000
"""Requests that may wait at the same time."""


@dataclass(eq=False, slots=True)
class _Waiter:
    cart_id: int
    version: int
    ended: Deferred[None]


class LongPolls:
    """Requests that wait until a cart has another version than the one they know."""

    def __init__(
        self,
        versions: Callable[[Sequence[int]], Awaitable[Mapping[int, int]]],
        clock: IReactorTime,
        *,
        limit: int = MAX_WAITING,
    ) -> None:
        """``versions`` is :meth:`cartd.store.statuses.Statuses.versions`."""
        self._versions = versions
        self._clock = clock
        self._limit = limit
        self._waiters: set[_Waiter] = set()
        self._closed = False

    def close(self) -> None:
        """End all waits; from now on, none begins."""
        self._closed = True
        self._end(list(self._waiters))

    @property
    def has_room(self) -> bool:
        """Whether one more request may wait."""
        return not self._closed and len(self._waiters) < self._limit

    async def wait(self, cart_id: int, version: int, seconds: float) -> None:
        """Wait until the cart has another version, but at most so many seconds.

        Does not wait without :attr:`has_room`.  A cancelled wait leaves nothing behind.
        """
        if not self.has_room:
            return
        waiter = _Waiter(cart_id, version, Deferred())
        self._waiters.add(waiter)
        timer = self._clock.callLater(seconds, self._end, [waiter])
        try:
            await waiter.ended
        finally:
            self._waiters.discard(waiter)
            if timer.active():
                timer.cancel()

    async def poll(self) -> None:
        """End the waits for carts that have changed; to be called every ``POLL_INTERVAL``."""
        if not self._waiters:
            return
        waiters = list(self._waiters)  # those that come meanwhile may know a newer version
        found = await self._versions(sorted({waiter.cart_id for waiter in waiters}))
        self._end([one for one in waiters if found.get(one.cart_id) != one.version])

    def _end(self, waiters: Sequence[_Waiter]) -> None:
        for waiter in waiters:
            if not waiter.ended.called:
                waiter.ended.callback(None)
