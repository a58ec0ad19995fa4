"""A connection over a limit: told so in one answer, and closed without a request being read."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from cartd.server.lingering_close import end_when_read

MOST = 100
"""How many are told at the same time: each is an open file.  The others are closed at once."""


class TurnedAway:
    """Makes the connections of those who are turned away."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._told: set[Farewell] = set()

    def farewell(self, answer: bytes) -> Farewell:
        return Farewell(answer, self._clock, self._told)


class Farewell(Protocol):
    """Says ``answer``, reads past what comes, and ends."""

    transport: Any

    def __init__(self, answer: bytes, clock: IReactorTime, told: set[Farewell]) -> None:
        self._answer = answer
        self._clock = clock
        self._told = told
        self._linger: IDelayedCall | None = None

    def connectionMade(self) -> None:
        if len(self._told) >= MOST:
            self.transport.abortConnection()
            return
        self._told.add(self)
        self.transport.write(self._answer)
        self._linger = end_when_read(self.transport, self._clock.callLater)

    def end(self) -> None:
        """Break it; for those who end all connections."""
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._told.discard(self)
        if self._linger is not None and self._linger.active():
            self._linger.cancel()
