"""Timeouts of an ``ssl:`` endpoint, with a clock that the test advances."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.web.static import Data

from cartd.config import parse_tls_endpoint
from cartd.http.connection import CLOSE_TIMEOUT
from cartd.http.paths import REQUEST_RULES
from cartd.http.server import LimitedSite
from cartd.http.tls import ServerTls
from tests.support.server_limits import limits
from tests.support.volume_parts import InThisThread

NAME = "cartd.example"
LIMITS = limits()
BEGINS = int(LIMITS.header_timeout)
"""Seconds in which a client must have sent its first request."""


class Socket(StringTransport):
    def setTcpNoDelay(self, enabled: bool) -> None: ...


class Connected:
    """A client's connection to a site over TLS, with a clock that the test advances."""

    def __init__(self, directory: Path) -> None:
        pem = directory / "server.pem"
        authority = trustme.CA()
        authority.issue_cert(NAME).private_key_and_cert_chain_pem.write_to_path(str(pem))
        self.clock = Clock()
        site = LimitedSite(
            Data(b"here", "text/plain"), REQUEST_RULES, self.clock, LIMITS, threads=InThisThread()
        )
        tls = ServerTls(parse_tls_endpoint(f"ssl:443:privateKey={pem}"))
        factory = TLSMemoryBIOFactory(tls, False, site, self.clock)
        self.transport = Socket()
        self.server = factory.buildProtocol(None)
        assert self.server is not None
        self.server.makeConnection(self.transport)
        context = ssl.create_default_context()
        authority.configure_trust(context)
        self._to_client, self._to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = context.wrap_bio(self._to_client, self._to_server, server_hostname=NAME)

    @property
    def broken(self) -> bool:
        return bool(self.transport.disconnecting or self.transport.disconnected)

    def hello(self) -> bytes:
        """Return the ClientHello."""
        with pytest.raises(ssl.SSLWantReadError):
            self.client.do_handshake()
        return self._to_server.read()

    def exchange(self, step: Callable[[], object]) -> None:
        """Run a step of the client, passing bytes both ways until it is done."""
        while True:
            try:
                step()
            except ssl.SSLWantReadError:
                self.pump()
            else:
                self.pump()
                return

    def pump(self) -> None:
        assert self.server is not None
        if sent := self._to_server.read():
            self.server.dataReceived(sent)
        self.clock.advance(0)  # small writes are buffered until then
        self._to_client.write(self.transport.value())
        self.transport.clear()


@pytest.fixture
def connected(tmp_path: Path) -> Connected:
    return Connected(tmp_path)


def test_tls_client_that_never_sends_is_disconnected(connected: Connected) -> None:
    connected.clock.pump([1.0] * (BEGINS - 1))
    assert not connected.broken
    connected.clock.pump([1.0] * int(1 + CLOSE_TIMEOUT))
    assert connected.broken


def test_slow_tls_handshake_does_not_extend_the_timeout(connected: Connected) -> None:
    assert connected.server is not None
    for byte in connected.hello()[: BEGINS - 1]:
        connected.clock.advance(1)
        assert not connected.broken
        connected.server.dataReceived(bytes([byte]))
    connected.clock.pump([1.0] * int(1 + CLOSE_TIMEOUT))
    assert connected.broken


def test_tls_client_without_close_notify_is_disconnected(connected: Connected) -> None:
    connected.exchange(connected.client.do_handshake)
    connected.exchange(lambda: connected.client.write(b"GET / HTTP/1.0\r\n\r\n"))
    answers: list[bytes] = []
    connected.exchange(lambda: answers.append(connected.client.read()))
    assert answers[0].endswith(b"here")
    assert not connected.broken
    connected.clock.pump([1.0] * int(LIMITS.keepalive_timeout + CLOSE_TIMEOUT))
    assert connected.broken
