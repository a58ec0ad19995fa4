"""Requests: validated, authenticated and limited before their body is received; error responses.

Which methods a path has, and whether it is public, is checked before a route is chosen, by the
:class:`RequestRules` of the site.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from http import HTTPStatus
from io import BytesIO
from tempfile import gettempdir
from typing import Any, Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import datetimeToString
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET, Request
from werkzeug.exceptions import HTTPException

from cartd.auth import Authenticator, TrustedPeers, peer_of
from cartd.errors import (
    INTERNAL_ERROR,
    CartdError,
    CartFailed,
    Fault,
    InvalidManifest,
    NoCredentials,
    Problem,
    reason_phrase,
)
from cartd.http import origins
from cartd.http.access_log import log_rejection
from cartd.http.headers import NO_STORE, escape_header, prefers_html
from cartd.http.problems import ErrorFacts, serialize
from cartd.http.request_limits import (
    EarlyResponse,
    Limits,
    RequestHead,
    RequestRules,
    SpooledBody,
    TempFileLimit,
    route_path,
    setting_name,
    validate_head,
)
from cartd.http.twisted_web import BaseChannel, BaseRequest
from cartd.model import User
from cartd.page.layout import HEADERS, HTML, sign_in_page
from cartd.tracing import LogContext, current, parse_request_id

log = Logger()

DISK_FULL_ERRNOS = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)})


def header_field(request: Request, name: str) -> str | None:
    """Return the value of a header, decoded as Latin-1 (RFC 9110, section 5.5); None if absent.

    The values of a repeated header are joined by commas (section 5.3).
    """
    values: Sequence[bytes] | None = request.requestHeaders.getRawHeaders(name.encode("ascii"))
    return None if values is None else b", ".join(values).decode("latin-1")


class RequestSite(Protocol):
    """What connections and requests use of their site, beside what Twisted uses."""

    reactor: IReactorTime

    def getResourceFor(self, request: Request) -> IResource: ...

    def log_disconnected(self, request: ValidatedRequest) -> None:
        """Log a request whose client has disconnected."""

    def log_rejection(
        self, channel: RequestChannel, code: int, sent: int, context: LogContext
    ) -> None:
        """Log input rejected before it was a complete request, with ``sent`` bytes of body."""


class RequestChannel(BaseChannel):
    """What requests use of their connection, a :class:`cartd.http.connection.LimitedChannel`."""

    site: RequestSite
    limits: Limits
    rules: RequestRules
    temp_file_limit: TempFileLimit
    authenticator: Authenticator | None = None
    """Authenticates requests with a body; None without authentication."""
    request_id_peers: TrustedPeers | None = None
    """The proxies whose request ids are taken over; None if there are none."""
    sends_request_id = True
    """Whether responses have the header ``X-Request-ID``."""

    def request_line(self) -> bytes:
        """Return the request line as received; empty before it has arrived."""
        return b" ".join(self.first_line()).strip()

    def reject(self, response: EarlyResponse) -> None:
        """Send an error at once, ignore all further input, and close the connection.

        Later calls do nothing.
        """
        raise NotImplementedError

    def pause_for_disk(self, paused: bool) -> None:
        """Pause or resume reading the body.  The client's timeouts stand still meanwhile."""
        raise NotImplementedError

    def on_send_pause(self, paused: bool, sent: int) -> None:
        """Start or stop the stall timeout, if a cart is being sent.

        ``paused``: the client has not read all bytes sent so far, ``sent`` in number.
        """
        raise NotImplementedError


class ValidatedRequest(BaseRequest):
    """A request on a :class:`cartd.http.connection.LimitedChannel`, validated by its head.

    It is rejected before its body is requested, if its head is sufficient for that.  The site
    stores the body.  The response is not cached unless its route allows it.
    """

    channel: RequestChannel
    content: Any
    authenticated_user: User | None = None
    """The user; None without authentication."""
    access_logged = True
    """Whether its response gets a line in the access log; the route may change it."""
    sent_host = b"localhost"
    """The Host that the client sent."""
    logged = False
    """Whether it has that line, or needs none any more."""
    head_validated = False
    """Whether its head has been validated already, as with a request that has a body."""
    _rejected = False
    _producer: Any = None

    def __init__(self, channel: RequestChannel, *arguments: Any, **more: Any) -> None:
        super().__init__(channel, *arguments, **more)
        self._clock = channel.site.reactor
        self._started_at = self._clock.seconds()
        self.log_context = LogContext(self.requestHeaders)

    @property
    def request_id(self) -> str:
        """The value of ``X-Request-ID`` in the response, which names the request in the logs."""
        return self.log_context.request_id

    @property
    def seconds(self) -> float:
        """Seconds since its request line arrived."""
        return self._clock.seconds() - self._started_at

    def process(self) -> None:
        self.setHeader(b"Cache-Control", NO_STORE)
        for name, value in origins.cors_headers(
            self.requestHeaders, self.channel.rules.allowed_origins
        ):
            self.setHeader(name, value)
        reset = current.set(self.log_context)  # coroutines of routes keep it
        try:
            super().process()
        finally:
            current.reset(reset)

    def gotLength(self, length: int | None) -> None:
        self.method, self.uri, self.clientproto = self.channel.first_line()
        if self.channel.request_id_peers is not None:
            self._take_over_request_id(self.channel.request_id_peers)
        if length != 0 or self.requestHeaders.hasHeader(b"transfer-encoding"):
            self._validate_head(length)
        else:
            self.requestHeaders.removeHeader(b"expect")  # no "100 Continue" without a body
        if self._rejected:
            self.content = BytesIO()
        else:
            self._keep_body(length)

    def _take_over_request_id(self, peers: TrustedPeers) -> None:
        sent = self.requestHeaders.getRawHeaders(REQUEST_ID)
        taken = parse_request_id(sent) if sent else None
        if taken is not None and peer_of(self) in peers:
            self.log_context.request_id = taken

    def handleContentChunk(self, data: bytes) -> None:
        if not self._rejected:
            super().handleContentChunk(data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        if not self._rejected:
            super().requestReceived(command, path, version)

    def _keep_body(self, length: int | None) -> None:
        super().gotLength(length)

    def on_asterisk(self) -> None:
        # Twisted's own response lacks Allow and, for errors, the JSON body.
        self.render(self.channel.site.getResourceFor(self))

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        self._producer = producer
        super().registerProducer(producer, streaming)

    @property
    def bytes_sent(self) -> int:
        """Bytes of the response body passed to the connection; exact after ``wait_sent``."""
        # A producer that writes to the socket itself updates sentLength only now and then.
        return max(self.sentLength, getattr(self._producer, "bytes_sent", 0))

    def wait_sent(self) -> Deferred[None]:
        """Fire when the call of a thread that sends the response has ended, if one runs."""
        wait_idle = getattr(self._producer, "wait_idle", None)
        return succeed(None) if wait_idle is None else wait_idle()

    def connectionLost(self, reason: Failure) -> None:
        if not (self.finished or self.logged) and self.uri != Request.uri:
            self.channel.site.log_disconnected(self)
        super().connectionLost(reason)

    def on_send_pause(self, paused: bool) -> None:
        if self.channel is not None:
            self.channel.on_send_pause(paused, self.sentLength)

    def _validate_head(self, length: int | None) -> None:
        """Validate the head and authenticate; reject the request if either fails."""
        self.head_validated = True
        head = RequestHead(self.method, self.uri, self.clientproto, self.requestHeaders, length)
        early = validate_head(head, self.channel.rules)
        authenticator: Authenticator | None = self.channel.authenticator
        if early is not None:
            self._reject(early)
        elif authenticator is not None and not self.channel.rules.is_public(
            self.method, route_path(head.segments)
        ):
            reset = current.set(self.log_context)
            try:
                found = authenticator.try_authenticate(self)
            finally:
                current.reset(reset)
            if isinstance(found, CartdError):
                logged = not isinstance(found, NoCredentials)
                headers = authenticator.headers(found)
                self._reject(EarlyResponse.of(found, headers, logged=logged))
            else:
                self.set_user(found)

    def set_user(self, user: User) -> None:
        """Record the authenticated user."""
        self.authenticated_user = user
        self.log_context.user = user.name

    def _reject(self, response: EarlyResponse) -> None:
        """Send an error now (for 413, RFC 9110, section 15.5.14) and close the connection."""
        self._rejected = True
        # No "100 Continue" to a client that waits for it.
        self.requestHeaders.removeHeader(b"expect")
        self.channel.reject(response)


def log_internal_error(request: Request, failure: Failure) -> None:
    """Log an error of a route that is a bug, for the 500 that the client gets."""
    # The callback that got the failure may run in the context of another request.
    reset = current.set(context_of(request))
    try:
        log.failure(
            "{method} {uri} failed (request {request_id})",
            failure,
            method=request.method,
            uri=request.uri,
            request_id=context_of(request).request_id,
        )
    finally:
        current.reset(reset)


def context_of(request: Request) -> LogContext:
    """Return what log lines name that belong to the request."""
    return request.log_context if isinstance(request, ValidatedRequest) else LogContext()


class LimitedRequest(ValidatedRequest):
    """A request whose body is limited in size and spooled to disk by threads if it is long."""

    _received = 0
    _body: SpooledBody | None = None

    def handleContentChunk(self, data: bytes) -> None:
        self._received += len(data)
        if self._received > self._max_body() and not self._rejected:
            self._reject_too_large()
        if not self._rejected and self._body is not None and not self._body.write(data):
            self._reject_no_space()

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        written = None if self._rejected or self._body is None else self._body.finish()
        if written is None:
            super().requestReceived(command, path, version)
        else:
            written.addCallback(lambda _: self._serve(command, path, version))

    def _serve(self, command: bytes, path: bytes, version: bytes) -> None:
        """Serve the request, now that its body is on disk, unless the client has disconnected."""
        if self.channel is not None:
            super().requestReceived(command, path, version)

    def _keep_body(self, length: int | None) -> None:
        self.content = BytesIO()
        if length == 0:
            return
        channel = self.channel
        self._body = self.content = SpooledBody(
            channel.temp_file_limit, channel.pause_for_disk, self._on_disk_error
        )
        if length is not None and not self._body.reserve(length):
            self._reject_no_space()

    def _max_body(self) -> int:
        return self.channel.limits.max_manifest_size

    def _on_disk_error(self, error: OSError) -> None:
        """Reject the request: its body could not be written to the temporary directory."""
        message = f"Cannot store the request body in {_directory()}: {error.strerror}"
        log.warn("{message}", message=message)
        self._reject(EarlyResponse(507 if error.errno in DISK_FULL_ERRNOS else 503, message))

    def _reject_no_space(self) -> None:
        limit = setting_name("temp_file_limit")
        message = (
            f"Other request bodies use the space allowed in {_directory()}"
            f" ({self.channel.temp_file_limit.limit} bytes, {limit}); retry later"
        )
        self._reject(EarlyResponse(503, message, limit))

    def _reject_too_large(self) -> None:
        limit = setting_name("max_manifest_size")
        message = f"The body exceeds {self._max_body()} bytes ({limit})"
        self._reject(EarlyResponse(413, message, limit))

    def _reject(self, response: EarlyResponse) -> None:
        super()._reject(response)
        if self._body is not None:
            self._body.close()


def _directory() -> str:
    """Return the system's directory of temporary files (``TMPDIR``, else /tmp or the like)."""
    try:
        return gettempdir()
    except OSError:
        return "a temporary file"


class RequestNormalizer(Resource):
    """Passes requests with a valid head to ``routes``, and rejects all others.

    For a path that is not UTF-8, Klein would send HTML and log a traceback.
    """

    def __init__(self, routes: IResource, rules: RequestRules) -> None:
        super().__init__()
        self.isLeaf = True
        self._routes = routes
        self._rules = rules

    def render(self, request: Request) -> Any:
        head = RequestHead(request.method, request.uri, request.clientproto, request.requestHeaders)
        if not getattr(request, "head_validated", False):  # else done before its body was received
            early = validate_head(head, self._rules)
            if early is not None:
                return _respond(request, early)
        request.postpath = head.segments
        # Klein fails on some values of Host.
        host = origins.request_host(
            request.uri, request.clientproto, request.requestHeaders.getRawHeaders(b"host", [])
        )
        if host is not None and isinstance(request, ValidatedRequest):
            request.sent_host = host
        request.requestHeaders.setRawHeaders(b"Host", [b"localhost"])
        return self._routes.render(request)


class AuthResource(Resource):
    """Sets ``request.authenticated_user`` and passes the request to ``routes``, or rejects it.

    A request with a body is authenticated already, when its head is complete
    (:class:`ValidatedRequest`).
    """

    def __init__(
        self, routes: IResource, authenticator: Authenticator, rules: RequestRules
    ) -> None:
        super().__init__()
        self.isLeaf = True
        self._routes = routes
        self._authenticator = authenticator
        self._rules = rules

    def render(self, request: Any) -> Any:
        if request.authenticated_user is None:
            found = self._authenticator.try_authenticate(request)
            if not isinstance(found, CartdError):
                request.set_user(found)
            elif not self._rules.is_public(request.method, route_path(request.postpath)):
                for name, value in self._authenticator.headers(found):
                    request.responseHeaders.addRawHeader(name, value)
                _reject_unauthenticated(request, found, tokens=self._authenticator.tokens)
                return NOT_DONE_YET
        return self._routes.render(request)


def _reject_unauthenticated(request: Any, error: CartdError, *, tokens: bool) -> None:
    logged = not isinstance(error, NoCredentials)
    early = EarlyResponse.of(error, logged=logged)
    body = prepare_early(request, early)
    if request.method == b"GET" and prefers_html(header_field(request, "accept") or ""):
        body = sign_in_page(str(error), request.channel.rules.problem_base, tokens=tokens)
        for name, value in (*HEADERS, ("Content-Type", HTML), ("Content-Length", str(len(body)))):
            request.setHeader(name, value)
    if request.method != b"HEAD":
        request.write(body)
    request.finish()


Headers = Sequence[tuple[bytes, bytes]]
"""Names and values."""
RETRY_AFTER = "2"
"""Seconds after which a client may retry."""
STATUS_HEADER = b"X-Pacifica-Status"
REQUEST_ID = b"X-Request-ID"
RETRYABLE = frozenset({429, 503})
"""Statuses that get a Retry-After header."""


def serialize_error(
    peer: IAddress | None,
    response: EarlyResponse,
    *,
    context: LogContext,
    headers: Headers = (),
    method: bytes = b"",
    target: bytes = b"",
    accept: Sequence[bytes] = (),
    problem_base: str | None = None,
) -> bytes:
    """Return a complete HTTP response that closes the connection, and log the rejection.

    For input that is no complete request.  ``method``, ``target`` and ``accept``, the values of
    Accept, are as received; empty if they were not.  ``headers`` are added to those of the
    response.  ``problem_base``: see :class:`RequestRules`.

    Pacifica's clients read the status of a cart from two headers of every response to HEAD.  These
    are also set while the method is unknown, as it may be HEAD.
    """
    code, message, limit = response.code, response.message, response.limit
    if response.logged:
        log_rejection(
            code, message, limit, peer=peer, context=context, method=method, target=target
        )
    content_type, body = b"", b""
    if code != HTTPStatus.NO_CONTENT:
        facts = ErrorFacts(
            code=code,
            message=message,
            limit=limit,
            problem=response.problem,
            retry_after=int(RETRY_AFTER) if code in RETRYABLE else None,
            request_id=context.request_id,
        )
        content_type, body = serialize(facts, target, accept, problem_base)
    headers = [*response.headers, *headers]
    if code in RETRYABLE:
        headers = [*headers, (b"Retry-After", RETRY_AFTER.encode())]
    date = (b"Date", datetimeToString())
    headers = [date, (b"Cache-Control", NO_STORE.encode()), *headers]
    if body:
        length = b"%d" % len(body)
        content = [(b"Content-Type", content_type), (b"Content-Length", length)]
        headers = [*headers, *content]
    if method in (b"HEAD", b"") and code >= HTTPStatus.BAD_REQUEST:
        headers = [*headers, *_status_headers(message)]
    if method == b"HEAD":
        body = b""
    fields = b"".join(b"%s: %s\r\n" % header for header in headers)
    name = reason_phrase(code).encode()
    return b"HTTP/1.1 %d %s\r\nConnection: close\r\n%s\r\n%s" % (code, name, fields, body)


def failure_response(request: Request, failure: Failure) -> bytes:
    """Set status and headers of the response to an exception of a route; return its body."""
    error = failure.value
    if isinstance(error, CartdError):
        return prepare_failure(request, error)
    if isinstance(error, HTTPException):
        # An unknown path, or a redirect by Klein.
        return prepare_error(request, 404, "Not Found")
    log_internal_error(request, failure)
    return prepare_error(request, 500, INTERNAL_ERROR)


def prepare_failure(request: Request, error: CartdError) -> bytes:
    """Set status and headers of the response to an error; return its body."""
    return prepare_error(
        request,
        error.code,
        str(error),
        error.limit,
        problem=error.problem,
        faults=error.faults if isinstance(error, InvalidManifest) else (),
        cause=error.cause if isinstance(error, CartFailed) else None,
    )


def prepare_early(request: Request, early: EarlyResponse) -> bytes:
    """Set status and headers of an early response that is an error; return its body."""
    return prepare_error(
        request, early.code, early.message, early.limit, problem=early.problem, logged=early.logged
    )


def prepare_error(
    request: Request,
    code: int,
    message: str,
    limit: str | None = None,
    *,
    problem: Problem | None = None,
    faults: Sequence[Fault] = (),
    cause: str | None = None,
    logged: bool = True,
) -> bytes:
    """Set status and headers of an error response; return its body.

    The arguments are those of :class:`cartd.http.problems.ErrorFacts`.
    """
    if logged:
        log_rejection(
            code,
            message,
            limit,
            peer=request.getClientAddress(),
            context=context_of(request),
            method=request.method,
            target=request.uri,
        )
    facts = ErrorFacts(
        code=code,
        message=message,
        limit=limit,
        problem=problem,
        faults=faults,
        cause=cause,
        retry_after=int(RETRY_AFTER) if code in RETRYABLE else None,
        request_id=getattr(request, "request_id", None),
    )
    content_type, body = serialize(
        facts,
        request.uri,
        request.requestHeaders.getRawHeaders(b"accept", []),
        request.channel.rules.problem_base if isinstance(request, ValidatedRequest) else None,
    )
    request.setResponseCode(code, reason_phrase(code).encode() or None)
    request.setHeader(b"Cache-Control", NO_STORE)
    request.setHeader(b"Content-Type", content_type)
    request.setHeader(b"Content-Length", b"%d" % len(body))
    if code in RETRYABLE:
        request.setHeader(b"Retry-After", RETRY_AFTER.encode())
    if request.method == b"HEAD" and not request.responseHeaders.hasHeader(STATUS_HEADER):
        for name, value in _status_headers(message):
            request.setHeader(name, value)
    return body


def _status_headers(message: str) -> Headers:
    return [(STATUS_HEADER, b"error"), (b"X-Pacifica-Message", escape_header(message).encode())]


def _respond(request: Request, early: EarlyResponse) -> Any:
    """Send ``early`` as the response; return what a resource's ``render`` has to return."""
    for name, value in early.headers:
        request.setHeader(name, value)
    if early.code == HTTPStatus.NO_CONTENT:
        request.setResponseCode(early.code)
        request.finish()  # otherwise Twisted adds Content-Length, which 204 must not have
        return NOT_DONE_YET
    body = prepare_early(request, early)
    # Twisted logs a line if a response to HEAD has a body.
    return b"" if request.method == b"HEAD" else body
