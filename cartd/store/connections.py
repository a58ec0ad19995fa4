"""alchimia: pools of its connections, persistent ones, and a watchdog for those without answers.

Strategy: a connection belongs to one thread, which runs its calls in order, for one caller at a
time.  A caller that gives up (an error, a cancelled coroutine) need not wait: the rollback or close
is queued behind the running call, and the connection, or its slot in the pool, is free again only
after that.  A call that the server never answers is aborted by shutting down the socket (see
:class:`Watchdog`).

This is the only module that imports alchimia or uses its internals.  alchimia's last release
derives a class that cartd does not use from ``DefaultEngineStrategy``, which SQLAlchemy 1.4
removed.  With an empty class of that name the import succeeds; the rest of alchimia needs only what
SQLAlchemy 2 still has.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from traceback import clear_frames
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Engine, Executable
from sqlalchemy.engine import strategies
from sqlalchemy.exc import DisconnectionError
from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.internet.defer import TimeoutError as ProbeTimeout
from twisted.internet.interfaces import IDelayedCall, IReactorFromThreads, IReactorTime
from twisted.python.failure import Failure

from cartd.errors import Stopping
from cartd.store.engine import server_of

if not hasattr(strategies, "DefaultEngineStrategy"):
    strategies.DefaultEngineStrategy = type(  # type: ignore[attr-defined]
        "DefaultEngineStrategy", (), {}
    )

from alchimia import wrap_engine

THREAD_NAME = "cartd store"
_STOPPING = "The service is stopping"

T = TypeVar("T")


def _all_rows(
    alchimia: Any, statement: Executable, parameters: Any, *, end: bool = False
) -> Deferred[Sequence[Any]]:
    """Return what ``execute`` and ``fetchall`` return, in one trip to the connection's thread.

    Two trips would need one more iteration of the reactor per query, which is slow under load.
    alchimia has no public name for this, and is no longer developed.  ``end`` also ends the
    transaction that the query has begun implicitly.
    """
    connection = alchimia._connection

    def rows() -> Sequence[Any]:
        found: Sequence[Any] = connection.execute(statement, parameters).fetchall()
        if end:
            connection.commit()
        return found

    return alchimia._defer_to_cxn(rows)  # type: ignore[no-any-return]


def _roll_back(alchimia: Any) -> Deferred[None]:
    """Roll back any open transaction, after the calls queued before.

    Fails if the connection was lost.  alchimia's own rollback would warn if the transaction was
    committed already.
    """
    connection = alchimia._connection

    def end() -> None:
        connection.rollback()
        if connection.invalidated:
            raise DisconnectionError("connection lost")

    return alchimia._defer_to_cxn(end)  # type: ignore[no-any-return]


def driver_connection(alchimia: Any) -> Any:
    """Return the driver's connection of an open, idle alchimia connection."""
    return alchimia._connection.connection.driver_connection


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


PROBE_AFTER = 10.0
"""Seconds after which a running query is slow."""
PROBE_GRACE = 5.0
"""Seconds that a probe may take beyond the connect timeout."""


class _Query(NamedTuple):
    started: float
    abort: Callable[[], None]
    server: Hashable


class Watchdog:
    """Aborts queries that a hanging database does not answer while the connection looks intact.

    A query on a stopped server, or on a network that drops packets, looks the same as a slow one:
    deleting a cart of a million files is one statement.  So when a query is slow, a probe opens a
    new connection to the same server.  While probes are answered, even by an error, the query
    continues; otherwise its connection is aborted, and the driver fails as if the server had closed
    it.
    """

    def __init__(
        self,
        clock: IReactorTime,
        probe: Callable[[Any], Awaitable[object]],
        connect_timeout: float,
    ) -> None:
        """``probe`` connects to a server, and raises ``TimeoutError`` if there is no answer.

        A probe that takes longer than ``connect_timeout`` counts as not answered.
        """
        self._clock = clock
        self._probe = probe
        self._probe_timeout = connect_timeout + PROBE_GRACE
        self._running: dict[object, _Query] = {}
        self._next_check: IDelayedCall | None = None
        self._probes: set[Deferred[Any]] = set()

    def watch(
        self, answer: Deferred[T], abort: Callable[[], None], server: Hashable
    ) -> Deferred[T]:
        """Watch a query until ``answer`` fires; ``abort`` may be called several times before."""
        query = object()
        self._running[query] = _Query(self._clock.seconds(), abort, server)

        def finished(outcome: T) -> T:
            del self._running[query]
            return outcome

        answer.addBoth(finished)
        self._check_after(PROBE_AFTER)
        return answer

    def stop(self) -> None:
        """Stop watching; no query may be running."""
        if self._next_check is not None:
            self._next_check.cancel()
            self._next_check = None
        for probing in list(self._probes):
            probing.cancel()

    def _check_after(self, seconds: float) -> None:
        if self._next_check is None and not self._probes and self._running:
            self._next_check = self._clock.callLater(seconds, self._check)

    def _check(self) -> None:
        self._next_check = None
        started_before = self._clock.seconds() - PROBE_AFTER
        servers = {query.server for query in self._slow(started_before)}
        if not servers:
            # A query is found at most this long after it became slow.
            self._check_after(PROBE_AFTER / 2)
            return
        probes = {server: Deferred.fromCoroutine(self._probe_server(server)) for server in servers}
        self._probes.update(probes.values())
        for server, probing in probes.items():
            probing.addTimeout(self._probe_timeout, self._clock)
            probing.addBoth(self._probed, probing, server, started_before)

    async def _probe_server(self, server: Hashable) -> None:
        await self._probe(server)

    def _probed(
        self, outcome: object, probing: Deferred[Any], server: Hashable, started_before: float
    ) -> None:
        self._probes.discard(probing)
        if isinstance(outcome, Failure) and outcome.check(TimeoutError, ProbeTimeout):
            for query in self._slow(started_before):
                if query.server == server:
                    query.abort()
        self._check_after(PROBE_AFTER)

    def _slow(self, started_before: float) -> list[_Query]:
        return [query for query in self._running.values() if query.started <= started_before]


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
        return self._watched(_all_rows(self._alchimia, statement, parameters))

    def autocommit_rows(self, statement: Any, parameters: Any = None) -> Deferred[Sequence[Any]]:
        """Fires with all rows of a query outside a transaction; PostgreSQL runs it in its own."""
        end = self._socket is not None
        return self._watched(_all_rows(self._alchimia, statement, parameters, end=end))

    def begin(self) -> Deferred[Any]:
        """Fires with alchimia's transaction, for :meth:`commit` and :meth:`rollback`."""
        return self._watched(self._alchimia.begin())

    def commit(self, transaction: Any) -> Deferred[Any]:
        return self._watched(transaction.commit())

    def rollback(self) -> Deferred[None]:
        """Roll back after the running call; fails if the connection was lost."""
        return self._watched(_roll_back(self._alchimia))

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

        Raises ``Stopping`` once the pool is closed, and whatever connecting raises.  All waiting
        callers get that error, too: each of them would wait as long for the same result.
        """
        if self._closed is not None:
            raise Stopping(_STOPPING)
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
            self._waiting.popleft().errback(Stopping(_STOPPING))
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
