"""Threads for work that would block the reactor: disk, hashing, large JSON.

Strategy of the batching: each system call releases the GIL and must acquire it again, so a dozen
threads that write small files spend more on waking each other than on the files.  Calls that arrive
while enough batches run are queued, and run together in the next batch.  The number of concurrent
batches follows the measured latency: two on a fast disk, more where each call waits long (a remote
disk).
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from threading import Thread
from time import perf_counter
from types import FrameType
from typing import Any, Final, ParamSpec, Protocol, TypeAlias, TypeVar

from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

STOP_WAIT = 5.0
"""Seconds for which the end of a process waits for running threads: a read or write takes less,
unless the disk hangs."""
_POOL = "cartd"
_DEDICATED = "cartd dedicated"

P = ParamSpec("P")
T = TypeVar("T")


class ThreadRunner(Protocol):
    """What adapters need; tests may run the work at once, in the calling thread."""

    def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Run ``work`` in a thread; fire with its result or its exception.

        Cancelling the Deferred drops the result but does not stop the work: a thread cannot be
        interrupted, so ``work`` must own, and close, whatever it opens.
        """


class Threads:
    """``ThreadRunner`` with a pool of its own, so that DNS look-ups never wait for a disk."""

    def __init__(self, reactor: Any, size: int) -> None:
        self._reactor = reactor
        self._pool = ThreadPool(0, size, _POOL)
        # Python waits at its end for a thread that is no daemon, so for a disk that hangs.
        factory: Any = self._thread
        self._pool.threadFactory = factory
        self._stop_by = 0.0

    def _thread(self, *args: Any, **kwargs: Any) -> Thread:
        return _PoolThread(lambda: self._stop_by - time.monotonic(), *args, **kwargs)

    def start(self) -> None:
        self._pool.start()

    def stop(self) -> str:
        """End the threads; block until their work is done, at most ``STOP_WAIT`` seconds.

        Work that is not done by then ends with the process.  Return what hangs, '' if nothing.
        """
        self._stop_by = time.monotonic() + STOP_WAIT
        threads = list(self._pool.threads)
        self._pool.stop()
        return (hanging() or "a thread") if any(thread.is_alive() for thread in threads) else ""

    @property
    def limit(self) -> int:
        """Maximum number of threads."""
        return int(self._pool.max)

    @property
    def busy(self) -> int:
        """Threads that work now."""
        return len(self._pool.working)

    @property
    def waiting(self) -> int:
        """Calls that wait for a thread."""
        return int(self._pool.q.qsize())

    def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        return deferToThreadPool(self._reactor, self._pool, work, *args, **kwargs)


class _PoolThread(Thread):
    """A thread that ``ThreadPool.stop`` joins only for the seconds that are left."""

    def __init__(self, left: Callable[[], float], *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, daemon=True, **kwargs)
        self._left = left

    def join(self, timeout: float | None = None) -> None:
        left = max(self._left(), 0.0)
        super().join(left if timeout is None else min(left, timeout))


def end_without_name_lookups(reactor: Any) -> None:
    """Have the end of the process not wait for the threads of ``reactor``, which look up names.

    A name server that does not respond would hold it for a minute or longer.
    """
    factory: Any = partial(_PoolThread, lambda: 0.0)
    reactor.getThreadPool().threadFactory = factory


def hanging() -> str:
    """Return what the threads are doing, for a message: ``2 in cartd.volume.verify._stat_file``."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    doing: Counter[str] = Counter()
    for ident, frame in sys._current_frames().items():
        name = names.get(ident, "")
        if not name.startswith((_DEDICATED, f"PoolThread-{_POOL}-")):
            continue
        inner: FrameType | None = frame
        while inner is not None:
            module = str(inner.f_globals.get("__name__"))
            if module.startswith("cartd.") and module != __name__:
                doing[f"{module}.{inner.f_code.co_qualname}"] += 1
                break
            inner = inner.f_back
    return ", ".join(f"{number} in {what}" for what, number in sorted(doing.items()))


class DedicatedThread:
    """``ThreadRunner`` with a new daemon thread for each work.

    Neither other work nor the end of the process waits for it, even if a disk hangs.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        result: Deferred[T] = Deferred()

        def call() -> None:
            try:
                value = work(*args, **kwargs)
            except BaseException:
                self._reactor.callFromThread(result.errback, Failure())
            else:
                self._reactor.callFromThread(result.callback, value)

        Thread(target=call, name=_DEDICATED, daemon=True).start()
        return result


class LimitedPool:
    """``ThreadRunner`` that uses at most ``limit`` threads at once; further work waits in order."""

    def __init__(self, threads: ThreadRunner, limit: int) -> None:
        self._threads = threads
        self._semaphore = DeferredSemaphore(limit)

    def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        return self._semaphore.run(lambda: self._threads.run(work, *args, **kwargs))


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
