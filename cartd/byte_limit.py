"""A bound on the bytes that all clients together may have somewhere: a semaphore with weights."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from twisted.internet.defer import Deferred


class ByteLimit:
    """At most ``limit`` bytes at once; who comes first is let in first.

    What is larger than that is let in when nobody else is, so that it is not kept out for ever.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: deque[tuple[int, Deferred[None]]] = deque()
        self.taken = 0
        """Bytes of all that have been let in and have not left."""

    @asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[None]:
        """Around what needs ``size`` bytes; cancelling ends the wait for them."""
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
        self._admit()  # it may have kept out smaller ones behind it
