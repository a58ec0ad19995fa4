"""The HTTP client through which the archive is asked: connections, their TLS and their limits."""

# Twisted leaves Agent, its pool and its policies without types.

from __future__ import annotations

import re
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Any

from OpenSSL.crypto import Error as OpenSSLError
from treq.client import HTTPClient
from treq.cookies import IndexableCookieJar
from twisted.internet.defer import Deferred
from twisted.internet.ssl import Certificate, platformTrust, trustRootFromCertificates
from twisted.web.client import (
    Agent,
    BrowserLikePolicyForHTTPS,
    HostnameCachingHTTPSPolicy,
    HTTPConnectionPool,
)
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from cartd.errors import ConfigError

IDLE_SECONDS = 30
"""How long an unused connection is kept; servers commonly close theirs after some more."""

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


def archive_client(
    reactor: Any, *, connections: int, connect_timeout: float, ca_file: Path | None
) -> tuple[HTTPClient, HTTPConnectionPool]:
    """A client that keeps up to ``connections`` idle connections, and their pool to close them.

    How many requests run at once is the caller's business.  ``https:`` is verified against the
    system's roots, or against those in ``ca_file`` (PEM) alone.  Raises :class:`ConfigError` if
    that file cannot be used.  Before the reactor stops, ``pool.closeCachedConnections()``.
    """
    pool = HTTPConnectionPool(reactor, persistent=True)
    pool.maxPersistentPerHost = connections
    pool.cachedConnectionTimeout = IDLE_SECONDS
    pool._factory.noisy = False  # two lines of log for each connection
    trust = platformTrust() if ca_file is None else _trusted(ca_file)
    agent = Agent(
        reactor,
        HostnameCachingHTTPSPolicy(BrowserLikePolicyForHTTPS(trust)),
        connectTimeout=connect_timeout,
        pool=pool,
    )
    no_cookies = IndexableCookieJar(DefaultCookiePolicy(allowed_domains=[]))
    return HTTPClient(_AsStored(agent), cookiejar=no_cookies), pool


def _trusted(ca_file: Path) -> Any:
    try:
        blocks = _CERTIFICATE.findall(ca_file.read_bytes())
        certificates = [Certificate.loadPEM(block) for block in blocks]
    except OSError as error:
        raise ConfigError(f"ca_file {ca_file} cannot be read: {error.strerror}") from error
    except (OpenSSLError, ValueError) as error:
        raise ConfigError(f"ca_file {ca_file} holds a certificate that cannot be read") from error
    if not certificates:
        raise ConfigError(f"ca_file {ca_file} holds no certificate in PEM form")
    return trustRootFromCertificates(certificates)


@implementer(IAgent)
class _AsStored:
    """Asks for bytes as they are stored, and leaves alone what comes encoded all the same.

    treq offers gzip in every request and decodes it silently, but only by its lower-case name.
    Names of codings are case-insensitive (RFC 9110, section 8.4.1): in capitals they still say what
    they said.
    """

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
        return self._agent.request(method, uri, headers, bodyProducer).addCallback(_undecoded)


def _undecoded(response: IResponse) -> IResponse:
    encodings = response.headers.getRawHeaders(b"Content-Encoding")
    if encodings:
        capitals = [encoding.upper() for encoding in encodings]
        response.headers.setRawHeaders(b"Content-Encoding", capitals)
    return response
