"""Many coroutines at once, but never too many: fair turns, a bounded loop, a pair."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Coroutine, Hashable
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

T = TypeVar("T")

INITIAL_SLOTS = 4
"""Places that are open at first."""
RAMP_UP_SECONDS = 0.05
"""Seconds after which as many more are open; each turn that ends opens one more at once."""


_Queues = OrderedDict[Hashable, deque[Deferred[None]]]


class FairSemaphore:
    """Up to ``limit()`` places that keys take in rotation.

    A key that asks for a thousand places gets every other one as soon as a second key
    asks for one: whoever has much to do does not make the others wait.  Keys may have owners: then
    the owners take places in rotation, and the keys of each among themselves.

    The places open one after the other.  A server has a short queue for new connections (of five,
    in Pacifica's archive interface) and drops what a burst brings beyond it; TCP tries that again
    only after a second (RFC 6298, section 2.1), and then after two more.
    """

    def __init__(self, limit: Callable[[], int], clock: IReactorTime) -> None:
        self._limit = limit
        self._clock = clock
        self._allowed = INITIAL_SLOTS
        self._held = 0
        self._waiting: OrderedDict[Hashable, _Queues] = OrderedDict()
        """By owner and key; none of them is empty."""
        self._ramp_timer: IDelayedCall | None = None
        self._granting = False

    def slot(self, key: Hashable, owner: Hashable = None) -> AbstractAsyncContextManager[None]:
        """Hold one place for as long as the block runs."""
        return _Slot(self, key, owner)

    async def acquire(self, key: Hashable, owner: Hashable = None) -> None:
        """Wait for a place, which is to be left."""
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
        """Open the places one after the other again, for a server that was away."""
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
            return  # a turn that ended at once, within the loop below: that goes on, no deeper
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
    """One turn of one key."""

    __slots__ = ("_key", "_owner", "_semaphore")

    def __init__(self, semaphore: FairSemaphore, key: Hashable, owner: Hashable) -> None:
        self._semaphore = semaphore
        self._key = key
        self._owner = owner

    async def __aenter__(self) -> None:
        await self._semaphore.acquire(self._key, self._owner)

    async def __aexit__(self, *_: object) -> None:
        self._semaphore.release()


async def for_each(
    source: AsyncIterator[T],
    work: Callable[[T], Coroutine[Any, Any, None]],
    limit: Callable[[], int],
) -> None:
    """Run ``work`` on each item of ``source``, at most ``limit()`` of them at a time.

    The first failure cancels the others, waits until they have cleaned up, and is raised;
    so does a cancellation from outside.  ``source`` is read only as fast as work ends.
    """
    await _WorkerPool(source, work, limit).run()


class _Exhausted:
    """What there is after the last item."""


class _WorkerPool(Generic[T]):
    """Workers that take one item after the other: a Deferred for each of them, not for each item.

    Each that takes an item looks whether more workers are wanted by now, each that has done one
    whether fewer are.
    """

    def __init__(
        self,
        source: AsyncIterator[T],
        work: Callable[[T], Coroutine[Any, Any, None]],
        limit: Callable[[], int],
    ) -> None:
        self._source = source
        self._work = work
        self._limit = limit
        self._worker_count = 0
        self._running: set[Deferred[None]] = set()
        self._spawning = False
        self._reading = False
        self._at_end = False
        self._waiting: list[Deferred[None]] = []
        """Workers that want an item while another one is getting its own."""
        self._failure: Failure | None = None
        self._changed: Deferred[None] | None = None

    async def run(self) -> None:
        try:
            self._spawn()
            while self._worker_count and self._failure is None:
                self._changed = Deferred()
                await self._changed
        finally:
            self._changed = None
            self._at_end = True
            await _cancel_all(self._running)
        if self._failure is not None:
            self._failure.raiseException()

    @property
    def _size(self) -> int:
        return max(self._limit(), 1)

    def _spawn(self) -> None:
        if self._spawning:
            return  # by a new worker, within the loop below: that goes on, no deeper
        self._spawning = True
        while self._worker_count < self._size and not self._at_end:
            self._worker_count += 1
            worker = Deferred.fromCoroutine(self._work_loop())
            self._running.add(worker)
            worker.addBoth(self._worker_ended, worker)
        self._spawning = False

    async def _work_loop(self) -> None:
        while self._worker_count <= self._size:
            item = await self._next()
            if isinstance(item, _Exhausted):
                return
            self._spawn()
            await self._work(item)

    async def _next(self) -> T | _Exhausted:
        """The next item of the source, which gives them one at a time."""
        while self._reading:
            read: Deferred[None] = Deferred()
            self._waiting.append(read)
            await read
        if self._at_end:
            return _Exhausted()
        self._reading = True
        try:
            return await anext(self._source)
        except StopAsyncIteration:
            self._at_end = True
            return _Exhausted()
        finally:
            self._reading = False
            waiting, self._waiting = self._waiting, []
            for read in waiting:
                read.callback(None)

    def _worker_ended(self, result: Any, worker: Deferred[None]) -> None:
        self._worker_count -= 1
        self._running.discard(worker)
        if isinstance(result, Failure):
            self._failure = self._failure or result
            self._at_end = True
        if self._changed is not None and (not self._worker_count or self._failure is not None):
            changed, self._changed = self._changed, None
            changed.callback(None)


async def both(first: Coroutine[Any, Any, None], second: Coroutine[Any, Any, None]) -> None:
    """Run two coroutines to their ends; the failure of one cancels the other."""

    async def items() -> AsyncIterator[Coroutine[Any, Any, None]]:
        yield first
        yield second

    async def run(coroutine: Coroutine[Any, Any, None]) -> None:
        await coroutine

    try:
        await for_each(items(), run, lambda: 2)
    finally:
        second.close()  # if the first failed at once, it has never begun


async def _cancel_all(jobs: set[Deferred[None]]) -> None:
    """Cancel all ``jobs`` and wait until each has let go of what it held."""
    left = list(jobs)
    for job in left:
        job.cancel()
    await DeferredList(left)
