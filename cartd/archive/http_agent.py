"""HTTP agent for treq's client: sends requests and returns their responses.

Strategy: a request is one object from its validation to the head of its response.  It reuses an
idle connection if there is one.  The server may have closed that at the same time, so a request
that is safe to repeat is retried once, over a new connection, if the reused one is lost without a
byte.  There are no timers here: the caller has one, and cancels.
"""

from __future__ import annotations

from typing import Any, cast

from twisted.internet.defer import Deferred, fail
from twisted.internet.endpoints import (
    TCP4ClientEndpoint,
    TCP6ClientEndpoint,
    wrapClientTLS,
)
from twisted.internet.interfaces import IAddress, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IPolicyForHTTPS, IResponse
from zope.interface import implementer

from cartd.archive.addresses import Addresses, HappyEyeballs
from cartd.archive.http_connection import Connection
from cartd.archive.http_messages import Response
from cartd.archive.pool import Pool
from cartd.archive.request import Origin, Request


@implementer(IAgent)
class Agent:
    """An agent for ``http:`` and ``https:`` that keeps its connections in ``pool``.

    ``policy`` says which certificates to accept; ``connect_timeout`` is in seconds.
    """

    def __init__(
        self, reactor: Any, pool: Pool, policy: IPolicyForHTTPS, *, connect_timeout: float
    ) -> None:
        self._reactor = reactor
        self._pool = pool
        self._policy = policy
        self._connect_timeout = connect_timeout
        self._addresses = Addresses(reactor)

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        """Fire with the response when its head has come; a cancel drops the connection at once.

        Fails with ``ValueError`` for an invalid request (bodies are not supported); with the
        endpoint's failure if connecting fails; and with
        :class:`~twisted.web.client.ResponseNeverReceived` or
        :class:`~twisted.web.client.ResponseFailed`, as Twisted's own agent.
        """
        try:
            if bodyProducer is not None:
                raise ValueError("a request cannot have a body")
            request = Request(method, uri, Headers() if headers is None else headers)
        except ValueError:
            return fail(Failure())
        exchange = _Exchange(self, request)
        kept = self._pool.take(request.origin)
        if kept is not None:
            exchange.begin(kept)
        else:
            exchange.connect()
        return exchange.answered

    def connect(self, origin: Origin) -> Deferred[Connection]:
        """Fire with a new connection, which puts itself into the pool when it is free."""
        return Deferred.fromCoroutine(self._connect(origin))

    async def _connect(self, origin: Origin) -> Connection:
        addresses = await self._addresses.resolve(origin)
        factory = _ConnectionFactory(origin, self._pool)
        attempts = HappyEyeballs(
            self._reactor,
            addresses,
            lambda address: self._endpoint(origin, address).connect(factory),
            lambda address: self._addresses.mark_unreachable(origin, address),
        )
        return cast(Connection, await attempts.connected)

    def _endpoint(self, origin: Origin, address: str) -> IStreamClientEndpoint:
        kind: Any = TCP6ClientEndpoint if ":" in address else TCP4ClientEndpoint
        endpoint: IStreamClientEndpoint = kind(
            self._reactor, address, origin.port, timeout=self._connect_timeout
        )
        if origin.scheme != "https":
            return endpoint
        creator = self._policy.creatorForNetloc(origin.host.encode("ascii"), origin.port)
        return wrapClientTLS(creator, endpoint)


class _ConnectionFactory(Factory):
    noisy = False

    def __init__(self, origin: Origin, pool: Pool) -> None:
        self._origin = origin
        self._pool = pool

    def buildProtocol(self, addr: IAddress | None) -> Connection:
        return Connection(self._origin, self._pool)


class _Exchange:
    """One request, until the head of its response."""

    __slots__ = (
        "_agent",
        "_cancelled",
        "_connecting",
        "_connection",
        "_fresh",
        "answered",
        "request",
    )

    def __init__(self, agent: Agent, request: Request) -> None:
        self.request = request
        self.answered: Deferred[IResponse] = Deferred(self._cancel)
        self._agent = agent
        self._connecting: Deferred[Connection] | None = None
        self._connection: Connection | None = None
        self._fresh = False
        self._cancelled = False

    def begin(self, connection: Connection) -> None:
        self._connecting = None
        self._connection = connection
        connection.send(self)

    def connect(self) -> None:
        self._fresh = True
        self._connection = None
        self._connecting = self._agent.connect(self.request.origin)
        self._connecting.addCallbacks(self.begin, self._fail)

    def respond(self, response: Response) -> None:
        _prevent_decoding(response.headers)
        self.answered.callback(response)

    def lost(self, reason: Failure, *, silent: bool) -> None:
        if silent and not self._fresh and not self._cancelled and self.request.retryable:
            self.connect()
        else:
            self._fail(reason)

    def _fail(self, reason: Failure) -> None:
        # A look-up that is cancelled fails as if the name were unknown.
        if not self._cancelled:
            self.answered.errback(reason)

    def _cancel(self, _: Deferred[IResponse]) -> None:
        self._cancelled = True
        if self._connecting is not None:
            self._connecting.cancel()
        elif self._connection is not None:
            self._connection.abort()


def _prevent_decoding(headers: Headers) -> None:
    """Keep treq from decoding an encoded body: its bytes would not be those of the file.

    treq knows gzip by its lower-case name only.  Names of codings are case-insensitive (RFC 9110,
    section 8.4.1), so capitals do not change their meaning.
    """
    codings = headers.getRawHeaders(b"Content-Encoding")
    if codings is not None:
        headers.setRawHeaders(b"Content-Encoding", [coding.upper() for coding in codings])
