"""Connections over a limit: they get one error response and are closed; no request is read."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from cartd.http.lingering_close import lingering_close

MAX_OPEN = 100
"""Maximum number of these connections, each an open file; further ones are aborted at once."""


class OverflowFactory:
    """Builds the protocols of connections over a limit."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._open: set[OverflowProtocol] = set()

    def build_protocol(self, answer: bytes) -> OverflowProtocol:
        return OverflowProtocol(answer, self._clock, self._open)


class OverflowProtocol(Protocol):
    """Sends ``answer``, ignores all input, and closes."""

    transport: Any

    def __init__(
        self, answer: bytes, clock: IReactorTime, open_protocols: set[OverflowProtocol]
    ) -> None:
        self._answer = answer
        self._clock = clock
        self._open = open_protocols
        self._abort_call: IDelayedCall | None = None

    def connectionMade(self) -> None:
        if len(self._open) >= MAX_OPEN:
            self.transport.abortConnection()
            return
        self._open.add(self)
        self.transport.write(self._answer)
        self._abort_call = lingering_close(self.transport, self._clock.callLater)

    def disconnect(self) -> None:
        """Abort the connection."""
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._open.discard(self)
        if self._abort_call is not None and self._abort_call.active():
            self._abort_call.cancel()
