"""One HTTP connection: one request at a time, and its response parsed as it comes.

Strategy: the end of every response is known to the byte, so a connection is reused only if exactly
that much came; bytes without a request close it.  A body of known length passes through unparsed:
llhttp gets only heads and chunks.  The framing of a body takes bytes as they come from the
connection and returns those of the body, in one of the three ways of RFC 9112, section 6.3, in
which a body may end.

The body of a request is sent while the response may come.  An early response that is no success
ends it (section 9.5).  A connection on which a body was cut short is not reused.
"""

from __future__ import annotations

from typing import Any, Final
from typing import Protocol as TypingProtocol

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import ITCPTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import RequestGenerationFailed, ResponseFailed, ResponseNeverReceived
from twisted.web.http import PotentialDataLoss

from cartd.archive.http_messages import (
    DONE,
    END,
    MAX_BYTES,
    START,
    BadResponse,
    Body,
    Framing,
    Head,
    Origin,
    Request,
    Response,
    Sized,
    UntilClosed,
    Upload,
    framing,
)

LARGE_BODY: Final = 1 << 20
"""Bytes of a body from which on it is read in large pieces, as is one of unknown length."""
LARGE_READ: Final = 1 << 18
"""Bytes of such a piece: fewer iterations of the reactor; more would exceed the CPU's cache."""
DEFAULT_READ: Final = 1 << 16
"""Bytes that Twisted reads at once by default."""


class Exchange(TypingProtocol):
    """A request that waits for the head of its response."""

    request: Request

    def respond(self, response: Response) -> None: ...

    def lost(self, reason: Failure, *, silent: bool) -> None:
        """There will be no response; ``silent``: not a byte of it came."""


class ConnectionObserver(TypingProtocol):
    """Is notified of the state of a connection; the pool implements it."""

    def put(self, connection: Connection) -> None:
        """It is free and reusable."""

    def ending(self, connection: Connection) -> None:
        """It has no request, and is about to be lost, or sends the rest of a body."""

    def not_reusable(self, connection: Connection) -> None:
        """The server closes it after its response."""

    def lost(self, connection: Connection) -> None: ...


class Connection(Protocol):
    """A connection to ``origin``; only the caller that took it from the pool may :meth:`send`."""

    transport: Any

    def __init__(self, origin: Origin, observer: ConnectionObserver) -> None:
        self.origin = origin
        self.idle_since = 0.0
        self._observer = observer
        self._exchange: Exchange | None = None
        self._body: Body | None = None
        self._upload: Upload | None = None
        """The body of the request, until all of it has been sent."""
        self._unread = b""
        self._interim = 0
        self._silent = True
        self._persistent = True
        self._framing: Framing = Sized(0)
        self._large_reads = False
        self._paused = False
        self._ending = False
        self._lost = False

    def send(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._silent = True
        self.transport.write(exchange.request.head)
        if exchange.request.body is not None:
            self._upload = Upload(exchange.request.body, self.transport, self._upload_ended)
            self._upload.start()

    def close(self) -> None:
        """Close the idle connection in good order."""
        self._ending = True
        self._observer.ending(self)
        self.transport.loseConnection()

    def abort(self) -> None:
        """Drop the connection now; over TLS, too, without waiting for the peer's close_notify."""
        if not self._lost:
            self._ending = True
            self._observer.ending(self)
            self._stop_upload()
            self.transport.abortConnection()

    # For the body

    def pause(self) -> None:
        if not self._paused and not self._ending:
            self._paused = True
            self.transport.pauseProducing()

    def resume(self) -> None:
        if self._paused and not self._ending:
            self._paused = False
            self.transport.resumeProducing()

    def body_ended(self) -> None:
        self._body = None
        self._release()

    # For the transport

    def connectionMade(self) -> None:
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)

    def dataReceived(self, data: bytes) -> None:
        if self._body is not None:
            self._read_body(self._body, data)
        elif self._exchange is not None:
            try:
                self._read_head(self._exchange, data)
            except BadResponse:
                self._reject_response()
        else:
            # No request is pending: a 408 before a close, or bytes of no response (section 9.2).
            self.abort()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._ending = self._lost = True
        self._observer.lost(self)
        self._stop_upload()
        if self._body is not None and self._ends_well(reason):
            self._body.finish(Failure(PotentialDataLoss()))
        else:
            kind = ResponseNeverReceived if self._silent else ResponseFailed
            self._fail_waiting(Failure(kind([reason])))

    def _read_head(self, exchange: Exchange, data: bytes) -> None:
        self._silent = False
        while True:
            searched = max(0, len(self._unread) - len(END) + 1)
            data = self._unread + data
            found = data.find(END, searched)
            end = len(data) if found < 0 else found + len(END)
            if self._interim + end > MAX_BYTES:
                raise BadResponse(f"its head has more than {MAX_BYTES} bytes")
            if found < 0:
                if not START.startswith(data[: len(START)]):
                    raise BadResponse("it does not begin with HTTP/1.")
                self._unread = data
                return
            self._unread = b""
            head = Head(data[:end], to_head=exchange.request.method == b"HEAD")
            data = data[end:]
            if head.code >= 200:
                self._on_head(exchange, head, data)
                return
            # An interim response, which is ignored (RFC 9110, section 15.2).
            self._interim += end
            if not data:
                return

    def _on_head(self, exchange: Exchange, head: Head, rest: bytes) -> None:
        self._exchange = None
        self._interim = 0
        self._persistent = head.persistent
        self._framing = framing(head)
        if head.code >= 300 and self._upload is not None:
            self._persistent = False
            self._stop_upload()
        self._body = body = Body(self)
        response = Response(head, exchange.request, body)
        self._read_body(body, rest)
        if head.length == 0:
            # Free for the next request of the caller, which may be sent by the callback.
            body.release_connection()
        elif not self._framing.complete and (head.length is None or head.length >= LARGE_BODY):
            self._read_up_to(LARGE_READ)
        exchange.respond(response)
        body.open()
        if not body.wanted:
            if self._framing.complete:
                body.release_connection()
            else:
                self.pause()

    def _read_body(self, body: Body, data: bytes) -> None:
        try:
            pieces, extra = self._framing.feed(data)
        except BadResponse:
            self._reject_response()
            return
        if extra:
            self._persistent = False
        if pieces:
            body.receive(pieces)
        if self._framing.complete and not self._ending:
            body.finish(DONE)

    def _release(self) -> None:
        if self._ending:
            return
        if not self._persistent:
            self._observer.not_reusable(self)
            if self._upload is None:
                self.close()
            else:
                self.abort()
            return
        if self._large_reads:
            self._read_up_to(DEFAULT_READ)
        self.resume()
        if self._upload is None:
            self._observer.put(self)
        else:
            self._observer.ending(self)

    def _upload_ended(self, reason: Failure | None) -> None:
        """The body of the request has been sent, or failed for this reason."""
        self._upload = None
        if reason is not None:
            self.abort()
            self._fail_waiting(Failure(RequestGenerationFailed([reason])))
        elif self._exchange is None and self._body is None:
            self._release()

    def _stop_upload(self) -> None:
        """Send no more of the body; the connection still has to be aborted."""
        if self._upload is not None:
            self._upload.stopProducing()

    def _read_up_to(self, size: int) -> None:
        self._large_reads = size == LARGE_READ
        # Over TLS the transport below reads.
        reader = getattr(self.transport, "transport", self.transport)
        reader.bufferSize = size

    def _ends_well(self, reason: Failure) -> bool:
        """Whether the connection was closed in good order, which ends the body."""
        return isinstance(self._framing, UntilClosed) and reason.check(ConnectionDone) is not None

    def _reject_response(self) -> None:
        """Fail the request with the exception being handled, and drop the connection."""
        reason = Failure(ResponseFailed([Failure()]))
        self.abort()
        self._fail_waiting(reason)

    def _fail_waiting(self, reason: Failure) -> None:
        """Fail the request or the body that waits."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.lost(reason, silent=self._silent)
        elif self._body is not None:
            self._body.fail(reason)
