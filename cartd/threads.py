"""A pool of threads for work that would block the reactor: disk, hashing, large JSON."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread
from typing import Any, ParamSpec, Protocol, TypeVar

from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

P = ParamSpec("P")
T = TypeVar("T")


class RunsInThread(Protocol):
    """What the adapters ask for; a test may answer at once, in the calling thread."""

    def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Run ``work`` away from the reactor and give its result or its exception.

        Cancelling the Deferred gives up the result, never the work: a thread cannot be
        interrupted, so ``work`` must own, and close, whatever it opens.
        """


class Threads:
    """``RunsInThread`` over a pool of its own, so that DNS look-ups never wait behind a disk."""

    def __init__(self, reactor: Any, size: int) -> None:
        self._reactor = reactor
        self._pool = ThreadPool(0, size, "cartd")

    def start(self) -> None:
        self._pool.start()

    def stop(self) -> None:
        """End the threads; blocks until the work that they have begun is done."""
        self._pool.stop()

    def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        return deferToThreadPool(self._reactor, self._pool, work, *args, **kwargs)


class Apart:
    """``RunsInThread`` with a new thread for each work, for whose end nobody need wait.

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

        Thread(target=call, name="cartd apart", daemon=True).start()
        return result


class Few:
    """At most ``most`` of the threads at once; what comes beyond waits, in its order."""

    def __init__(self, threads: RunsInThread, most: int) -> None:
        self._threads = threads
        self._places = DeferredSemaphore(most)

    def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        return self._places.run(lambda: self._threads.run(work, *args, **kwargs))
