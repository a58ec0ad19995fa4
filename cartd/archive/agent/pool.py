"""The connections that wait for another request.

Strategy: the one used last is used next, so that no more are kept busy than are needed and the rest
grow old together; one timer, not one for each, closes those.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from cartd.archive.agent.connection import Connection
from cartd.archive.agent.request import Origin


class Pool:
    """Keeps up to ``kept`` idle connections to each origin, each for ``idle_seconds``.

    ``answered`` is told after each answer whether its server would have the connection used again.
    """

    def __init__(
        self,
        clock: IReactorTime,
        *,
        kept: int,
        idle_seconds: float,
        answered: Callable[[bool], object] = lambda welcome: None,
    ) -> None:
        self._clock = clock
        self._kept = kept
        self._idle_seconds = idle_seconds
        self._answered = answered
        self._idle: dict[Origin, deque[Connection]] = {}
        self._ending: set[Connection] = set()
        self._sweep: IDelayedCall | None = None
        self._closed = False
        self._waiting: list[Deferred[None]] = []

    def take(self, origin: Origin) -> Connection | None:
        """A connection on which nothing is under way, if there is one."""
        idle = self._idle.get(origin)
        return idle.pop() if idle else None

    def put(self, connection: Connection) -> None:
        """The connection can be used again."""
        self._answered(True)
        if self._closed:
            connection.close()
            return
        idle = self._idle.setdefault(connection.origin, deque())
        idle.append(connection)
        connection.idle_since = self._clock.seconds()
        if len(idle) > self._kept:
            idle[0].close()
        if self._sweep is None:
            self._sweep = self._clock.callLater(self._idle_seconds, self._close_old)

    def unwanted(self, connection: Connection) -> None:
        """The server ends the connection after its answer."""
        self._answered(False)

    def ending(self, connection: Connection) -> None:
        """The connection can not be used again, and will be lost soon."""
        self._ending.add(connection)
        self._forget(connection)

    def lost(self, connection: Connection) -> None:
        self._forget(connection)
        self._ending.discard(connection)
        self._tell_if_gone()

    def closeCachedConnections(self) -> Deferred[None]:
        """Close what is idle, and keep nothing from now on; fires when all of that is gone.

        What was being closed already, as after a cancelled request, is waited for too.
        """
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for idle in self._idle.values():
            for connection in tuple(idle):
                connection.abort()
        for connection in tuple(self._ending):
            connection.abort()
        closed: Deferred[None] = Deferred()
        self._waiting.append(closed)
        self._tell_if_gone()
        return closed

    def _close_old(self) -> None:
        self._sweep = None
        now = self._clock.seconds()
        for idle in self._idle.values():
            while idle and idle[0].idle_since + self._idle_seconds <= now:
                idle[0].close()
        waiting = [idle[0].idle_since for idle in self._idle.values() if idle]
        if waiting:
            wait = min(waiting) + self._idle_seconds - now
            self._sweep = self._clock.callLater(wait, self._close_old)

    def _forget(self, connection: Connection) -> None:
        idle = self._idle.get(connection.origin)
        if idle and connection in idle:
            idle.remove(connection)

    def _tell_if_gone(self) -> None:
        if not self._ending:
            waiting, self._waiting = self._waiting, []
            for closed in waiting:
                closed.callback(None)
