"""Pool of idle connections.

Strategy: the connection used last is reused first, so that no more are kept open than are needed
and the others expire; a single timer closes those.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from cartd.archive.http_connection import Connection
from cartd.archive.request import Origin


class Pool:
    """Keeps up to ``max_idle`` idle connections to each origin, each for ``idle_seconds``.

    ``on_response`` is called after each response with whether its connection is reusable.
    """

    def __init__(
        self,
        clock: IReactorTime,
        *,
        max_idle: int,
        idle_seconds: float,
        on_response: Callable[[bool], object] = lambda reusable: None,
    ) -> None:
        self._clock = clock
        self._max_idle = max_idle
        self._idle_seconds = idle_seconds
        self._on_response = on_response
        self._idle: dict[Origin, deque[Connection]] = {}
        self._ending: set[Connection] = set()
        self._idle_timer: IDelayedCall | None = None
        self._closed = False
        self._waiting: list[Deferred[None]] = []

    def take(self, origin: Origin) -> Connection | None:
        """Return an idle connection, if there is one."""
        idle = self._idle.get(origin)
        return idle.pop() if idle else None

    def put(self, connection: Connection) -> None:
        """The connection is free and reusable."""
        self._on_response(True)
        if self._closed:
            connection.close()
            return
        idle = self._idle.setdefault(connection.origin, deque())
        idle.append(connection)
        connection.idle_since = self._clock.seconds()
        if len(idle) > self._max_idle:
            idle[0].close()
        if self._idle_timer is None:
            self._idle_timer = self._clock.callLater(self._idle_seconds, self._close_old)

    def not_reusable(self, connection: Connection) -> None:
        """The server closes the connection after its response."""
        self._on_response(False)

    def ending(self, connection: Connection) -> None:
        """The connection is not reusable, and about to be lost."""
        self._ending.add(connection)
        self._remove(connection)

    def lost(self, connection: Connection) -> None:
        self._remove(connection)
        self._ending.discard(connection)
        self._notify_if_closed()

    def closeCachedConnections(self) -> Deferred[None]:
        """Close all idle connections and keep none from now on; fire when all are closed.

        Connections that were being closed already, as after a cancelled request, are included.
        """
        self._closed = True
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        for idle in self._idle.values():
            for connection in tuple(idle):
                connection.abort()
        for connection in tuple(self._ending):
            connection.abort()
        closed: Deferred[None] = Deferred()
        self._waiting.append(closed)
        self._notify_if_closed()
        return closed

    def _close_old(self) -> None:
        self._idle_timer = None
        now = self._clock.seconds()
        for idle in self._idle.values():
            while idle and idle[0].idle_since + self._idle_seconds <= now:
                idle[0].close()
        waiting = [idle[0].idle_since for idle in self._idle.values() if idle]
        if waiting:
            wait = min(waiting) + self._idle_seconds - now
            self._idle_timer = self._clock.callLater(wait, self._close_old)

    def _remove(self, connection: Connection) -> None:
        idle = self._idle.get(connection.origin)
        if idle and connection in idle:
            idle.remove(connection)

    def _notify_if_closed(self) -> None:
        if not self._ending:
            waiting, self._waiting = self._waiting, []
            for closed in waiting:
                closed.callback(None)
