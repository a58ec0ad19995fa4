"""Transfer of the body of one response from the socket into a consumer.

Strategy: the consumer gets a push producer that passes its pauses on to the socket, so that nothing
is buffered here.  A body ends in exactly one way (complete, lost, stalled, rejected by the
consumer, cancelled), and :meth:`_Body._end` is the only place that reports it.
"""

# Twisted leaves Failure and deliverBody without types.

from __future__ import annotations

from contextlib import suppress
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.interfaces import IConsumer, IDelayedCall, IPushProducer, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.iweb import IResponse
from zope.interface import implementer

from cartd.archive.responses import ArchiveError, transport_error

EXCERPT_LIMIT = 16 * 1024
"""Bytes of an error body that are read; a longer one costs its connection."""

RATE_WINDOW = 300.0
"""Seconds over which the minimum rate is averaged: networks have bad minutes."""


def receive(
    response: IResponse,
    sink: IConsumer,
    clock: IReactorTime,
    stall_timeout: float,
    min_rate: float = 0.0,
) -> Deferred[None]:
    """Write the body of ``response`` to ``sink``; fire when all of it is written.

    Fails with a retryable :class:`ArchiveError` if the body is cut short (by its own framing: the
    declared length or the last chunk), if no byte comes for ``stall_timeout`` seconds while the
    sink does not pause, or if fewer than ``min_rate`` bytes a second come on the average of some
    minutes; and with whatever ``sink.write`` raises.  A body that only the end of the connection
    delimits counts as complete: the sink must know its length.  Unless the body is complete, the
    connection is dropped at once, also by a cancel.
    """
    body = _Body(sink, clock, stall_timeout, min_rate)
    response.deliverBody(body)
    body.wait()
    return body.done


async def excerpt(response: IResponse, clock: IReactorTime, timeout: float) -> bytes:
    """Return the first KiB of an error body, or as much as came in ``timeout``.

    The connection is reusable if the body was short and complete, and is dropped otherwise.
    """
    sink = _Excerpt()
    done = receive(response, sink, clock, timeout)
    done.addTimeout(timeout, clock)
    with suppress(_ExcerptCompleteError, ArchiveError, TimeoutError):
        await done
    return b"".join(sink.pieces)


@implementer(IPushProducer)
class _Body(Protocol):
    transport: Any

    def __init__(
        self, sink: IConsumer, clock: IReactorTime, stall_timeout: float, min_rate: float
    ) -> None:
        self.done: Deferred[None] = Deferred(lambda _: self.stopProducing())
        self._sink = sink
        self._clock = clock
        self._stall_timeout = stall_timeout
        self._min_rate = min_rate
        self._window_start = 0.0
        """When the rate was last checked; ``_window_bytes`` have come since then."""
        self._window_bytes = 0
        self._stall_timer: IDelayedCall | None = None
        self._paused = False
        self._ended = False

    def connectionMade(self) -> None:
        self._sink.registerProducer(self, True)

    def wait(self) -> None:
        """Start the stall timeout for a body that did not come together with its head."""
        if not self._ended and not self._paused:
            self._start_stall_timer()

    def dataReceived(self, data: bytes) -> None:
        if self._ended:
            return
        if self._stall_timer is not None:
            self._stall_timer.reset(self._stall_timeout)
            if not self._is_fast_enough(len(data)):
                return
        try:
            self._sink.write(data)
        except Exception:
            self._abort(Failure())

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if reason.check(ResponseDone, PotentialDataLoss):
            self._end(None)
            return
        known = transport_error(reason.value or ResponseDone(), begun=True)
        self._end(reason if known is None else Failure(known))

    def pauseProducing(self) -> None:
        self._paused = True
        self._stop_stall_timer()
        if not self._ended:
            self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        self._paused = False
        if not self._ended:
            self._start_stall_timer()
            self.transport.resumeProducing()

    def stopProducing(self) -> None:
        """End the transfer: the sink needs no more, or the Deferred was cancelled."""
        self._abort(Failure(CancelledError()))

    def _start_stall_timer(self) -> None:
        if self._stall_timer is None:
            self._stall_timer = self._clock.callLater(self._stall_timeout, self._stalled)
            self._window_start, self._window_bytes = self._clock.seconds(), 0

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None and self._stall_timer.active():
            self._stall_timer.cancel()
        self._stall_timer = None

    def _is_fast_enough(self, came: int) -> bool:
        """Count bytes; no timer is needed, since the stall timer ends a silence."""
        self._window_bytes += came
        seconds = self._clock.seconds() - self._window_start
        if seconds < RATE_WINDOW:
            return True
        if self._window_bytes < self._min_rate * seconds:
            message = f"the archive sent only {self._window_bytes} bytes in {seconds:.0f} seconds"
            self._abort(Failure(ArchiveError(message, retryable=True)))
            return False
        self._window_start, self._window_bytes = self._window_start + seconds, 0
        return True

    def _stalled(self) -> None:
        message = f"the archive sent nothing for {self._stall_timeout:g} seconds"
        self._abort(Failure(ArchiveError(message, retryable=True)))

    def _abort(self, reason: Failure) -> None:
        if not self._ended:
            self.transport.abortConnection()
            self._end(reason)

    def _end(self, reason: Failure | None) -> None:
        if self._ended:
            return
        self._ended = True
        self._stop_stall_timer()
        self._sink.unregisterProducer()
        if reason is None:
            self.done.callback(None)
        else:
            self.done.errback(reason)


class _ExcerptCompleteError(Exception):
    """The excerpt of the body is complete."""


@implementer(IConsumer)
class _Excerpt:
    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self._left = EXCERPT_LIMIT

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        pass

    def unregisterProducer(self) -> None:
        pass

    def write(self, data: bytes) -> None:
        self.pieces.append(data[: self._left])
        self._left -= len(data)
        if self._left < 0:
            raise _ExcerptCompleteError
