"""Batching of many small blocking calls into few calls in threads.

Strategy: each system call releases the GIL and must acquire it again, so a dozen threads that write
small files spend more on waking each other than on the files.  Calls that arrive while enough
batches run are queued, and run together in the next batch.  The number of concurrent batches
follows the measured latency: two on a fast disk, more where each call waits long (a remote disk).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any, Final, TypeAlias

from twisted.internet.defer import Deferred

from cartd.deferreds.threads import P, T, ThreadRunner

Outcome: TypeAlias = tuple[Any, BaseException | None]
MAX_BATCH: Final = 16
MIN_CONCURRENT: Final = 2
MAX_CONCURRENT: Final = 8
TARGET_RATE: Final = 1000.0
"""Calls a second for which the number of concurrent batches is chosen."""


class BatchingThreadRunner:
    """``ThreadRunner`` for short calls; each has its own result, in no particular order.

    The callers bound the queue by the number of their concurrent calls.
    """

    def __init__(self, threads: ThreadRunner, timer: Callable[[], float] = perf_counter) -> None:
        self._threads = threads
        self._timer = timer
        self._queue: deque[tuple[Callable[[], Any], Deferred[Any]]] = deque()
        self._running = 0
        self._seconds_each = 0.0

    def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        result: Deferred[T] = Deferred()
        self._queue.append((partial(work, *args, **kwargs), result))
        self._dispatch()
        return result

    @property
    def limit(self) -> int:
        """The number of batches that may run concurrently (Little's law: rate times latency)."""
        return min(max(int(TARGET_RATE * self._seconds_each), MIN_CONCURRENT), MAX_CONCURRENT)

    def _dispatch(self) -> None:
        while self._queue and self._running < self.limit:
            batch = [self._queue.popleft() for _ in range(min(len(self._queue), MAX_BATCH))]
            self._running += 1
            running = self._threads.run(self._run_batch, [work for work, _ in batch])
            running.addCallback(self._batch_done, [result for _, result in batch])

    def _run_batch(self, batch: list[Callable[[], Any]]) -> tuple[list[Outcome], float]:
        started = self._timer()
        return [_outcome(work) for work in batch], (self._timer() - started) / len(batch)

    def _batch_done(
        self, finished: tuple[list[Outcome], float], results: list[Deferred[Any]]
    ) -> None:
        outcomes, seconds = finished
        self._running -= 1
        self._seconds_each += (seconds - self._seconds_each) / 4
        self._dispatch()
        for result, (value, error) in zip(results, outcomes, strict=True):
            if error is None:
                result.callback(value)
            else:
                result.errback(error)


def _outcome(work: Callable[[], Any]) -> Outcome:
    try:
        return work(), None
    except BaseException as error:
        return None, error
