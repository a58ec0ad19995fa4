"""A connection: heads and bodies that come in time and in size, and answers that are taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel

from cartd.auth import Guard
from cartd.server import cross_origin
from cartd.server.error_responses import Headers, refusal
from cartd.server.limits import Limits, named
from cartd.server.lingering_close import end_when_read
from cartd.server.request_body import BodySpace
from cartd.server.request_head import Rules
from cartd.server.timeouts import ClientTimers, Late

CLOSING = 15.0
"""Seconds that a connection may take to close: what was answered is still on its way."""


class LimitedChannel(HTTPChannel):
    """Answers in JSON whatever it cannot read or does not wait for, and gives up stuck clients.

    The site sets ``site``, ``limits``, ``rules`` and ``left``, which is called when the connection
    is lost, and ``bodies`` if its requests are of :class:`cartd.server.request.LimitedRequest`.
    """

    transport: Any
    site: Any
    limits: Limits
    rules: Rules
    bodies: BodySpace
    guard: Guard | None = None
    """Who finds out who asks; none where that does not matter."""
    name_of: Callable[[str], str | None] = staticmethod(named)
    """The setting of a limit; none where limits are no settings."""
    left: Any
    _networkProducer: Any
    _timers: ClientTimers
    _first_request = True
    _refused = False
    _sending = False
    _lost = False
    _ending: IDelayedCall | None = None
    _host: Any = None
    _secure: bool | None = None

    def connectionMade(self) -> None:
        self.MAX_LENGTH = self.totalHeadersSize = self.limits.max_header_size
        self.maxHeaders = self.limits.max_headers
        self._timers = ClientTimers(self.limits, self.site.reactor, self._give_up)
        self._timers.connected()
        super().connectionMade()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._lost = True
        self._timers.stop()
        self._end_by(None)
        super().connectionLost(reason)
        self.left()

    # What comes in

    def dataReceived(self, data: bytes) -> None:
        if self._refused:
            return
        self._timers.received()
        super().dataReceived(data)
        if self._buffer:
            self._head_goes_on()

    def lineReceived(self, line: bytes) -> bool | None:
        """True if nothing more is to be read."""
        if self._refused:
            return True
        if line:
            self._head_goes_on()
        if self._receivedHeaderSize + len(line) > self.totalHeadersSize:
            self.lineLengthExceeded(line)
        else:
            super().lineReceived(line)
        return self._refused

    def headerReceived(self, line: bytes) -> bool:
        if self._refused:
            return False
        if self._receivedHeaderCount >= self.maxHeaders:
            self._refuse_head("headers", "max_headers", self.maxHeaders)
            return False
        try:
            return bool(super().headerReceived(line))
        except ValueError:
            # Python refuses to read a Content-Length of thousands of digits.
            self._respondToBadRequestAndDisconnect()
            return False

    def lineLengthExceeded(self, line: bytes) -> None:
        self._refuse_head("bytes", "max_header_size", self.totalHeadersSize)

    def _maybeChooseTransferDecoder(self, header: bytes, data: bytes) -> bool:
        # Twisted answers 400 to a coding that it does not know, and takes "identity" for none
        # (RFC 9112, section 7).  The head is refused when it is whole.
        if header == b"Transfer-Encoding" and data.lower() != b"chunked":
            return True
        return bool(super()._maybeChooseTransferDecoder(header, data))

    def first_line(self) -> tuple[bytes, bytes, bytes]:
        """Method, target and version of the request that is being read."""
        return self._command, self._path, self._version

    def request_line(self) -> bytes:
        """The same as it has come; empty before that."""
        # Twisted keeps them from a request's first line to its end.
        return b" ".join(self.first_line()) if hasattr(self, "_version") else b""

    def allHeadersReceived(self) -> None:
        self._first_request = False
        self._timers.body_begins()
        super().allHeadersReceived()

    def allContentReceived(self) -> None:
        self._timers.request_is_whole()
        super().allContentReceived()

    def requestDone(self, request: Any) -> None:
        self._timers.answered()
        super().requestDone(request)

    def wait_for_disk(self, waits: bool) -> None:
        """Read no more of a body for the moment, or go on; the client is not late meanwhile."""
        self._timers.disk_waits(waits)
        if waits:
            self.transport.pauseProducing()
        elif not (self._refused or self._lost):
            self.transport.resumeProducing()

    def _head_goes_on(self) -> None:
        if self._timers.between_requests:
            self._timers.head_begins(first=self._first_request)

    # What is refused

    def refuse(
        self,
        code: int,
        message: str,
        limit: str | None = None,
        headers: Headers = (),
        *,
        offence: bool = True,
    ) -> None:
        """Answer at once what is not read to its end, read past the rest, and end.

        Only once: what comes after it is no answer to anything.
        """
        if not self._refused:
            self._refused = True
            self._timers.stop()
            answer = self._refusal(code, message, limit, headers, offence=offence)
            self.transport.write(answer)
            self.site.log_refusal(self, code, len(answer.partition(b"\r\n\r\n")[2]))
            self._networkProducer.unregisterProducer()
            self._end_by(end_when_read(self.transport, self.callLater))

    def _refusal(
        self,
        code: int,
        message: str,
        limit: str | None,
        headers: Headers = (),
        *,
        offence: bool = True,
    ) -> bytes:
        if self.requests:
            sent = self.requests[-1].requestHeaders
            headers = [*headers, *cross_origin.allowed(sent, self.rules.origins)]
        # Twisted keeps method and target from a request's first line to its end.
        return refusal(
            self.getPeer(),
            code,
            message,
            limit,
            headers,
            method=getattr(self, "_command", b""),
            target=getattr(self, "_path", b""),
            offence=offence,
        )

    def _refuse_head(self, what: str, limit: str, most: int) -> None:
        name = self.name_of(limit)
        self.refuse(431, f"The head of the request is over {most} {what}{_set_by(name)}", name)

    def _respondToBadRequestAndDisconnect(self) -> None:
        # Twisted's own answer has neither a length nor a body.
        self.refuse(400, "This is not HTTP")

    def _give_up(self, late: Late) -> None:
        if late is Late.REQUEST:
            self._end_by(self.callLater(CLOSING, self.transport.abortConnection))
            self.loseConnection()
        elif late is Late.DOWNLOAD:
            message, limit = self._too_late("The download is not taken", "stall_timeout")
            self._refusal(408, message, limit)  # nobody would read it
            self.transport.abortConnection()
        elif late is Late.HEAD:
            self.refuse(408, *self._too_late("The head has not come", "header_timeout"))
        elif late is Late.BODY:
            self.refuse(408, *self._too_late("The body has not come", "body_timeout"))
        else:
            self.refuse(408, *self._too_late("Nothing has come of the body", "idle_timeout"))

    def _too_late(self, what: str, limit: str) -> tuple[str, str | None]:
        name = self.name_of(limit)
        return f"{what} in {getattr(self.limits, limit):g} s{_set_by(name)}", name

    def getHost(self) -> Any:
        # Each request asks for this and the next, and they stay the same.
        if self._host is None:
            self._host = super().getHost()
        return self._host

    def isSecure(self) -> bool:
        if self._secure is None:
            self._secure = bool(super().isSecure())
        return self._secure

    # How it ends

    def _end_by(self, call: IDelayedCall | None) -> None:
        """Have ``call`` break the connection, if it does not close before; and no other one."""
        if self._ending is not None and self._ending.active():
            self._ending.cancel()
        self._ending = call

    def end(self) -> None:
        """Close the connection, after what was answered; break it in the middle of a cart.

        To break it throws away what the client has not taken yet, of a finished download too.
        """
        if self._lost or self.transport is None:
            return
        if self._sending:
            self.transport.abortConnection()
        else:
            self.loseConnection()

    # What goes out: who does not read holds a cart in its place, so not for ever

    def writeHeaders(self, version: bytes, code: bytes, reason: bytes, headers: Any) -> None:
        # Twisted's writes four pieces for each field, and the transport looks at every one.
        head = [b"%s %s %s\r\n" % (version, code, reason)]
        for name, values in headers.getAllRawHeaders():
            head += [b"%s: %s\r\n" % (name, value) for value in values]
        head.append(b"\r\n")
        self.transport.write(b"".join(head))

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        self._sending = True
        super().registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        super().unregisterProducer()
        self.wait_for_client(False, 0)
        self._sending = False

    def pauseProducing(self) -> None:
        self.wait_for_client(True, self._sent())
        super().pauseProducing()

    def resumeProducing(self) -> None:
        self.wait_for_client(False, self._sent())
        super().resumeProducing()

    def wait_for_client(self, waits: bool, sent: int) -> None:
        """While a cart is sent: the client has yet to take some of it, or has done so.

        ``sent`` is how many bytes of it the client was given so far.
        """
        if self._sending:
            self._timers.download_waits(waits, sent)

    def _sent(self) -> int:
        return self.requests[0].sentLength if self.requests else 0


def _set_by(setting: str | None) -> str:
    return "" if setting is None else f" ({setting})"
