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

FEW = 4
"""Places that are open at first."""
MOMENT = 0.05
"""Seconds after which as many more are open; each turn that ends opens one more at once."""


_Queues = OrderedDict[Hashable, deque[Deferred[None]]]


class Turns:
    """Up to ``most()`` places that keys take in rotation.

    A key that asks for a thousand places gets every other one as soon as a second key
    asks for one: whoever has much to do does not make the others wait.  Keys may have owners: then
    the owners take places in rotation, and the keys of each among themselves.

    The places open one after the other.  A server has a short queue for new connections (of five,
    in Pacifica's archive interface) and drops what a burst brings beyond it; TCP tries that again
    only after a second (RFC 6298, section 2.1), and then after two more.
    """

    def __init__(self, most: Callable[[], int], clock: IReactorTime) -> None:
        self._most = most
        self._clock = clock
        self._open = FEW
        self._taken = 0
        self._waiting: OrderedDict[Hashable, _Queues] = OrderedDict()
        """By owner and key; none of them is empty."""
        self._opening: IDelayedCall | None = None
        self._passing_on = False

    def turn(self, key: Hashable, owner: Hashable = None) -> AbstractAsyncContextManager[None]:
        """Hold one place for as long as the block runs."""
        return _Turn(self, key, owner)

    async def take(self, key: Hashable, owner: Hashable = None) -> None:
        """Wait for a place, which is to be left."""
        if self._is_free() and not self._waiting:
            self._taken += 1
        else:
            await self._queue(key, owner)

    def leave(self) -> None:
        self._taken -= 1
        busy = self._taken or self._waiting
        self._open = min(self._open + 1, self._most()) if busy else FEW
        self._pass_on()

    def open_slowly(self) -> None:
        """Open the places one after the other again, for a server that was away."""
        self._open = FEW

    def _is_free(self) -> bool:
        return self._taken < min(self._open, self._most())

    def _queue(self, key: Hashable, owner: Hashable) -> Deferred[None]:
        def leave(place: Deferred[None]) -> None:
            queues = self._waiting[owner]
            queues[key].remove(place)
            if not queues[key]:
                del queues[key]
            if not queues:
                del self._waiting[owner]
            if not self._waiting and self._opening is not None:
                self._opening.cancel()
                self._opening = None

        place: Deferred[None] = Deferred(leave)
        queues = self._waiting.setdefault(owner, OrderedDict())
        queues.setdefault(key, deque()).append(place)
        if self._opening is None:
            self._opening = self._clock.callLater(MOMENT, self._open_more)
        return place

    def _open_more(self) -> None:
        self._opening = None
        if self._waiting:
            self._open = min(self._open + FEW, self._most())
            self._opening = self._clock.callLater(MOMENT, self._open_more)
            self._pass_on()

    def _pass_on(self) -> None:
        if self._passing_on:
            return  # a turn that ended at once, within the loop below: that goes on, no deeper
        self._passing_on = True
        try:
            while self._waiting and self._is_free():
                self._next_place().callback(None)
        finally:
            self._passing_on = False

    def _next_place(self) -> Deferred[None]:
        owner, queues = self._waiting.popitem(last=False)
        key, queue = queues.popitem(last=False)
        place = queue.popleft()
        if queue:
            queues[key] = queue
        if queues:
            self._waiting[owner] = queues
        self._taken += 1
        return place


class _Turn(AbstractAsyncContextManager[None]):
    """One turn of one key."""

    __slots__ = ("_key", "_owner", "_turns")

    def __init__(self, turns: Turns, key: Hashable, owner: Hashable) -> None:
        self._turns = turns
        self._key = key
        self._owner = owner

    async def __aenter__(self) -> None:
        await self._turns.take(self._key, self._owner)

    async def __aexit__(self, *_: object) -> None:
        self._turns.leave()


async def for_each(
    source: AsyncIterator[T],
    work: Callable[[T], Coroutine[Any, Any, None]],
    at_once: Callable[[], int],
) -> None:
    """Run ``work`` on each item of ``source``, at most ``at_once()`` of them at a time.

    The first failure cancels the others, waits until they have cleaned up, and is raised;
    so does a cancellation from outside.  ``source`` is read only as fast as work ends.
    """
    await _Crew(source, work, at_once).run()


class _Nothing:
    """What there is after the last item."""


class _Crew(Generic[T]):
    """Workers that take one item after the other: a Deferred for each of them, not for each item.

    Each that takes an item looks whether more workers are wanted by now, each that has done one
    whether fewer are.
    """

    def __init__(
        self,
        source: AsyncIterator[T],
        work: Callable[[T], Coroutine[Any, Any, None]],
        at_once: Callable[[], int],
    ) -> None:
        self._source = source
        self._work = work
        self._at_once = at_once
        self._number = 0
        self._running: set[Deferred[None]] = set()
        self._hiring = False
        self._reading = False
        self._at_end = False
        self._waiting: list[Deferred[None]] = []
        """Workers that want an item while another one is getting its own."""
        self._failure: Failure | None = None
        self._changed: Deferred[None] | None = None

    async def run(self) -> None:
        try:
            self._hire()
            while self._number and self._failure is None:
                self._changed = Deferred()
                await self._changed
        finally:
            self._changed = None
            self._at_end = True
            await _cancelled(self._running)
        if self._failure is not None:
            self._failure.raiseException()

    @property
    def _wanted(self) -> int:
        return max(self._at_once(), 1)

    def _hire(self) -> None:
        if self._hiring:
            return  # by a new worker, within the loop below: that goes on, no deeper
        self._hiring = True
        while self._number < self._wanted and not self._at_end:
            self._number += 1
            worker = Deferred.fromCoroutine(self._serve())
            self._running.add(worker)
            worker.addBoth(self._left, worker)
        self._hiring = False

    async def _serve(self) -> None:
        while self._number <= self._wanted:
            item = await self._next()
            if isinstance(item, _Nothing):
                return
            self._hire()
            await self._work(item)

    async def _next(self) -> T | _Nothing:
        """The next item of the source, which gives them one at a time."""
        while self._reading:
            read: Deferred[None] = Deferred()
            self._waiting.append(read)
            await read
        if self._at_end:
            return _Nothing()
        self._reading = True
        try:
            return await anext(self._source)
        except StopAsyncIteration:
            self._at_end = True
            return _Nothing()
        finally:
            self._reading = False
            waiting, self._waiting = self._waiting, []
            for read in waiting:
                read.callback(None)

    def _left(self, result: Any, worker: Deferred[None]) -> None:
        self._number -= 1
        self._running.discard(worker)
        if isinstance(result, Failure):
            self._failure = self._failure or result
            self._at_end = True
        if self._changed is not None and (not self._number or self._failure is not None):
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


async def _cancelled(jobs: set[Deferred[None]]) -> None:
    """Cancel all ``jobs`` and wait until each has let go of what it held."""
    left = list(jobs)
    for job in left:
        job.cancel()
    await DeferredList(left)
