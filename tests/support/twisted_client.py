"""A client of the archive over Twisted's own agent: what cartd's is held against."""

from __future__ import annotations

from typing import Any

from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.components import proxyForInterface
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IPolicyForHTTPS, IResponse
from zope.interface import implementer

from cartd.archive.client import IDLE_SECONDS, NoCookies


def twisted_client(
    reactor: Any, *, connections: int, connect_timeout: float, policy: IPolicyForHTTPS
) -> tuple[HTTPClient, HTTPConnectionPool]:
    """As :func:`cartd.archive.client.http_client`."""
    pool = HTTPConnectionPool(reactor, persistent=True)
    pool.maxPersistentPerHost = connections
    pool.cachedConnectionTimeout = IDLE_SECONDS
    agent = Agent(reactor, policy, connectTimeout=connect_timeout, pool=pool)
    return HTTPClient(_Levelled(agent), cookiejar=NoCookies()), pool


@implementer(IAgent)
class _Levelled:
    """Twisted's agent, without the differences that have nothing to do with HTTP."""

    def __init__(self, agent: IAgent) -> None:
        self._agent = agent

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        headers = Headers() if headers is None else headers.copy()
        headers.setRawHeaders(b"Accept-Encoding", [b"identity"])
        cancelled = False

        def cancel(_: Deferred[IResponse]) -> None:
            nonlocal cancelled
            cancelled = True
            asked.cancel()

        def fail(failure: Failure) -> None:
            # What a cancelled request fails with depends on how far it came.
            if not cancelled:
                answered.errback(failure)

        asked = self._agent.request(method, uri, headers, bodyProducer)
        answered: Deferred[IResponse] = Deferred(cancel)
        asked.addCallbacks(lambda response: answered.callback(_Answer(response)), fail)
        return answered


class _Answer(proxyForInterface(IResponse)):  # type: ignore[misc]
    """Does not decode the body, unlike treq, and delivers it over a transport that can abort."""

    def __init__(self, original: IResponse) -> None:
        super().__init__(original)
        codings = original.headers.getRawHeaders(b"Content-Encoding")
        if codings:
            capitals = [coding.upper() for coding in codings]
            original.headers.setRawHeaders(b"Content-Encoding", capitals)

    def deliverBody(self, protocol: IProtocol) -> None:
        relay = _Relay(protocol)
        try:
            self.original.deliverBody(relay)
        except CancelledError:
            return
        # Twisted resumes the socket at the end of deliverBody, whatever was said meanwhile.
        if relay.paused:
            relay.pauseProducing()


class _Relay(Protocol):
    transport: Any

    def __init__(self, protocol: IProtocol) -> None:
        self._protocol = protocol
        self._aborted = False
        self.paused = False

    def connectionMade(self) -> None:
        self._protocol.makeConnection(self)  # type: ignore[arg-type]

    def dataReceived(self, data: bytes) -> None:
        self._protocol.dataReceived(data)
        if self._aborted:
            # Keeps the parser from taking the dropped connection for one that can be used again.
            raise CancelledError

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._protocol.connectionLost(reason)

    def pauseProducing(self) -> None:
        self.paused = True
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        self.paused = False
        self.transport.resumeProducing()

    def abortConnection(self) -> None:
        """Its own transport passes on ``loseConnection`` only, which waits for TLS's goodbye."""
        self._aborted = True
        real = self.transport._producer
        if real is not None:
            real.abortConnection()
