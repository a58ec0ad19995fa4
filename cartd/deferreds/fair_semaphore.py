"""Semaphores: a fair one of slots, and a weighted one of the bytes that clients may hold."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

INITIAL_SLOTS = 4
"""Slots that may be held at first."""
RAMP_UP_SECONDS = 0.05
"""Seconds after which as many more may be held; each release allows one more at once."""


_Queues = OrderedDict[Hashable, deque[Deferred[None]]]


class FairSemaphore:
    """A semaphore of up to ``limit()`` slots, which it grants to keys in rotation.

    A key with a thousand waiters gets every other slot as soon as a second key has one: it does not
    starve the others.  Keys may have owners: then slots go to the owners in rotation, and to the
    keys of each owner in rotation.

    The number of slots ramps up.  A server has a short backlog for new connections (five in
    Pacifica's archive interface) and drops those that a burst brings beyond it; TCP retries only
    after a second (RFC 6298, section 2.1), and then after two more.
    """

    def __init__(self, limit: Callable[[], int], clock: IReactorTime) -> None:
        self._limit = limit
        self._clock = clock
        self._allowed = INITIAL_SLOTS
        self._held = 0
        self._waiting: OrderedDict[Hashable, _Queues] = OrderedDict()
        """By owner and key; no queue is empty."""
        self._ramp_timer: IDelayedCall | None = None
        self._granting = False

    @property
    def held(self) -> int:
        """Slots that are held now."""
        return self._held

    @property
    def waiting(self) -> int:
        """Callers that wait for a slot."""
        return sum(len(queue) for queues in self._waiting.values() for queue in queues.values())

    def slot(self, key: Hashable, owner: Hashable = None) -> AbstractAsyncContextManager[None]:
        """Hold one slot for as long as the block runs."""
        return _Slot(self, key, owner)

    async def acquire(self, key: Hashable, owner: Hashable = None) -> None:
        """Wait for a slot, which the caller must release."""
        if self._has_slot() and not self._waiting:
            self._held += 1
        else:
            await self._enqueue(key, owner)

    def release(self) -> None:
        self._held -= 1
        busy = self._held or self._waiting
        self._allowed = min(self._allowed + 1, self._limit()) if busy else INITIAL_SLOTS
        self._grant()

    def slow_start(self) -> None:
        """Ramp up from the initial number of slots again, after an outage of the server."""
        self._allowed = INITIAL_SLOTS

    def _has_slot(self) -> bool:
        return self._held < min(self._allowed, self._limit())

    def _enqueue(self, key: Hashable, owner: Hashable) -> Deferred[None]:
        def cancelled(waiter: Deferred[None]) -> None:
            queues = self._waiting[owner]
            queues[key].remove(waiter)
            if not queues[key]:
                del queues[key]
            if not queues:
                del self._waiting[owner]
            if not self._waiting and self._ramp_timer is not None:
                self._ramp_timer.cancel()
                self._ramp_timer = None

        waiter: Deferred[None] = Deferred(cancelled)
        queues = self._waiting.setdefault(owner, OrderedDict())
        queues.setdefault(key, deque()).append(waiter)
        if self._ramp_timer is None:
            self._ramp_timer = self._clock.callLater(RAMP_UP_SECONDS, self._ramp_up)
        return waiter

    def _ramp_up(self) -> None:
        self._ramp_timer = None
        if self._waiting:
            self._allowed = min(self._allowed + INITIAL_SLOTS, self._limit())
            self._ramp_timer = self._clock.callLater(RAMP_UP_SECONDS, self._ramp_up)
            self._grant()

    def _grant(self) -> None:
        if self._granting:
            return  # a slot that was released at once, within the loop below, which continues
        self._granting = True
        try:
            while self._waiting and self._has_slot():
                self._next_waiter().callback(None)
        finally:
            self._granting = False

    def _next_waiter(self) -> Deferred[None]:
        owner, queues = self._waiting.popitem(last=False)
        key, queue = queues.popitem(last=False)
        waiter = queue.popleft()
        if queue:
            queues[key] = queue
        if queues:
            self._waiting[owner] = queues
        self._held += 1
        return waiter


class _Slot(AbstractAsyncContextManager[None]):
    """One slot of one key."""

    __slots__ = ("_key", "_owner", "_semaphore")

    def __init__(self, semaphore: FairSemaphore, key: Hashable, owner: Hashable) -> None:
        self._semaphore = semaphore
        self._key = key
        self._owner = owner

    async def __aenter__(self) -> None:
        await self._semaphore.acquire(self._key, self._owner)

    async def __aexit__(self, *_: object) -> None:
        self._semaphore.release()


class ByteLimit:
    """Weighted semaphore: at most ``limit`` bytes at once, granted in order.

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
