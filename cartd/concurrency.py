"""Many coroutines at once, but never too many: fair turns, a bounded loop, a pair."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Coroutine, Hashable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

T = TypeVar("T")

FEW = 4
"""Places that are open at first."""
MOMENT = 0.05
"""Seconds after which as many more are open; each turn that ends opens one more at once."""


class Turns:
    """Up to ``most()`` places that keys take in rotation.

    A key that asks for a thousand places gets every other one as soon as a second key
    asks for one: whoever has much to do does not make the others wait.

    The places open one after the other.  A server has a short queue for new connections (of five,
    in Pacifica's archive interface) and drops what a burst brings beyond it; TCP tries that again
    only after a second (RFC 6298, section 2.1), and then after two more.
    """

    def __init__(self, most: Callable[[], int], clock: IReactorTime) -> None:
        self._most = most
        self._clock = clock
        self._open = FEW
        self._taken = 0
        self._waiting: OrderedDict[Hashable, deque[Deferred[None]]] = OrderedDict()
        self._opening: IDelayedCall | None = None
        self._passing_on = False

    @asynccontextmanager
    async def turn(self, key: Hashable) -> AsyncIterator[None]:
        """Hold one place for as long as the block runs."""
        if self._is_free() and not self._waiting:
            self._taken += 1
        else:
            await self._queue(key)
        try:
            yield
        finally:
            self._taken -= 1
            busy = self._taken or self._waiting
            self._open = min(self._open + 1, self._most()) if busy else FEW
            self._pass_on()

    def _is_free(self) -> bool:
        return self._taken < min(self._open, self._most())

    def _queue(self, key: Hashable) -> Deferred[None]:
        def leave(place: Deferred[None]) -> None:
            queue = self._waiting[key]
            queue.remove(place)
            if not queue:
                del self._waiting[key]

        place: Deferred[None] = Deferred(leave)
        self._waiting.setdefault(key, deque()).append(place)
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
        key, queue = self._waiting.popitem(last=False)
        place = queue.popleft()
        if queue:
            self._waiting[key] = queue
        self._taken += 1
        return place


async def for_each(
    source: AsyncIterator[T],
    work: Callable[[T], Coroutine[Any, Any, None]],
    at_once: Callable[[], int],
) -> None:
    """Run ``work`` on each item of ``source``, at most ``at_once()`` of them at a time.

    The first failure cancels the others, waits until they have cleaned up, and is raised;
    so does a cancellation from outside.  ``source`` is read only as fast as work ends.
    """
    running: set[Deferred[None]] = set()
    failures: list[Failure] = []
    wake: Deferred[None] | None = None

    def ended(result: Any, job: Deferred[None]) -> None:
        running.discard(job)
        if isinstance(result, Failure):
            failures.append(result)
        nonlocal wake
        if wake is not None:
            waiting, wake = wake, None
            waiting.callback(None)

    async def until_at_most(number: int) -> None:
        nonlocal wake
        while len(running) > number and not failures:
            wake = Deferred()
            await wake
        if failures:
            failures[0].raiseException()

    try:
        async for item in source:
            await until_at_most(max(at_once(), 1) - 1)
            job = Deferred.fromCoroutine(work(item))
            running.add(job)
            job.addBoth(ended, job)
        await until_at_most(0)
    finally:
        wake = None
        await _cancelled(running)


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
