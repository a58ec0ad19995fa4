"""HTTP/1.1 messages: requests and responses, the framing of bodies, and their delivery.

Strategy: everything sent was matched against its grammar, so that no method, URI or header can end
its line early and begin a second request (request smuggling, RFC 9112, section 11.2).  The fields
for framing and the host are written here; a caller cannot set them.

llhttp parses the lines of a head, in its strict mode, and chunks; the rest is decided here (RFC
9112, section 6.3).  A response in which two parsers could see different bodies is rejected.  A head
is parsed only when all of it has come, so its end is known to the byte.  A body of known length
passes through unparsed.

A body is delivered in the pieces in which it was read, at the speed of its protocol.  Bytes that
were read before there is a protocol, or while it pauses, are held, and the connection pauses
reading.  So at most one read is held, and no byte is delivered after ``pauseProducing``.  Nor is
one before the callback of the response has returned: by then a coroutine awaits the end of the body
and can be cancelled.  A complete body ends when all of it is delivered, one that was cut short ends
at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, NamedTuple, Protocol, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser
from twisted.internet.defer import maybeDeferred
from twisted.internet.interfaces import IProtocol, IPushProducer, ITransport
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone, ResponseFailed
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer, IClientRequest, IResponse
from zope.interface import implementer

log = Logger()

_METHOD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""A token (RFC 9110, section 5.6.2)."""

_URI = re.compile(rb'(https?://[!-"$-.0->@-~]+)([!-"$-~]*)(?:#[!-~]*)?')
"""Scheme and authority; path and query; a fragment, which is not sent.  Visible ASCII only."""

_LABEL = rb"[0-9A-Za-z_-]{1,63}"
_ORIGIN = re.compile(
    rb"(https?)://(\[[0-9A-Fa-f:.]+\]|%b(?:\.%b)*\.?)(?::([0-9]{0,5}))?" % (_LABEL, _LABEL)
)
"""A user before the host does not match, either: it would be a secret in the wrong place."""

_VALUE = re.compile(rb"[\t -~\x80-\xff]*")
"""A field's value without the control characters (RFC 9110, section 5.5)."""

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}

_RESERVED_FIELDS: Final = frozenset(
    name.encode()
    for name in (
        "Connection", "Content-Length", "Expect", "Host", "Keep-Alive", "Proxy-Connection", "TE",
        "Trailer", "Transfer-Encoding", "Upgrade",
    )
)  # fmt: skip
"""Fields of the connection and of framing, which a caller may not set."""

_SAFE_METHODS: Final = frozenset({b"GET", b"HEAD"})
_METHODS_WITH_BODY: Final = frozenset({b"PATCH", b"POST", b"PUT"})


class Origin(NamedTuple):
    """Scheme, host and port: connections to the same origin are interchangeable."""

    scheme: str
    host: str
    """A name or an address; one of IPv6 without its brackets."""
    port: int
    authority: bytes
    """The value of ``Host`` (RFC 9110, section 7.2)."""


@implementer(IClientRequest)
class Request:
    """A request; raises ``ValueError`` if HTTP/1.1 cannot express it.

    ``Accept-Encoding`` is always ``identity``; a caller's value is ignored.  A ``body`` has a known
    length: it is framed by ``Content-Length``, because many servers reject chunks.
    ``more_fields`` are whole lines of the head that are known to be valid.
    """

    __slots__ = ("absoluteURI", "body", "head", "headers", "method", "origin", "retryable")

    def __init__(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers,
        body: IBodyProducer | None = None,
        more_fields: bytes = b"",
    ) -> None:
        parts = _URI.fullmatch(uri)
        if parts is None:
            raise ValueError(f"not an absolute http: or https: URI of visible ASCII: {uri!r}")
        if not _METHOD.fullmatch(method) or method == b"CONNECT":
            raise ValueError(f"not a method for a URI: {method!r}")
        base, target = parts.groups()
        if target[:1] != b"/":
            target = b"/" + target
        self.method = method
        self.body = body
        self.absoluteURI = uri
        self.headers = headers
        self.origin = _origin(base)
        self.retryable = method in _SAFE_METHODS
        """Whether it may be repeated if it is unknown whether it arrived (RFC 9110, 9.2.2)."""
        self.head = b"%b %b HTTP/1.1\r\nHost: %b\r\nAccept-Encoding: identity\r\n%b%b%b\r\n" % (
            method,
            target,
            self.origin.authority,
            _content_length(method, body),
            _fields(headers),
            more_fields,
        )


def _content_length(method: bytes, body: IBodyProducer | None) -> bytes:
    if body is None:
        return b"Content-Length: 0\r\n" if method in _METHODS_WITH_BODY else b""
    if method in _SAFE_METHODS:
        raise ValueError(f"a request of {method!r} cannot have a body")
    length: object = body.length
    if not isinstance(length, int) or length < 0:
        raise ValueError(f"a body of a request needs a known length, not {length!r}")
    return b"Content-Length: %d\r\n" % length


def _fields(headers: Headers) -> bytes:
    lines = []
    for name, values in headers.getAllRawHeaders():
        if name in _RESERVED_FIELDS:
            raise ValueError(f"a caller may not set {name!r}")
        if name == b"Accept-Encoding":
            continue
        for value in values:
            lines.append(_field(name, value))
    return b"".join(lines)


@lru_cache(maxsize=64)
def _field(name: bytes, value: bytes) -> bytes:
    if not _METHOD.fullmatch(name):
        raise ValueError(f"not a field name: {name!r}")
    if not _VALUE.fullmatch(value):
        raise ValueError(f"not a field value: {value!r}")
    return b"%b: %b\r\n" % (name, value)


@lru_cache(maxsize=64)
def _origin(base: bytes) -> Origin:
    parts = _ORIGIN.fullmatch(base)
    if parts is None:
        raise ValueError(f"not a host and a port: {base!r}")
    scheme, host, digits = (part.decode("ascii") for part in parts.groups(default=b""))
    port = int(digits) if digits else _DEFAULT_PORTS[scheme]
    if not 0 < port < 65_536:
        raise ValueError(f"not a port: {digits}")
    host = host.lower()
    authority = host if port == _DEFAULT_PORTS[scheme] else f"{host}:{port}"
    return Origin(scheme, host.strip("[]"), port, authority.encode("ascii"))


class WrongBodyLength(Exception):
    """The body of a request has not the length that was announced."""


@implementer(IPushProducer)
class Upload:
    """Sends the body of one request at the speed of the connection, which pauses and resumes it.

    ``on_end`` is called with None when ``body`` has written exactly its ``length`` and is done, or
    with its failure; not after :meth:`stopProducing`.
    """

    def __init__(
        self, body: IBodyProducer, transport: Any, on_end: Callable[[Failure | None], None]
    ) -> None:
        self._body = body
        self._transport = transport
        self._on_end = on_end
        self._left = int(body.length)
        self._paused = False
        self._ended = False

    def start(self) -> None:
        self._transport.registerProducer(self, True)
        if not self._ended:
            producing = maybeDeferred(self._body.startProducing, self)
            producing.addCallbacks(self._produced, self._end)

    def write(self, data: bytes) -> None:
        """For the body; a write beyond its length fails the request."""
        if self._ended:
            return
        self._left -= len(data)
        if self._left >= 0:
            self._transport.write(data)
        else:
            self._stop_body()
            self._end(Failure(WrongBodyLength("it is longer than its length")))

    def pauseProducing(self) -> None:
        if not self._paused and not self._ended:
            self._paused = True
            self._body.pauseProducing()

    def resumeProducing(self) -> None:
        # A transport that paused its previous producer may resume the next one.
        if self._paused and not self._ended:
            self._paused = False
            self._body.resumeProducing()

    def stopProducing(self) -> None:
        """For a connection that will be aborted, and for a transport that is lost."""
        if not self._ended:
            self._ended = True
            self._stop_body()

    def _stop_body(self) -> None:
        try:
            self._body.stopProducing()
        except Exception:
            log.failure("The body of a request could not be stopped")

    def _produced(self, _: object) -> None:
        short = Failure(WrongBodyLength("it is shorter than its length"))
        self._end(short if self._left else None)

    def _end(self, reason: Failure | None) -> None:
        if not self._ended:
            self._ended = True
            self._transport.unregisterProducer()
            self._on_end(reason)


END: Final = b"\r\n\r\n"
START: Final = b"HTTP/1."

MAX_BYTES: Final = 64 * 1024
"""Bytes of a head, including the interim responses before it."""
MAX_LINES: Final = 256

_NO_BODY: Final = frozenset({204, 304})
_FOLD = re.compile(rb"\r\n[ \t]+")


class BadResponse(Exception):
    """The response is not HTTP/1.1, or its end is ambiguous."""


class ParsedHeaders(Headers):
    """Headers of a message that llhttp has parsed: names are tokens, values have no line ends."""

    __slots__ = ()

    def add_parsed(self, name: bytes, value: bytes) -> None:
        """As ``addRawHeader``, which would replace line ends: that costs more than parsing."""
        self._rawHeaders.setdefault(_canonical_names[name], []).append(value)


class _CanonicalNames(dict[bytes, bytes]):
    """Names of headers as Twisted spells them; keeps as many as servers have in earnest."""

    def __missing__(self, name: bytes) -> bytes:
        [(canonical, _)] = Headers({name: [b""]}).getAllRawHeaders()
        if len(self) < MAX_LINES:
            self[name] = canonical
        return canonical


_canonical_names = _CanonicalNames()


class Head:
    """The head of one response.

    ``length`` is that of the body in bytes, or None if it ends by ``chunked`` framing or else with
    the connection.  ``persistent``: the connection stays open after the response.
    """

    __slots__ = ("chunked", "code", "headers", "length", "on_header", "persistent", "phrase")

    def __init__(self, data: bytes, *, to_head: bool) -> None:
        """``data`` ends with the empty line; ``to_head``: it is the response to a HEAD request.

        Raises :class:`BadResponse`.
        """
        if not data.startswith(START):
            raise BadResponse("it does not begin with HTTP/1.")
        if data.count(b"\n") > MAX_LINES:
            raise BadResponse(f"it has more than {MAX_LINES} lines")
        self.phrase = b""
        self.headers = ParsedHeaders()
        self.on_header = self.headers.add_parsed
        self.code = self._parse(data)
        options = _tokens(self.headers, b"Connection")
        codings = _tokens(self.headers, b"Transfer-Encoding")
        self.persistent = b"close" not in options
        if data.startswith(b"HTTP/1.0"):
            # A sender of codings in 1.0 may not implement them (RFC 9112, section 6.1).
            self.persistent = b"keep-alive" in options and not codings
        self.chunked = False
        self.length: int | None = 0
        if not (to_head or self.code in _NO_BODY or self.code < 200):
            self._find_body(codings)

    def on_status(self, phrase: bytes) -> None:
        self.phrase = phrase

    def _parse(self, data: bytes) -> int:
        """Return the status; llhttp rejects several lengths, and a length beside a coding."""
        if b"\r\n " in data or b"\r\n\t" in data:
            data = _unfolded(data)
        parser = HttpResponseParser(self)
        try:
            parser.feed_data(data)
        except HttpParserUpgrade:
            raise BadResponse("it switches to another protocol, which was not requested") from None
        except HttpParserError as error:
            raise BadResponse(str(error)) from error
        code: int = parser.get_status_code()
        if code < 100:
            raise BadResponse(f"its status is {code}")
        return code

    def _find_body(self, codings: list[bytes]) -> None:
        lengths = self.headers.getRawHeaders(b"Content-Length")
        if codings:
            if codings != [b"chunked"]:
                raise BadResponse(f"its transfer coding is {b', '.join(codings)!r}")
            self.chunked = True
            self.length = None
        elif lengths:
            self.length = int(lengths[0])
        else:
            self.length = None
            self.persistent = False


def _unfolded(data: bytes) -> bytes:
    """Join continued lines (RFC 9112, section 5.2), except to the status line."""
    status, end, fields = data.partition(b"\r\n")
    return status + end + _FOLD.sub(b" ", fields)


def _tokens(headers: Headers, name: bytes) -> list[bytes]:
    """Return the lower-case members of a list field (RFC 9110, section 5.6.1)."""
    values = headers.getRawHeaders(name)
    if values is None:
        return []
    return [token for part in b",".join(values).lower().split(b",") if (token := part.strip())]


SMALL_CHUNK: Final = 4096
"""Bytes; chunks that are smaller on average are joined: passing each on costs more than copying."""


class Framing(Protocol):
    """The framing of one body."""

    @property
    def complete(self) -> bool:
        """Whether the body is complete."""

    def feed(self, data: bytes) -> tuple[list[bytes], bool]:
        """Return the body's bytes in ``data``, in pieces, and whether bytes follow the body.

        Raises :class:`BadResponse`.
        """


def framing(head: Head) -> Framing:
    if head.chunked:
        return Chunked()
    return UntilClosed() if head.length is None else Sized(head.length)


class Sized:
    """A body of a known number of bytes."""

    __slots__ = ("_left", "complete")

    def __init__(self, length: int) -> None:
        self._left = length
        self.complete = False

    def feed(self, data: bytes) -> tuple[list[bytes], bool]:
        left = self._left - len(data)
        if left < 0:
            data = data[: self._left]
        self._left = max(left, 0)
        self.complete = left <= 0
        return [data] if data else [], left < 0


class UntilClosed:
    """All bytes until the connection ends; never known to be complete."""

    __slots__ = ()

    complete: Final = False

    def feed(self, data: bytes) -> tuple[list[bytes], bool]:
        return [data] if data else [], False


class Chunked:
    """Chunks (RFC 9112, section 7.1), parsed by llhttp; trailer fields are ignored."""

    __slots__ = ("_parser", "_pieces", "complete")

    _HEAD: Final = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

    def __init__(self) -> None:
        self.complete = False
        self._pieces: list[bytes] = []
        self._parser = HttpResponseParser(self)
        self._parser.feed_data(self._HEAD)

    def feed(self, data: bytes) -> tuple[list[bytes], bool]:
        """As :meth:`Framing.feed`.

        llhttp does not report how many bytes it consumed, and skips empty lines after the body.
        But a body ends with the end of a line: no bytes follow if it is complete with the last byte
        and not before.
        """
        view = memoryview(data)
        until = len(data) - data.endswith(b"\n")
        try:
            self._parser.feed_data(view[:until])
            extra = self.complete
            if not extra:
                self._parser.feed_data(view[until:])
        except HttpParserError as error:
            if not self.complete:
                raise BadResponse(str(error)) from error
            extra = True
        pieces, self._pieces = self._pieces, []
        if len(pieces) * SMALL_CHUNK > len(data):
            pieces = [b"".join(pieces)]
        return pieces, extra

    def on_body(self, piece: bytes) -> None:
        if not self.complete:
            self._pieces.append(piece)

    def on_message_complete(self) -> None:
        self.complete = True


DONE: Final = Failure(ResponseDone("the body is complete"))


class Source(Protocol):
    """The connection that a body comes from."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def abort(self) -> None: ...

    def body_ended(self) -> None:
        """The body does not need the connection any more."""


@implementer(IPushProducer)
class Body:
    """Delivers one body from its connection to a protocol, as the transport of that."""

    __slots__ = ("_delivering", "_end", "_held", "_notified", "_paused", "_protocol", "_source")

    def __init__(self, source: Source) -> None:
        self._source: Source | None = source
        self._protocol: IProtocol | None = None
        self._held: list[bytes] = []
        self._paused = False
        self._delivering = True
        self._end: Failure | None = None
        """How the body ended, once it has."""
        self._notified = False
        """Whether the protocol was notified of the end."""

    @property
    def wanted(self) -> bool:
        """Whether the body has a protocol to be delivered to."""
        return self._protocol is not None

    def deliver_to(self, protocol: IProtocol) -> None:
        if self._protocol is not None:
            raise RuntimeError("the body of this response has been delivered")
        self._protocol = protocol
        try:
            protocol.makeConnection(cast(ITransport, self))
        except Exception:
            self.abortConnection()
            raise
        self._deliver()

    def open(self) -> None:
        """Start delivery, after the callback of the response has returned."""
        self._delivering = False
        self._deliver()

    def receive(self, pieces: list[bytes]) -> None:
        self._held += pieces
        self._deliver()

    def finish(self, reason: Failure) -> None:
        """The body has ended, and is complete as far as its framing can tell."""
        self._end = reason
        self._deliver()

    def fail(self, reason: Failure) -> None:
        """The body was cut short; held bytes are dropped."""
        if self._end is None:
            self._end = reason
            self._held.clear()
            self._notify()

    def release_connection(self) -> None:
        """Release the connection; the rest of the body is held here."""
        source, self._source = self._source, None
        if source is not None:
            source.body_ended()

    def pauseProducing(self) -> None:
        self._paused = True
        if self._source is not None:
            self._source.pause()

    def resumeProducing(self) -> None:
        self._paused = False
        self._deliver()

    def abortConnection(self) -> None:
        """Drop the connection and held bytes at once, unless the connection was released."""
        if self._source is not None:
            self._held.clear()
            self._end = None
            self._source.abort()

    stopProducing = loseConnection = abortConnection

    def _deliver(self) -> None:
        """Deliver held bytes; in each call the protocol may pause, resume or abort."""
        protocol = self._protocol
        if protocol is None or self._delivering:
            return
        self._delivering = True
        while self._held and not self._paused:
            try:
                protocol.dataReceived(self._held.pop(0))
            except Exception:
                self.abortConnection()
                self.fail(Failure(ResponseFailed([Failure()])))
        self._delivering = False
        if self._paused:
            return
        if self._end is not None:
            self._notify()
        elif self._source is not None:
            self._source.resume()

    def _notify(self) -> None:
        if self._notified or self._protocol is None or self._end is None:
            return
        self._notified = True
        self.release_connection()
        self._protocol.connectionLost(self._end)


@implementer(IResponse)
class Response:
    """A response whose head has come.

    Its connection is free when the body has been delivered.  If the body is not complete yet, the
    connection is paused until the body is requested.
    """

    __slots__ = ("_body", "code", "headers", "length", "phrase", "previousResponse", "request")

    version: Final = (b"HTTP", 1, 1)

    def __init__(self, head: Head, request: Request, body: Body) -> None:
        self.code = head.code
        self.phrase = head.phrase
        self.headers = head.headers
        self.length: int | str = UNKNOWN_LENGTH if head.length is None else head.length
        self.request = request
        self.previousResponse: IResponse | None = None
        self._body = body

    def deliverBody(self, protocol: IProtocol) -> None:
        """Deliver the body to a protocol, whose transport pauses, resumes and drops the connection.

        Its ``connectionLost`` gets :class:`~twisted.web.client.ResponseDone`;
        :class:`~twisted.web.http.PotentialDataLoss` where only the end of the connection
        ended the body; or :class:`~twisted.web.client.ResponseFailed`.
        """
        self._body.deliver_to(protocol)

    def setPreviousResponse(self, response: IResponse) -> None:
        self.previousResponse = response
