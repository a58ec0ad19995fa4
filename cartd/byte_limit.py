"""Limit of the bytes that all clients together may hold: a weighted semaphore."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from twisted.internet.defer import Deferred


class ByteLimit:
    """At most ``limit`` bytes at once, granted in order.

    A request that is larger than the limit is granted when no other bytes are held.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: deque[tuple[int, Deferred[None]]] = deque()
        self.taken = 0
        """Bytes that are held now."""

    @asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[None]:
        """Hold ``size`` bytes while the block runs; cancelling ends the wait for them."""
        if self._waiting or not self._fits(size):
            admitted: Deferred[None] = Deferred(self._cancelled)
            self._waiting.append((size, admitted))
            await admitted
        else:
            self.taken += size
        try:
            yield
        finally:
            self.taken -= size
            self._admit()

    def _fits(self, size: int) -> bool:
        return not self.taken or self.taken + size <= self._limit

    def _admit(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            size, admitted = self._waiting.popleft()
            self.taken += size
            admitted.callback(None)

    def _cancelled(self, left: Deferred[None]) -> None:
        self._waiting = deque(one for one in self._waiting if one[1] is not left)
        self._admit()  # smaller ones behind it may fit now
