"""The HTTP client through which the archive is asked: connections, their TLS and their limits."""

# Twisted leaves Agent, its pool and its policies without types.

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from OpenSSL.crypto import Error as OpenSSLError
from treq.client import HTTPClient
from treq.cookies import IndexableCookieJar
from twisted.internet.ssl import Certificate, platformTrust, trustRootFromCertificates
from twisted.web.client import BrowserLikePolicyForHTTPS, HostnameCachingHTTPSPolicy
from twisted.web.iweb import IPolicyForHTTPS

from cartd.archive.agent import Agent, Pool
from cartd.errors import ConfigError

IDLE_SECONDS = 30
"""How long an unused connection is kept; servers commonly close theirs after some more."""

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


def archive_client(
    reactor: Any,
    *,
    connections: int,
    connect_timeout: float,
    ca_file: Path | None,
    answered: Callable[[bool], object] = lambda welcome: None,
) -> tuple[HTTPClient, Pool]:
    """A client that keeps up to ``connections`` idle connections, and their pool to close them.

    How many requests run at once is the caller's business; ``answered`` is told after each whether
    the archive would have its connection used again.  ``https:`` is verified against the
    system's roots, or against those in ``ca_file`` (PEM) alone.  Raises :class:`ConfigError` if
    that file cannot be used.  Before the reactor stops, ``pool.closeCachedConnections()``.
    """
    pool = Pool(reactor, kept=connections, idle_seconds=IDLE_SECONDS, answered=answered)
    agent = Agent(reactor, pool, tls_policy(ca_file), connect_timeout=connect_timeout)
    return HTTPClient(agent, cookiejar=NoCookies()), pool


def tls_policy(ca_file: Path | None) -> IPolicyForHTTPS:
    """Whom to believe: see :func:`archive_client`."""
    trust = platformTrust() if ca_file is None else _trusted(ca_file)
    return HostnameCachingHTTPSPolicy(BrowserLikePolicyForHTTPS(trust))


class NoCookies(IndexableCookieJar):
    """A jar that takes no cookies and gives none: an archive has no sessions."""

    def add_cookie_header(self, request: Any) -> None:
        pass

    def extract_cookies(self, response: Any, request: Any) -> None:
        pass


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
