"""A pool of threads for work that would block the reactor: disk, hashing, large JSON."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from threading import Thread
from types import FrameType
from typing import Any, ParamSpec, Protocol, TypeVar

from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

STOP_WAIT = 5.0
"""Seconds for which the end of a process waits for what threads have begun: a read or write of a
disk that works takes less."""
_POOL = "cartd"
_DEDICATED = "cartd dedicated"

P = ParamSpec("P")
T = TypeVar("T")


class ThreadRunner(Protocol):
    """What the adapters ask for; a test may answer at once, in the calling thread."""

    def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Run ``work`` away from the reactor and give its result or its exception.

        Cancelling the Deferred gives up the result, never the work: a thread cannot be
        interrupted, so ``work`` must own, and close, whatever it opens.
        """


class Threads:
    """``ThreadRunner`` over a pool of its own, so that DNS look-ups never wait behind a disk."""

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
        """End the threads; blocks until what they have begun is done, for a while at most.

        What is not done by then ends with the process.  Gives what hangs, '' if nothing does.
        """
        self._stop_by = time.monotonic() + STOP_WAIT
        threads = list(self._pool.threads)
        self._pool.stop()
        return (hanging() or "a thread") if any(thread.is_alive() for thread in threads) else ""

    def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        return deferToThreadPool(self._reactor, self._pool, work, *args, **kwargs)


class _PoolThread(Thread):
    """A thread for which the stop of its pool waits only so long."""

    def __init__(self, left: Callable[[], float], *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, daemon=True, **kwargs)
        self._left = left

    def join(self, timeout: float | None = None) -> None:
        left = max(self._left(), 0.0)
        super().join(left if timeout is None else min(left, timeout))


def hanging() -> str:
    """What the threads for the disk are doing now, for a message: ``2 in volume.hashes.read``."""
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
    """``ThreadRunner`` with a new thread for each work, for whose end nobody need wait.

    Not even the process's end: a disk that hangs keeps no other work from being done.
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
    """At most ``limit`` of the threads at once; what comes beyond waits, in its order."""

    def __init__(self, threads: ThreadRunner, limit: int) -> None:
        self._threads = threads
        self._semaphore = DeferredSemaphore(limit)

    def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        return self._semaphore.run(lambda: self._threads.run(work, *args, **kwargs))
