"""Limited concurrency: a fair semaphore, a worker pool, and two coroutines in parallel."""

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
            return  # a slot that was released at once, within the loop below, which goes on
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


async def for_each(
    source: AsyncIterator[T],
    work: Callable[[T], Coroutine[Any, Any, None]],
    limit: Callable[[], int],
) -> None:
    """Run ``work`` on each item of ``source``, at most ``limit()`` of them at a time.

    The first failure cancels the others, and is raised after they have cleaned up; a cancellation
    from outside does the same.  ``source`` is read only as fast as work ends.
    """
    await _WorkerPool(source, work, limit).run()


class _Exhausted:
    """Stands for the end of the source."""


class _WorkerPool(Generic[T]):
    """Workers that take one item after the other: one Deferred per worker, not per item.

    After taking an item a worker spawns more workers if the limit has grown; after an item it ends
    if the limit has shrunk.
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
        """Workers that wait while another one reads from the source."""
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
            return  # called by a new worker, within the loop below, which goes on
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
        """Return the next item of the source, which is read by one worker at a time."""
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
        second.close()  # it has never begun if the first failed at once


async def _cancel_all(jobs: set[Deferred[None]]) -> None:
    """Cancel all ``jobs`` and wait until each has cleaned up."""
    left = list(jobs)
    for job in left:
        job.cancel()
    await DeferredList(left)
