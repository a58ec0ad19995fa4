"""HTTP agent for treq's client: connections to the archive, their pool, and its addresses.

Strategy: a request reuses an idle connection if there is one.  The server may have closed that at
the same time, so a request that is safe to repeat is retried once, over a new connection, if the
reused one is lost without a byte.  A request has no timers here: the caller has one, and cancels.

A connection sends one request at a time, and parses its response as it comes.  The end of every
response is known to the byte, so a connection is reused only if exactly that much came; bytes
without a request close it.  The body of a request is sent while the response may come.  An early
response that is no success ends it (RFC 9112, section 9.5).  A connection on which a body was cut
short is not reused.

The connection used last is reused first, so that no more are kept open than are needed.

A name may stand for several servers, or for one over IPv4 and IPv6.  Each new connection begins at
the next address, which spreads the load.  If an address refuses, the next one is tried at once; if
it is silent, the next one is tried in parallel after a moment (Happy Eyeballs, RFC 8305, section
5).  An unreachable address is skipped until the next look-up, which comes early when no address is
left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from itertools import chain
from typing import Any, Final

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint, wrapClientTLS
from twisted.internet.error import ConnectionDone, DNSLookupError
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHostResolution,
    IReactorTime,
    IResolutionReceiver,
    IStreamClientEndpoint,
    ITCPTransport,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import RequestGenerationFailed, ResponseFailed, ResponseNeverReceived
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IPolicyForHTTPS, IResponse
from zope.interface import implementer

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


@implementer(IAgent)
class Agent:
    """An agent for ``http:`` and ``https:`` that keeps its connections in ``pool``.

    ``policy`` says which certificates to accept; ``connect_timeout`` is in seconds.
    ``more_fields`` returns valid lines that are added to the head of a request.
    """

    def __init__(
        self,
        reactor: Any,
        pool: Pool,
        policy: IPolicyForHTTPS,
        *,
        connect_timeout: float,
        more_fields: Callable[[], bytes] = bytes,
    ) -> None:
        self._reactor = reactor
        self._pool = pool
        self._policy = policy
        self._connect_timeout = connect_timeout
        self._more_fields = more_fields
        self._addresses = Addresses(reactor)

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        """Fire with the response when its head has come; a cancel drops the connection at once.

        Fails with ``ValueError`` for an invalid request, such as one with a body of unknown length;
        with the endpoint's failure if connecting fails; and with
        :class:`~twisted.web.client.RequestGenerationFailed` (the body failed),
        :class:`~twisted.web.client.ResponseNeverReceived` or
        :class:`~twisted.web.client.ResponseFailed`, as Twisted's own agent.

        If the head of the response comes before all of the body is sent, a status below 300 does
        not end the sending; another one does, and the connection is not reused.
        """
        try:
            request = Request(method, uri, headers or Headers(), bodyProducer, self._more_fields())
        except ValueError:
            return fail(Failure())
        kept = self._pool.take(request.origin)
        if kept is None:
            return Deferred.fromCoroutine(self._send_anew(request))
        answered = kept.send(request)
        if request.retryable:
            answered.addErrback(self._retry, request)
        return answered

    def _retry(self, reason: Failure, request: Request) -> Failure | Deferred[IResponse]:
        if reason.check(ResponseNeverReceived):
            return Deferred.fromCoroutine(self._send_anew(request))
        return reason

    async def _send_anew(self, request: Request) -> IResponse:
        """Send the request over a new connection."""
        origin = request.origin
        addresses = await self._addresses.resolve(origin)
        factory = Factory.forProtocol(lambda: Connection(origin, self._pool))
        factory.noisy = False
        attempts = HappyEyeballs(
            self._reactor,
            addresses,
            lambda address: self._endpoint(origin, address).connect(factory),
            lambda address: self._addresses.mark_unreachable(origin, address),
        )
        connection: Connection = await attempts.connected
        return await connection.send(request)

    def _endpoint(self, origin: Origin, address: str) -> IStreamClientEndpoint:
        kind: Any = TCP6ClientEndpoint if ":" in address else TCP4ClientEndpoint
        endpoint: IStreamClientEndpoint = kind(
            self._reactor, address, origin.port, timeout=self._connect_timeout
        )
        if origin.scheme != "https":
            return endpoint
        creator = self._policy.creatorForNetloc(origin.host.encode("ascii"), origin.port)
        return wrapClientTLS(creator, endpoint)


LARGE_BODY: Final = 1 << 20
"""Bytes of a body from which on it is read in large pieces, as is one of unknown length."""
LARGE_READ: Final = 1 << 18
"""Bytes of such a piece: fewer iterations of the reactor; more would exceed the CPU's cache."""
DEFAULT_READ: Final = 1 << 16
"""Bytes that Twisted reads at once by default."""


class Connection(Protocol):
    """A connection to ``origin``; only the caller that took it from the pool may :meth:`send`."""

    transport: Any

    def __init__(self, origin: Origin, pool: Pool) -> None:
        self.origin = origin
        self.idle_since = 0.0
        self._pool = pool
        self._waiting: tuple[Request, Deferred[IResponse]] | None = None
        """The request that waits for the head of its response."""
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

    def send(self, request: Request) -> Deferred[IResponse]:
        """Fire with the response when its head has come; a cancel aborts the connection."""
        answered: Deferred[IResponse] = Deferred(self._cancel)
        self._waiting = request, answered
        self._silent = True
        self.transport.write(request.head)
        if request.body is not None:
            self._upload = Upload(request.body, self.transport, self._upload_ended)
            self._upload.start()
        return answered

    def _cancel(self, _: Deferred[IResponse]) -> None:
        self._waiting = None
        self.abort()

    def close(self) -> None:
        """Close the idle connection in good order."""
        self._ending = True
        self._pool.ending(self)
        self.transport.loseConnection()

    def abort(self) -> None:
        """Drop the connection now; over TLS, too, without waiting for the peer's close_notify."""
        if not self._lost:
            self._ending = True
            self._pool.ending(self)
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
        elif self._waiting is not None:
            try:
                self._read_head(*self._waiting, data)
            except BadResponse:
                self._reject_response()
        else:
            # No request is pending: a 408 before a close, or bytes of no response (section 9.2).
            self.abort()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._ending = self._lost = True
        self._pool.lost(self)
        self._stop_upload()
        closed = reason.check(ConnectionDone) and isinstance(self._framing, UntilClosed)
        if self._body is not None and closed:
            self._body.finish(Failure(PotentialDataLoss()))
        else:
            kind = ResponseNeverReceived if self._silent else ResponseFailed
            self._fail_waiting(Failure(kind([reason])))

    def _read_head(self, request: Request, answered: Deferred[IResponse], data: bytes) -> None:
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
            head = Head(data[:end], to_head=request.method == b"HEAD")
            data = data[end:]
            if head.code >= 200:
                self._on_head(head, request, answered, data)
                return
            # An interim response, which is ignored (RFC 9110, section 15.2).
            self._interim += end
            if not data:
                return

    def _on_head(
        self, head: Head, request: Request, answered: Deferred[IResponse], rest: bytes
    ) -> None:
        self._waiting = None
        self._interim = 0
        self._persistent = head.persistent
        self._framing = framing(head)
        if head.code >= 300 and self._upload is not None:
            self._persistent = False
            self._stop_upload()
        self._body = body = Body(self)
        response = Response(head, request, body)
        _prevent_decoding(response.headers)
        self._read_body(body, rest)
        if head.length == 0:
            # Free for the next request of the caller, which may be sent by the callback.
            body.release_connection()
        elif not self._framing.complete and (head.length is None or head.length >= LARGE_BODY):
            self._read_up_to(LARGE_READ)
        answered.callback(response)
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
            self._pool.on_response(False)
            if self._upload is None:
                self.close()
            else:
                self.abort()
            return
        if self._large_reads:
            self._read_up_to(DEFAULT_READ)
        self.resume()
        if self._upload is None:
            self._pool.put(self)
        else:
            self._pool.ending(self)

    def _upload_ended(self, reason: Failure | None) -> None:
        """The body of the request has been sent, or failed for this reason."""
        self._upload = None
        if reason is not None:
            self.abort()
            self._fail_waiting(Failure(RequestGenerationFailed([reason])))
        elif self._waiting is None and self._body is None:
            self._release()

    def _stop_upload(self) -> None:
        """Send no more of the body; the connection still has to be aborted."""
        if self._upload is not None:
            self._upload.stopProducing()

    def _read_up_to(self, size: int) -> None:
        self._large_reads = size == LARGE_READ
        # Over TLS the transport below reads.
        getattr(self.transport, "transport", self.transport).bufferSize = size

    def _reject_response(self) -> None:
        """Fail the request with the exception being handled, and drop the connection."""
        reason = Failure(ResponseFailed([Failure()]))
        self.abort()
        self._fail_waiting(reason)

    def _fail_waiting(self, reason: Failure) -> None:
        """Fail the request or the body that waits."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting[1].errback(reason)
        elif self._body is not None:
            self._body.fail(reason)


def _prevent_decoding(headers: Headers) -> None:
    """Keep treq from decoding an encoded body: its bytes would not be those of the file.

    treq knows gzip by its lower-case name only.  Names of codings are case-insensitive (RFC 9110,
    section 8.4.1), so capitals do not change their meaning.
    """
    codings = headers.getRawHeaders(b"Content-Encoding")
    if codings is not None:
        headers.setRawHeaders(b"Content-Encoding", [coding.upper() for coding in codings])


class Pool:
    """Pool of up to ``max_idle`` idle connections to each origin, each for ``idle_seconds``.

    ``on_response`` is called after each response with whether its connection is reusable.
    """

    def __init__(
        self,
        clock: IReactorTime,
        *,
        max_idle: int,
        idle_seconds: float,
        on_response: Callable[[bool], object] = lambda reusable: None,
    ) -> None:
        self._clock = clock
        self._max_idle = max_idle
        self._idle_seconds = idle_seconds
        self.on_response = on_response
        self._idle: dict[Origin, deque[Connection]] = {}
        self._ending: set[Connection] = set()
        self._idle_timer: IDelayedCall | None = None
        self._closed = False
        self._waiting: list[Deferred[None]] = []

    def take(self, origin: Origin) -> Connection | None:
        """Return an idle connection, if there is one."""
        idle = self._idle.get(origin)
        return idle.pop() if idle else None

    def put(self, connection: Connection) -> None:
        """The connection is free and reusable."""
        self._ending.discard(connection)
        self.on_response(True)
        if self._closed:
            connection.close()
            return
        idle = self._idle.setdefault(connection.origin, deque())
        idle.append(connection)
        connection.idle_since = self._clock.seconds()
        if len(idle) > self._max_idle:
            idle[0].close()
        if self._idle_timer is None:
            self._idle_timer = self._clock.callLater(self._idle_seconds, self._close_old)

    def ending(self, connection: Connection) -> None:
        """The connection has no request, and is about to be lost, or sends the rest of a body."""
        self._ending.add(connection)
        self._remove(connection)

    def lost(self, connection: Connection) -> None:
        self._remove(connection)
        self._ending.discard(connection)
        self._notify_if_closed()

    def closeCachedConnections(self) -> Deferred[None]:
        """Close all idle connections and keep none from now on; fire when all are closed.

        Connections that were being closed already, as after a cancelled request, are included.
        """
        self._closed = True
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        for connection in (*chain.from_iterable(self._idle.values()), *self._ending):
            connection.abort()
        closed: Deferred[None] = Deferred()
        self._waiting.append(closed)
        self._notify_if_closed()
        return closed

    def _close_old(self) -> None:
        self._idle_timer = None
        now = self._clock.seconds()
        for idle in self._idle.values():
            while idle and idle[0].idle_since + self._idle_seconds <= now:
                idle[0].close()
        waiting = [idle[0].idle_since for idle in self._idle.values() if idle]
        if waiting:
            wait = min(waiting) + self._idle_seconds - now
            self._idle_timer = self._clock.callLater(wait, self._close_old)

    def _remove(self, connection: Connection) -> None:
        idle = self._idle.get(connection.origin)
        if idle and connection in idle:
            idle.remove(connection)

    def _notify_if_closed(self) -> None:
        if not self._ending:
            waiting, self._waiting = self._waiting, []
            for closed in waiting:
                closed.callback(None)


ADDRESS_SECONDS: Final = 30.0
"""How long the addresses of a name are cached: about as long as an idle connection is kept.

With a server that closes each connection after its response there would be thousands of look-ups,
each of which takes longer than the rest of a request.
"""
ATTEMPT_SECONDS: Final = 0.25
"""How long one address may be silent before the next is tried, too (RFC 8305, section 8)."""


class Addresses:
    """DNS cache: addresses of names, as the reactor resolves them."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._cache: dict[Origin, tuple[deque[str], float]] = {}
        """Addresses not known to be unreachable, the next one first, and when they expire."""

    def resolve(self, origin: Origin) -> Deferred[list[str]]:
        """Fire with the addresses to try, in order; fail with ``DNSLookupError`` if none."""
        with suppress(ValueError):
            ip_address(origin.host)
            return succeed([origin.host])
        known, until = self._cache.get(origin, (None, 0.0))
        if known and self._reactor.seconds() < until:
            known.rotate(-1)
            return succeed(list(known))
        found: Deferred[list[str]] = Deferred()
        found.addCallback(self._keep, origin)
        self._reactor.nameResolver.resolveHostName(_Receiver(found), origin.host, origin.port)
        return found

    def mark_unreachable(self, origin: Origin, address: str) -> None:
        """Remove the address from the cache; without any left the name is looked up again."""
        known, _ = self._cache.get(origin, (None, 0.0))
        if known and address in known:
            known.remove(address)
            if not known:
                del self._cache[origin]

    def _keep(self, found: list[str], origin: Origin) -> list[str]:
        if not found:
            raise DNSLookupError(f"no results for hostname lookup: {origin.host}")
        self._cache[origin] = deque(found), self._reactor.seconds() + ADDRESS_SECONDS
        return found


@implementer(IResolutionReceiver)
class _Receiver:
    def __init__(self, found: Deferred[list[str]]) -> None:
        self._result = found
        self._found: dict[str, None] = {}

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        pass

    def addressResolved(self, address: IAddress) -> None:
        if isinstance(address, IPv4Address | IPv6Address):
            self._found[address.host] = None

    def resolutionComplete(self) -> None:
        self._result.callback(list(self._found))


class HappyEyeballs:
    """Connects to the first of ``addresses`` that accepts; ``connect`` begins one attempt.

    ``mark_unreachable`` is called for those that failed, or were silent while a later one accepted.
    """

    def __init__(
        self,
        reactor: Any,
        addresses: list[str],
        connect: Callable[[str], Deferred[Any]],
        mark_unreachable: Callable[[str], None],
    ) -> None:
        self.connected: Deferred[Any] = Deferred(lambda _: self._stop())
        """Fires with the protocol, or fails as the last attempt did; cancelling it ends all."""
        self._reactor = reactor
        self._left = deque(addresses)
        self._connect = connect
        self._mark_unreachable = mark_unreachable
        self._pending: dict[Deferred[Any], str] = {}
        self._timer: IDelayedCall | None = None
        self._done = False
        self._try_next()

    def _try_next(self) -> None:
        self._stop_timer()
        address = self._left.popleft()
        attempt = self._connect(address)
        self._pending[attempt] = address
        if self._left:
            self._timer = self._reactor.callLater(ATTEMPT_SECONDS, self._try_next)
        attempt.addCallbacks(
            self._succeeded, self._failed, callbackArgs=(attempt,), errbackArgs=(attempt,)
        )

    def _succeeded(self, protocol: Protocol, attempt: Deferred[Any]) -> None:
        del self._pending[attempt]
        for silent in self._pending.values():
            self._mark_unreachable(silent)
        self._stop()
        self.connected.callback(protocol)

    def _failed(self, reason: Failure, attempt: Deferred[Any]) -> None:
        address = self._pending.pop(attempt)
        if self._done:
            return
        self._mark_unreachable(address)
        if self._left:
            self._try_next()
        elif not self._pending:
            self._stop()
            self.connected.errback(reason)

    def _stop(self) -> None:
        self._done = True
        self._stop_timer()
        for attempt in list(self._pending):
            attempt.cancel()

    def _stop_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
