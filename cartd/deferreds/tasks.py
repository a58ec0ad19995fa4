"""Tasks: uncancellable, with a timeout, in a worker pool, batched, shared by callers, periodic."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any, Generic, TypeVar

from twisted.internet.defer import CancelledError, Deferred, DeferredList, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from cartd.errors import CartdError, DatabaseUnavailable, VolumeUnavailable

T = TypeVar("T")

log = Logger()


async def uncancellable(job: Deferred[T]) -> T:
    """Return the result of ``job``; if cancelled, raise that only after ``job`` has ended.

    A thread continues when its Deferred is cancelled.  A coroutine that releases a lock or removes
    a file at its end must be sure that no thread still uses it.  A cancellation replaces the result
    or the failure of ``job``.
    """
    outcome: list[T | Failure] = []
    cancelled: CancelledError | None = None
    waiting: Deferred[None] = Deferred()

    def ended(result: T | Failure) -> None:
        outcome.append(result)
        waiting.callback(None)

    job.addBoth(ended)
    while not outcome:
        try:
            await waiting
        except CancelledError as error:
            cancelled = error
            waiting = Deferred()
    if cancelled is not None:
        raise cancelled
    result = outcome[0]
    if isinstance(result, Failure):
        result.raiseException()
    return result


def with_timeout(seconds: float, work: Deferred[T], clock: IReactorTime) -> Deferred[T]:
    """Fire with the result of ``work``, or fail with ``TimeoutError`` after so many seconds.

    ``work`` is cancelled then, but not waited for even if that does not end it, as in
    :func:`uncancellable` work of a disk that hangs: unlike ``Deferred.addTimeout``, this always
    fires.  What becomes of the work then is ignored.
    """
    waiting: Deferred[T] = Deferred(lambda _: work.cancel())

    def too_long() -> TimeoutError:
        return TimeoutError(f"it took more than {seconds:g} s")

    def late() -> None:
        try:
            work.cancel()
        finally:  # even if a bug makes that fail, which the clock logs
            if not waiting.called:
                waiting.errback(too_long())

    timer = clock.callLater(seconds, late)

    def ended(result: T | Failure) -> None:
        if timer.active():
            timer.cancel()
        elif not waiting.called and isinstance(result, Failure) and result.check(CancelledError):
            result = Failure(too_long())
        if not waiting.called:
            waiting.callback(result)

    work.addBoth(ended)
    return waiting


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
            return  # called by a new worker, within the loop below, which continues
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


class Batcher(Generic[T]):
    """Calls ``write`` with a batch of items when it has ``size`` items or is ``max_age`` old.

    The call of :meth:`add` that fills a batch waits until it is written, so that the speed of the
    store limits the number of collected items.
    """

    def __init__(
        self,
        write: Callable[[Sequence[T]], Awaitable[None]],
        now: Callable[[], float],
        *,
        size: int = 1000,
        max_age: float = 1.0,
    ) -> None:
        self._write = write
        self._now = now
        self._size = size
        self._max_age = max_age
        self._items: list[T] = []
        self._since = 0.0
        self._added = 0
        self._written = 0
        self._writing = False
        self._waiting: list[Deferred[None]] = []
        """Calls that wait for the end of the running write."""

    async def add(self, item: T) -> None:
        if not self._items:
            self._since = self._now()
        self._items.append(item)
        self._added += 1
        if len(self._items) >= self._size or self._now() - self._since >= self._max_age:
            await self.flush()

    async def flush(self) -> None:
        """Write all items that were added so far; they are kept if the write fails."""
        wanted = self._added
        while self._written < wanted:
            if self._writing:
                # The running write notifies all waiters itself: a chain in which each notifies
                # the next one would exceed Python's recursion limit.
                ended: Deferred[None] = Deferred()
                self._waiting.append(ended)
                await ended
            else:
                await self._write_all()

    async def _write_all(self) -> None:
        self._writing = True
        items, self._items = self._items, []
        try:
            await self._write(items)
            self._written += len(items)
        except BaseException:
            self._items = [*items, *self._items]
            raise
        finally:
            self._writing = False
            waiting, self._waiting = self._waiting, []
            for ended in waiting:
                ended.callback(None)


class SingleFlight(Generic[T]):
    """One execution, started at once, whose result all concurrent callers share.

    Cancelling one result does not affect the others; cancelling the last one cancels the execution.
    """

    def __init__(self, start: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._waiting: list[Deferred[T]] = []
        self._outcome: list[T | Failure] = []
        self._abandoned = False
        self._task = Deferred.fromCoroutine(start())
        self._task.addBoth(self._end)

    @property
    def in_progress(self) -> bool:
        """Whether it still runs, so that another caller may join."""
        return not self._outcome and not self._abandoned

    def result(self) -> Deferred[T]:
        """Fire with the result or the failure; the caller may cancel it."""
        waiting: Deferred[T] = Deferred(self._unsubscribe)
        self._waiting.append(waiting)
        if self._outcome:
            self._notify(self._outcome[0])
        return waiting

    def _unsubscribe(self, waiting: Deferred[T]) -> None:
        self._waiting.remove(waiting)
        if not self._waiting:
            self._abandoned = True
            self._task.cancel()

    def _end(self, outcome: T | Failure) -> None:
        self._outcome.append(outcome)
        self._notify(outcome)

    def _notify(self, outcome: T | Failure) -> None:
        while self._waiting:  # a callback may cancel the next one
            waiting = self._waiting.pop(0)
            if isinstance(outcome, Failure):
                waiting.errback(outcome)
            else:
                waiting.callback(outcome)


class Periodic:
    """Call ``work`` at once and then every ``seconds``; never twice at a time.

    It continues after a failure of ``work``.  A failure that repeats is logged once, and its end is
    logged once.
    """

    def __init__(
        self, clock: IReactorTime, seconds: float, work: Callable[[], Awaitable[None]]
    ) -> None:
        self._work = work
        self._seconds = seconds
        self._failure: str | None = None
        """The message of the last run, if it failed."""
        self._loop = LoopingCall(self._run)
        self._loop.clock = clock
        self._ended: Deferred[LoopingCall] | None = None
        self._current: Deferred[None] | None = None

    def start(self) -> None:
        self._ended = self._loop.start(self._seconds)

    async def stop(self) -> None:
        """End the loop; cancel running work and wait for its end."""
        if self._ended is None:
            return
        self._loop.stop()
        if self._current is not None:
            self._current.cancel()
        await self._ended
        self._ended = None

    def _run(self) -> Deferred[None]:
        self._current = Deferred.fromCoroutine(self._run_and_log())
        return self._current

    async def _run_and_log(self) -> None:
        # A LoopingCall whose function fails stops for good.
        try:
            await self._work()
        except (CancelledError, DatabaseUnavailable, VolumeUnavailable):
            pass  # the volume and the database log their outages themselves
        except (CartdError, OSError) as error:
            if str(error) != self._failure:
                self._failure = str(error)
                log.warn("{error}; retrying every {s} s", error=error, s=self._seconds)
        except Exception:
            log.failure("Periodic work failed; retrying in {s} s", s=self._seconds)
        else:
            if self._failure is not None:
                log.info("No longer failing: {failure}", failure=self._failure)
            self._failure = None
