"""A pool of persistent alchimia connections, each used by one caller at a time.

Strategy: a connection belongs to one thread, which runs its calls in order.  A caller that gives up
(an error, a cancelled coroutine) need not wait: the rollback or close is queued behind the running
call, and the connection, or its slot in the pool, is free again only after that.  A call that the
server never answers is aborted by shutting down the socket (see ``watchdog``).
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from traceback import clear_frames
from typing import Any, TypeVar

from sqlalchemy import Engine
from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.internet.interfaces import IReactorFromThreads
from twisted.python.failure import Failure

from cartd.errors import Unavailable
from cartd.store.alchimia_adapter import all_rows, driver_connection, roll_back, wrap_engine
from cartd.store.engine import server_of
from cartd.store.watchdog import Watchdog

THREAD_NAME = "cartd store"
_STOPPING = "The service is stopping"

T = TypeVar("T")


class WorkerThread:
    """The worker that alchimia requires: one thread that runs its jobs in order."""

    def __init__(self, reactor: IReactorFromThreads) -> None:
        self._reactor = reactor
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name=THREAD_NAME, daemon=True)
        self.ended: Deferred[None] = Deferred()
        self._thread.start()

    def do(self, work: Callable[[], None]) -> None:
        self._queue.put(work)

    def quit(self) -> None:
        """End the thread after the jobs queued before."""
        self._queue.put(None)

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            work()
            del work  # it may hold rows
        self._reactor.callFromThread(self._join)

    def _join(self) -> None:
        self._thread.join()
        self.ended.callback(None)


class Connection:
    """An alchimia connection and its thread."""

    def __init__(self, alchimia: Any, worker: WorkerThread, watchdog: Watchdog) -> None:
        self._alchimia = alchimia
        self._worker = worker
        self._watchdog = watchdog
        driver = driver_connection(alchimia)
        self._socket = _socket_of(driver)
        self._server = None if self._socket is None else server_of(driver)

    def execute(self, statement: Any, parameters: Any = None) -> Deferred[Any]:
        """Fires with alchimia's result of a statement without rows: ``rowcount`` and such."""
        return self._watched(self._alchimia.execute(statement, parameters))

    def rows(self, statement: Any, parameters: Any = None) -> Deferred[Sequence[Any]]:
        """Fires with all rows of a query within a transaction."""
        return self._watched(all_rows(self._alchimia, statement, parameters))

    def autocommit_rows(self, statement: Any, parameters: Any = None) -> Deferred[Sequence[Any]]:
        """Fires with all rows of a query outside a transaction; PostgreSQL runs it in its own."""
        end = self._socket is not None
        return self._watched(all_rows(self._alchimia, statement, parameters, end=end))

    def begin(self) -> Deferred[Any]:
        """Fires with alchimia's transaction, for :meth:`commit` and :meth:`rollback`."""
        return self._watched(self._alchimia.begin())

    def commit(self, transaction: Any) -> Deferred[Any]:
        return self._watched(transaction.commit())

    def rollback(self) -> Deferred[None]:
        """Roll back after the running call; fails if the connection was lost."""
        return self._watched(roll_back(self._alchimia))

    def close(self) -> Deferred[None]:
        """Roll back, close and end the thread; fires when the thread has ended."""
        closing: Deferred[None] = self._watched(self._alchimia.close())
        # The driver may fail to close a lost connection; it is closed either way.
        closing.addErrback(lambda _: None)
        return closing.addCallback(self._closed)

    def _closed(self, _: object) -> Deferred[None]:
        if self._socket is not None:
            self._socket.close()
        return self._worker.ended

    def _watched(self, answer: Deferred[T]) -> Deferred[T]:
        if self._socket is None:
            return answer
        return self._watchdog.watch(answer, self._abort, self._server)

    def _abort(self) -> None:
        assert self._socket is not None
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


def _socket_of(driver: Any) -> socket.socket | None:
    """Return a duplicate of the driver's socket; None for a database file.

    The driver may close its own socket at any time, in its thread, and the descriptor number may
    then be reused.
    """
    number = getattr(driver, "fileno", None)
    return None if number is None else socket.socket(fileno=os.dup(number()))


def _clear_frames(error: BaseException | None) -> None:
    """Clear the frames of ``error`` and of its causes.

    psycopg leaves a socket in them, in a reference cycle that would keep the socket open.
    """
    while error is not None:
        clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def detach_on_cancel(
    job: Deferred[T], on_late_result: Callable[[T | Failure], object]
) -> Deferred[T]:
    """Return the outcome of ``job``; if the caller cancels, it goes to ``on_late_result``."""
    waiting: Deferred[T] = Deferred()

    def ended(outcome: T | Failure) -> None:
        if waiting.called:
            on_late_result(outcome)
        elif isinstance(outcome, Failure):
            waiting.errback(outcome)
        else:
            waiting.callback(outcome)

    job.addBoth(ended)
    return waiting


class Pool:
    """At most ``size`` connections of one engine, opened when first needed."""

    def __init__(
        self, reactor: IReactorFromThreads, engine: Engine, size: int, watchdog: Watchdog
    ) -> None:
        self._reactor = reactor
        self._watchdog = watchdog
        self._engine = engine
        self._size = size
        self._free = size
        """Slots without a caller; the connections of some are idle, others are not open yet."""
        self._waiting: deque[Deferred[None]] = deque()
        self._idle: list[Connection] = []
        self._closed: Deferred[None] | None = None
        """Fires when the pool is closed and all connections have been released."""

    async def acquire(self) -> Connection:
        """Return a connection for the caller alone, who must release or discard it.

        Raises ``Unavailable`` once the pool is closed, and whatever connecting raises.  All waiting
        callers get that error, too: each of them would wait as long for the same result.
        """
        if self._closed is not None:
            raise Unavailable(_STOPPING)
        if self._free:
            self._free -= 1
        else:
            slot: Deferred[None] = Deferred(self._waiting.remove)
            self._waiting.append(slot)
            await slot
        if self._idle:
            return self._idle.pop()
        return await self._open()

    def release(self, connection: Connection) -> None:
        self._idle.append(connection)
        self._release_slot()

    def discard(self, connection: Connection) -> None:
        """Close the connection, even during a query; its slot is free when its thread has ended."""
        connection.close().addBoth(lambda _: self._release_slot())

    def close_idle(self) -> None:
        """Close the idle connections: the database became unavailable, and they are lost."""
        while self._idle:
            self._free -= 1
            self.discard(self._idle.pop())

    async def close(self) -> None:
        """Wait for running calls, then close all; fires when all threads have ended."""
        self._closed = closed = succeed(None) if self._free == self._size else Deferred()
        while self._waiting:  # a callback may cancel the next
            self._waiting.popleft().errback(Unavailable(_STOPPING))
        await closed
        idle, self._idle = self._idle, []
        await gatherResults([connection.close() for connection in idle])

    def _release_slot(self) -> None:
        if self._waiting:
            self._waiting.popleft().callback(None)
            return
        self._free += 1
        if self._free == self._size and self._closed is not None:
            self._closed.callback(None)

    def _open(self) -> Deferred[Connection]:
        """Open a connection; if the caller cancels, the next caller gets it."""
        worker = WorkerThread(self._reactor)
        engine = wrap_engine(self._reactor, self._engine, create_worker=lambda: worker)
        waiting: Deferred[Connection] = Deferred()

        def ready(alchimia: Any) -> None:
            connection = Connection(alchimia, worker, self._watchdog)
            if waiting.called:
                self.release(connection)
            else:
                waiting.callback(connection)

        def failed(reason: Failure) -> None:
            worker.ended.addCallback(lambda _: self._release_slot())
            worker.quit()
            _clear_frames(reason.value)
            # A callback may cancel another waiter, or acquire again.
            waiters, self._waiting = self._waiting, deque()
            if not waiting.called:
                waiting.errback(reason)
            while waiters:
                waiters.popleft().errback(reason)

        engine.connect().addCallbacks(ready, failed)
        return waiting
