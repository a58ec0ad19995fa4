"""The response of an event stream (HTML standard, "Server-sent events")."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IPushProducer
from twisted.web.server import Request
from zope.interface import implementer

from cartd.status.events import RETRY, Subscription


@implementer(IPushProducer)
class EventProducer:
    """Holds back the events of a client that does not receive them.

    Its connection has timeouts of its own (:class:`cartd.http.connection.State`): between two
    events, nothing is sent for long.
    """

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription

    def pauseProducing(self) -> None:
        self._subscription.pause()

    def resumeProducing(self) -> None:
        self._subscription.resume()

    def stopProducing(self) -> None:
        """Do nothing: the request is cancelled when its connection is lost."""


def set_stream_headers(request: Request) -> None:
    """Set status and headers of an event stream, which no cache may store and no proxy buffer."""
    request.setResponseCode(200)
    request.setHeader(b"Content-Type", b"text/event-stream")
    request.setHeader(b"Cache-Control", b"no-store")
    request.setHeader(b"X-Accel-Buffering", b"no")


async def send_events(request: Request, subscription: Subscription) -> None:
    """Send the events until the last one; if cancelled, the client has disconnected.

    If the events are closed before the last one, as in a stop, the connection is closed as well,
    and aborted if its client has not received all: ``EventSource`` reconnects unless it gets an
    error as the response, which it would over the old connection.
    """
    set_stream_headers(request)
    request.registerProducer(EventProducer(subscription), True)
    try:
        request.write(RETRY)
        while (data := await subscription.next()) is not None:
            request.write(data)
        channel: Any = request.channel
        if subscription.closed and channel is not None:
            channel.persistent = False
            if subscription.paused:
                lost = request.notifyFinish()
                channel.disconnect()
                with suppress(Exception, CancelledError):
                    await lost
    finally:
        if request.channel is not None:
            request.unregisterProducer()
