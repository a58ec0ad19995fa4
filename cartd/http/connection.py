"""One client connection: the limits and timeouts of its requests and responses, and its end."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from math import inf
from typing import Any, Final

from twisted.internet.interfaces import IDelayedCall, IReactorTime, ISSLTransport, ITCPTransport
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers

from cartd.http import origins
from cartd.http.event_stream import EventProducer
from cartd.http.request import REQUEST_ID, RequestChannel, serialize_error
from cartd.http.request_limits import EarlyResponse, Limits, setting_name
from cartd.tracing import LogContext

NO_HEADERS: Final = Headers()
CLOSE_TIMEOUT = 15.0
"""Seconds a connection may take to close, while its last response is still being sent."""


class State(Enum):
    """What a connection does."""

    NEW = auto()
    """No byte of its first request has arrived."""
    IDLE = auto()
    """It waits for the next request."""
    HEAD = auto()
    """It receives the head of a request."""
    BODY = auto()
    """It receives the body."""
    RESPONSE = auto()
    """The request is complete, and has no response yet or a short one."""
    SENDING = auto()
    """A producer sends the response, such as a cart."""
    STREAMING = auto()
    """Events are sent, now and then."""
    REJECTED = auto()
    """An error was sent; input is ignored until the connection is closed."""
    LOST = auto()
    """It is closed."""

    __hash__ = object.__hash__  # faster: each request has several transitions


class _Event(Enum):
    HEAD_START = auto()
    HEAD_END = auto()
    BODY_END = auto()
    SENDING_START = auto()
    STREAMING_START = auto()
    SENDING_END = auto()
    RESPONSE_END = auto()
    REJECT = auto()
    LOSE = auto()

    __hash__ = object.__hash__


_REJECTED: Final = State.REJECTED
_OPEN: Final = tuple(state for state in State if state not in (State.REJECTED, State.LOST))
_TRANSITIONS: Final[dict[tuple[State, _Event], State]] = {
    (State.NEW, _Event.HEAD_START): State.HEAD,
    (State.IDLE, _Event.HEAD_START): State.HEAD,
    (State.HEAD, _Event.HEAD_END): State.BODY,
    (State.BODY, _Event.BODY_END): State.RESPONSE,
    (State.RESPONSE, _Event.SENDING_START): State.SENDING,
    (State.SENDING, _Event.SENDING_END): State.RESPONSE,
    (State.RESPONSE, _Event.STREAMING_START): State.STREAMING,
    (State.STREAMING, _Event.SENDING_END): State.RESPONSE,
    (State.RESPONSE, _Event.RESPONSE_END): State.IDLE,
    **{(state, _Event.REJECT): State.REJECTED for state in _OPEN},
    **{(state, _Event.LOSE): State.LOST for state in State},
}
"""Any other event leaves the state as it is."""


class LimitedChannel(RequestChannel):
    """Rejects invalid, oversized and late requests with JSON, and aborts stalled downloads.

    The site sets ``site``, ``limits``, ``rules`` and ``on_disconnect``, which is called when the
    connection is lost, and ``temp_file_limit`` if its requests are
    :class:`cartd.http.request.LimitedRequest`.
    """

    transport: Any
    limit_name: Callable[[str], str | None] = staticmethod(setting_name)
    """Returns the setting of a limit, or None if the limit cannot be configured."""
    on_disconnect: Any
    _timeouts: Timeouts
    _state = State.NEW
    _abort_call: IDelayedCall | None = None
    _host: Any = None
    _secure: bool | None = None

    def connectionMade(self) -> None:
        self.MAX_LENGTH = self.totalHeadersSize = self.limits.max_header_size
        self.maxHeaders = self.limits.max_headers
        self._timeouts = Timeouts(self.limits, self.site.reactor, self._on_timeout)
        self._timeouts.on_connect()
        super().connectionMade()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._handle(_Event.LOSE)
        self._timeouts.stop()
        self._schedule_abort(None)
        super().connectionLost(reason)
        self.on_disconnect()

    @property
    def state(self) -> State:
        return self._state

    def _handle(self, event: _Event) -> None:
        self._state = _TRANSITIONS.get((self._state, event), self._state)

    # --- receiving

    def dataReceived(self, data: bytes) -> None:
        if self._state is _REJECTED:
            return
        self._timeouts.on_data()
        super().dataReceived(data)
        if self.unparsed:
            self._on_head_data()

    def lineReceived(self, line: bytes) -> bool | None:
        """Return whether to stop reading."""
        if self._state is _REJECTED:
            return True
        if line:
            self._on_head_data()
        if self.header_size + len(line) > self.totalHeadersSize:
            self.lineLengthExceeded(line)
        else:
            super().lineReceived(line)
        return self.state is _REJECTED  # meanwhile

    def headerReceived(self, line: bytes) -> bool:
        if self._state is _REJECTED:
            return False
        if self.header_count >= self.maxHeaders:
            self._reject_head("headers", "max_headers", self.maxHeaders)
            return False
        try:
            return bool(super().headerReceived(line))
        except ValueError:
            # Python does not parse a Content-Length of thousands of digits.
            self.on_bad_request()
            return False

    def lineLengthExceeded(self, line: bytes) -> None:
        self._reject_head("bytes", "max_header_size", self.totalHeadersSize)

    def is_rejected_later(self, header: bytes, data: bytes) -> bool:
        # Twisted answers 400 to an unknown coding and accepts "identity" (RFC 9112, section 7).
        # Here the request is rejected when its head is complete.
        return header == b"Transfer-Encoding" and data.lower() != b"chunked"

    def allHeadersReceived(self) -> None:
        self._handle(_Event.HEAD_END)
        self._timeouts.on_body_start()
        super().allHeadersReceived()

    def allContentReceived(self) -> None:
        self._handle(_Event.BODY_END)
        self._timeouts.on_request_complete()
        super().allContentReceived()

    def requestDone(self, request: Any) -> None:
        self._handle(_Event.RESPONSE_END)
        self._timeouts.on_response_end()
        super().requestDone(request)

    def pause_for_disk(self, paused: bool) -> None:
        self._timeouts.on_disk_pause(paused)
        if paused:
            self.transport.pauseProducing()
        elif self._state in _OPEN:
            self.transport.resumeProducing()

    def _on_head_data(self) -> None:
        if self._state in (State.NEW, State.IDLE):
            self._timeouts.on_header_start(first=self._state is State.NEW)
            self._handle(_Event.HEAD_START)

    # --- rejecting

    def reject(self, response: EarlyResponse) -> None:
        if self._state in _OPEN:
            self._handle(_Event.REJECT)
            self._timeouts.stop()
            context = self._log_context()
            answer = self._serialize(response, context)
            self.transport.write(answer)
            sent = len(answer.partition(b"\r\n\r\n")[2])
            self.site.log_rejection(self, response.code, sent, context)
            self.unregister_from_transport()
            self._schedule_abort(lingering_close(self.transport, self.callLater))

    def _log_context(self) -> LogContext:
        """Return the context of the request being received; a new one if none is."""
        return self.requests[-1].log_context if self.requests else LogContext()

    def _request_id(self, context: LogContext) -> list[tuple[bytes, bytes]]:
        """Return the header that names the request, if responses have it."""
        if not self.sends_request_id:
            return []
        return [(REQUEST_ID, context.request_id.encode("ascii"))]

    def _serialize(self, response: EarlyResponse, context: LogContext) -> bytes:
        """Return the error with all its headers, and log the rejection."""
        sent = self.requests[-1].requestHeaders if self.requests else NO_HEADERS
        headers = self._request_id(context)
        if self.requests:
            headers += origins.cors_headers(sent, self.rules.allowed_origins)
        method, target, _ = self.first_line()
        return serialize_error(
            self.getPeer(),
            response,
            context=context,
            headers=headers,
            method=method,
            target=target,
            accept=sent.getRawHeaders(b"accept", []),
            problem_base=self.rules.problem_base,
        )

    def _reject_head(self, what: str, limit: str, maximum: int) -> None:
        name = self.limit_name(limit)
        message = f"The request head exceeds {maximum} {what}{_named_setting(name)}"
        self.reject(EarlyResponse(431, message, name))

    def on_bad_request(self) -> None:
        # Twisted's own response has neither Content-Length nor body.
        self.reject(EarlyResponse(400, "Invalid HTTP request"))

    def _on_timeout(self, timeout: Timeout) -> None:
        if timeout is Timeout.KEEPALIVE:
            self._schedule_abort(self.callLater(CLOSE_TIMEOUT, self.transport.abortConnection))
            self.loseConnection()
        elif timeout is Timeout.STALL:
            # Only logged: the client does not read.
            late = self._late("The client read too little in", "stall_timeout")
            self._serialize(late, self._log_context())
            self.transport.abortConnection()
        elif timeout is Timeout.EVENTS:
            late = EarlyResponse(408, f"Events were not read for {EVENTS_TIMEOUT:g} s")
            self._serialize(late, self._log_context())
            self.transport.abortConnection()
        elif timeout is Timeout.HEADER:
            self.reject(self._late("The head is incomplete after", "header_timeout"))
        elif timeout is Timeout.BODY:
            self.reject(self._late("The body is incomplete after", "body_timeout"))
        else:
            self.reject(self._late("No body data arrived for", "idle_timeout"))

    def _late(self, what: str, limit: str) -> EarlyResponse:
        name = self.limit_name(limit)
        seconds = getattr(self.limits, limit)
        return EarlyResponse(408, f"{what} {seconds:g} s{_named_setting(name)}", name)

    def getHost(self) -> Any:
        # Cached, as is isSecure: both are called for every request.
        if self._host is None:
            self._host = super().getHost()
        return self._host

    def isSecure(self) -> bool:
        if self._secure is None:
            self._secure = bool(super().isSecure())
        return self._secure

    # --- closing

    def _schedule_abort(self, call: IDelayedCall | None) -> None:
        """Make ``call`` the one that aborts the connection; cancel the one before."""
        if self._abort_call is not None and self._abort_call.active():
            self._abort_call.cancel()
        self._abort_call = call

    def disconnect(self) -> None:
        """Close the connection after its response was sent; abort it during a download or stream.

        An abort discards all bytes that the client has not read, even of a finished download.
        """
        if self._state is State.LOST or self.transport is None:
            return
        if self._state in (State.SENDING, State.STREAMING):
            self.transport.abortConnection()
        else:
            self.loseConnection()

    # --- sending: a client that stops reading keeps its cart pinned, hence the stall timeout

    def writeHeaders(self, version: bytes, code: bytes, reason: bytes, headers: Any) -> None:
        # Twisted writes four chunks per field, each of which the transport handles separately.
        head = [b"%s %s %s\r\n" % (version, code, reason)]
        fields = self._request_id(self.requests[0].log_context)
        for name, values in headers.getAllRawHeaders():
            fields += [(name, value) for value in values]
        head += [b"%s: %s\r\n" % field for field in fields]
        head.append(b"\r\n")
        self.transport.write(b"".join(head))

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        events = isinstance(producer, EventProducer)
        self._handle(_Event.STREAMING_START if events else _Event.SENDING_START)
        super().registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        super().unregisterProducer()
        self.on_send_pause(False, 0)
        self._handle(_Event.SENDING_END)

    def pauseProducing(self) -> None:
        self.on_send_pause(True, self._bytes_sent())
        super().pauseProducing()

    def resumeProducing(self) -> None:
        self.on_send_pause(False, self._bytes_sent())
        super().resumeProducing()

    def on_send_pause(self, paused: bool, sent: int) -> None:
        if self._state is State.SENDING:
            self._timeouts.on_send_pause(paused, sent)
        elif self._state is State.STREAMING:
            self._timeouts.on_events_pause(paused)

    def _bytes_sent(self) -> int:
        return self.requests[0].sentLength if self.requests else 0


def _named_setting(setting: str | None) -> str:
    return "" if setting is None else f" ({setting})"


MIN_PROGRESS = 64 * 2**10
"""Bytes of a download that a client must read within ``stall_timeout``.  Otherwise a client that
reads one byte at a time would keep its cart pinned for ever."""
EVENTS_TIMEOUT = 60.0
"""Seconds in which a client must receive the events that fill the buffers of its connection."""


class Timeout(Enum):
    """The timeout that is running."""

    KEEPALIVE = auto()
    """Waiting for the first or the next request."""
    HEADER = auto()
    """Waiting for the rest of a request's head."""
    BODY = auto()
    """Waiting for the rest of the body, limited by ``body_timeout``."""
    IDLE = auto()
    """Waiting for more of the body, limited by ``idle_timeout``."""
    STALL = auto()
    """Waiting for the client to read more of the response."""
    EVENTS = auto()
    """Waiting for the client to read the events sent so far, limited by ``EVENTS_TIMEOUT``."""


_IN_BODY = (Timeout.BODY, Timeout.IDLE)


class Timeouts:
    """The timeouts of one connection; calls ``on_timeout`` when the first expires, then stops.

    The current timeout changes several times per request, so a change only sets its deadline.  One
    delayed call serves all; if it fires before the deadline, it is scheduled again.
    """

    def __init__(
        self, limits: Limits, clock: IReactorTime, on_timeout: Callable[[Timeout], object]
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._on_timeout = on_timeout
        self._call: IDelayedCall | None = None
        self._fires_at = inf
        self._running = Timeout.KEEPALIVE
        self._deadline = inf
        self._body_deadline = inf
        self._paused_at = 0.0
        self._stall_left = limits.stall_timeout
        """Seconds left for the next ``MIN_PROGRESS`` bytes of the download."""
        self._sent_at_start = 0
        """Bytes sent when ``_stall_left`` was reset."""

    def on_connect(self) -> None:
        """Start the timeout of the first head."""
        self._start(Timeout.KEEPALIVE, self._limits.header_timeout)

    def on_header_start(self, *, first: bool) -> None:
        """The first bytes of a request arrived.  For the ``first`` one the timeout runs already."""
        if first:
            self._running = Timeout.HEADER
        else:
            self._start(Timeout.HEADER, self._limits.header_timeout)

    def on_body_start(self) -> None:
        self._body_deadline = self._clock.seconds() + self._limits.body_timeout
        self._running = Timeout.BODY
        self.on_data()

    def on_data(self) -> None:
        """Data arrived.  Restarts the idle timeout within a body, else does nothing."""
        if self._running in _IN_BODY:
            left = self._body_deadline - self._clock.seconds()
            idle = self._limits.idle_timeout
            self._start(Timeout.IDLE if idle < left else Timeout.BODY, min(idle, left))

    def on_disk_pause(self, paused: bool) -> None:
        """Suspend the timeouts of the body while reading is paused."""
        now = self._clock.seconds()
        if self._running in _IN_BODY and paused and self._deadline != inf:
            self._paused_at, self._deadline = now, inf
        elif self._running in _IN_BODY and not paused and self._deadline == inf:
            self._body_deadline += now - self._paused_at
            self.on_data()

    def on_request_complete(self) -> None:
        """The request is complete: no timeout runs while the service works."""
        self._running, self._deadline = Timeout.STALL, inf
        self._stall_left, self._sent_at_start = self._limits.stall_timeout, 0

    def on_response_end(self) -> None:
        """Start the keepalive timeout."""
        self._start(Timeout.KEEPALIVE, self._limits.keepalive_timeout)

    def on_send_pause(self, paused: bool, sent: int) -> None:
        """Run the stall timeout while the client has not read all of the ``sent`` bytes.

        It is suspended while the connection waits for the service.
        """
        if paused:
            if sent - self._sent_at_start >= MIN_PROGRESS:
                self._stall_left, self._sent_at_start = self._limits.stall_timeout, sent
            self._start(Timeout.STALL, self._stall_left)
        elif self._deadline != inf:
            self._stall_left = max(self._deadline - self._clock.seconds(), 0.0)
            self._deadline = inf

    def on_events_pause(self, paused: bool) -> None:
        """Run the timeout of events while the client has not read those that were sent.

        None runs between events: a stream is silent for as long as its cart does not change.
        """
        if paused:
            self._start(Timeout.EVENTS, EVENTS_TIMEOUT)
        else:
            self._deadline = inf

    def stop(self) -> None:
        self._deadline = inf
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _start(self, timeout: Timeout, seconds: float) -> None:
        self._running = timeout
        self._deadline = self._clock.seconds() + seconds
        if self._call is None or self._deadline < self._fires_at:
            self._schedule(seconds)

    def _schedule(self, seconds: float) -> None:
        self._fires_at = self._clock.seconds() + seconds
        if self._call is None:
            self._call = self._clock.callLater(seconds, self._check)
        else:
            self._call.reset(seconds)

    def _check(self) -> None:
        self._call = None
        left = self._deadline - self._clock.seconds()
        if self._deadline == inf:
            return
        if left > 0:
            self._schedule(left)
        else:
            self._deadline = inf
            self._on_timeout(self._running)


LINGER_TIMEOUT = 2.0
"""Seconds for which input is ignored before the connection is aborted."""


def lingering_close(transport: Any, call_later: Callable[..., IDelayedCall]) -> IDelayedCall:
    """Close the sending side; abort the connection if the client does not close it in time.

    Closing a socket with unread bytes resets the connection, and the client's system may then
    discard the response before the client has read it (RFC 9112, section 9.6).

    The caller must ignore all further input, and cancel the returned call, which aborts the
    connection, when the connection is lost.
    """
    if ITCPTransport.providedBy(transport) and not ISSLTransport.providedBy(transport):
        transport.loseWriteConnection()
    else:
        transport.loseConnection()
    return call_later(LINGER_TIMEOUT, transport.abortConnection)
