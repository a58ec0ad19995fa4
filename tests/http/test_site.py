"""The server's connections: ALPN and closing."""

from __future__ import annotations

from twisted.internet.testing import StringTransport

from tests.support.channel_client import Connected


def test_close_connections_aborts_downloads() -> None:
    client = Connected()
    idle = StringTransport()
    client.site.buildProtocol(None).makeConnection(idle)
    client.ask()
    client.site.close_connections()
    assert client.broken
    assert idle.disconnecting and not idle.disconnected


def test_alpn_offers_http_1_1_only() -> None:
    assert Connected().site.acceptableProtocols() == [b"http/1.1"]
