"""Responses that are made piece by piece, no faster than the client reads them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from twisted.web.server import Request
from zope.interface import implementer

from cartd.http.routes import abort, response, set_header

log = Logger()


async def send_pieces(
    request: Request,
    content_type: str,
    pieces: AsyncGenerator[bytes, None],
    etag: str | None = None,
) -> bytes:
    """Send the pieces; return the body of a response of a single piece, for Klein to send.

    At most one piece is buffered beside what the connection buffers; a client that reads too little
    is subject to ``stall_timeout``, as with a download.  If it disconnects, Klein cancels the
    caller, and ``pieces`` is closed.  A failure before the second piece is raised; after that the
    response cannot be changed, so the connection is aborted for the client to see that it is
    incomplete.
    """
    async with aclosing(pieces):
        first = await anext(pieces, b"")
        second = None if request.method == b"HEAD" else await anext(pieces, None)
        response(request, 200, content_type, first)
        if etag is not None:
            set_header(request, "ETag", etag)
        if request.method == b"HEAD":
            request.responseHeaders.removeHeader(b"Content-Length")
            return b""
        if second is None:
            return first
        request.responseHeaders.removeHeader(b"Content-Length")
        try:
            await _send(request, first, second, pieces)
        except CancelledError:
            raise
        except Exception as error:
            log.warn(
                "{uri}: the response was aborted: {error}",
                uri=request.uri.decode("ascii", "backslashreplace"),
                error=error,
            )
            await abort(request)
    return b""


async def _send(
    request: Request, first: bytes, second: bytes, rest: AsyncGenerator[bytes, None]
) -> None:
    pace = _Pace()
    request.registerProducer(pace, True)
    try:
        for piece in (first, second):
            request.write(piece)
            await pace.wait()
        async for piece in rest:
            request.write(piece)
            await pace.wait()
    finally:
        if request.channel is not None:
            request.unregisterProducer()


@implementer(IPushProducer)
class _Pace:
    """Whether the connection accepts more."""

    def __init__(self) -> None:
        self._paused = False
        self._resumed: Deferred[None] | None = None

    async def wait(self) -> None:
        """Return when the connection accepts more."""
        while self._paused:
            self._resumed = Deferred()
            await self._resumed

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        resumed, self._resumed = self._resumed, None
        if resumed is not None and not resumed.called:
            resumed.callback(None)

    def stopProducing(self) -> None:
        """The client has disconnected: Klein cancels the request."""
