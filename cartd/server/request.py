"""A request: its body is kept, or refused as soon as it is known that it cannot be taken."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from io import BytesIO
from tempfile import gettempdir
from typing import Any

from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.server import Request

from cartd.auth import Guard
from cartd.errors import CartdError, NoCredentials
from cartd.model import User
from cartd.server import cross_origin
from cartd.server.cache_control import NO_STORE
from cartd.server.error_responses import Headers
from cartd.server.limits import named
from cartd.server.request_body import Body
from cartd.server.request_head import Head, judge, path_of
from cartd.server.route_table import is_open_to_all

FULL = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)})

log = Logger()


def field(request: Request, name: str) -> str | None:
    """What a client sent, byte by byte: it may be no UTF-8 (RFC 9110, section 5.5).

    Values of a field that comes repeatedly are joined (section 5.3).
    """
    values: Sequence[bytes] | None = request.requestHeaders.getRawHeaders(name.encode("ascii"))
    return None if values is None else b", ".join(values).decode("latin-1")


class JudgedRequest(Request):
    """A request on a :class:`cartd.server.channel.LimitedChannel`.

    What its head decides is answered before its body is asked for.  The site keeps the body.
    Nobody keeps the answer, unless its route says otherwise.
    """

    channel: Any
    content: Any
    who: User | None = None
    """Who asks; none where nobody is asked who they are."""
    logged = False
    """Whether it has its line in the log of requests."""
    judged = False
    """Whether its head has been judged already, as that of a request with a body."""
    _refused = False
    _producer: Any = None

    def __init__(self, channel: Any, *arguments: Any, **more: Any) -> None:
        super().__init__(channel, *arguments, **more)
        self._began: float = channel.site.reactor.seconds()

    @property
    def seconds(self) -> float:
        """How long ago its first line came."""
        seconds: float = self.channel.site.reactor.seconds() - self._began
        return seconds

    def process(self) -> None:
        self.setHeader(b"Cache-Control", NO_STORE)
        for name, value in cross_origin.allowed(self.requestHeaders, self.channel.rules.origins):
            self.setHeader(name, value)
        super().process()

    def gotLength(self, length: int | None) -> None:
        self.method, self.uri, self.clientproto = self.channel.first_line()
        if length != 0 or self.requestHeaders.hasHeader(b"transfer-encoding"):
            self._judge(length)
        else:
            self.requestHeaders.removeHeader(b"expect")  # there is nothing to go on with
        if self._refused:
            self.content = BytesIO()
        else:
            self._keep_body(length)

    def handleContentChunk(self, data: bytes) -> None:
        if not self._refused:
            super().handleContentChunk(data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        if not self._refused:
            super().requestReceived(command, path, version)

    def _keep_body(self, length: int | None) -> None:
        super().gotLength(length)

    def _handleStar(self) -> None:
        # Twisted's own answer names no methods, and has no body where it is an error.
        self.render(self.channel.site.getResourceFor(self))

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        self._producer = producer
        super().registerProducer(producer, streaming)

    @property
    def bytes_sent(self) -> int:
        """How much of the body the client's connection has taken."""
        # What sends into the socket itself tells the request only now and then.
        return max(self.sentLength, getattr(self._producer, "given", 0))

    def connectionLost(self, reason: Failure) -> None:
        if not (self.finished or self.logged) and self.uri != Request.uri:
            self.channel.site.log(self)
        super().connectionLost(reason)

    def waits_for_client(self, waits: bool) -> None:
        if self.channel is not None:
            self.channel.wait_for_client(waits, self.sentLength)

    def _judge(self, length: int | None) -> None:
        """Answer now what needs no body to be answered."""
        self.judged = True
        head = Head(self.method, self.uri, self.clientproto, self.requestHeaders, length)
        verdict = judge(head, self.channel.rules)
        guard: Guard | None = self.channel.guard
        if verdict is not None:
            self._refuse(verdict.code, verdict.message, verdict.limit, verdict.headers)
        elif guard is not None and not is_open_to_all(self.method, path_of(head.segments)):
            found = guard.find_out(self)
            if isinstance(found, CartdError):
                offence = not isinstance(found, NoCredentials)
                self._refuse(found.code, str(found), headers=guard.headers(found), offence=offence)
            else:
                self.who = found

    def _refuse(
        self,
        code: int,
        message: str,
        limit: str | None = None,
        headers: Headers = (),
        *,
        offence: bool = True,
    ) -> None:
        """Answer now (for 413, RFC 9110, section 15.5.14), and close when the client has read."""
        self._refused = True
        # No "100 Continue" to a client that asks first.
        self.requestHeaders.removeHeader(b"expect")
        self.channel.refuse(code, message, limit, headers, offence=offence)


class LimitedRequest(JudgedRequest):
    """One whose body is kept up to a limit, and off the reactor's thread if it is long."""

    _received = 0
    _body: Body | None = None

    def handleContentChunk(self, data: bytes) -> None:
        self._received += len(data)
        if self._received > self._most() and not self._refused:
            self._refuse_as_too_long()
        if not self._refused and self._body is not None and not self._body.write(data):
            self._refuse_for_space()

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        written = None if self._refused or self._body is None else self._body.whole()
        if written is None:
            super().requestReceived(command, path, version)
        else:
            written.addCallback(lambda _: self._serve(command, path, version))

    def _serve(self, command: bytes, path: bytes, version: bytes) -> None:
        """The body is on the disk; if the client has not left meanwhile, it is answered now."""
        if self.channel is not None:
            super().requestReceived(command, path, version)

    def _keep_body(self, length: int | None) -> None:
        self.content = BytesIO()
        if length == 0:
            return
        channel = self.channel
        self._body = self.content = Body(channel.bodies, channel.wait_for_disk, self._disk_fails)
        if length is not None and not self._body.reserve(length):
            self._refuse_for_space()

    def _most(self) -> int:
        most: int = self.channel.limits.max_manifest
        return most

    def _disk_fails(self, error: OSError) -> None:
        """A long body is kept in the system's temporary files, which are full or broken."""
        message = f"The body cannot be kept in {_directory()}: {error.strerror}"
        log.warn("{message}", message=message)
        self._refuse(507 if error.errno in FULL else 503, message)

    def _refuse_for_space(self) -> None:
        limit = named("body_space")
        self._refuse(
            503,
            f"The bodies of other requests take what may be taken of {_directory()}"
            f" ({self.channel.bodies.most} bytes, {limit}); send it again later",
            limit,
        )

    def _refuse_as_too_long(self) -> None:
        limit = named("max_manifest")
        self._refuse(413, f"The body is over {self._most()} bytes ({limit})", limit)

    def _refuse(
        self,
        code: int,
        message: str,
        limit: str | None = None,
        headers: Headers = (),
        *,
        offence: bool = True,
    ) -> None:
        super()._refuse(code, message, limit, headers, offence=offence)
        if self._body is not None:
            self._body.close()


def _directory() -> str:
    """Where the system keeps temporary files (``TMPDIR``, else /tmp or the like)."""
    try:
        return gettempdir()
    except OSError:
        return "a temporary file"
