"""The server's connections: what they may agree on, what is logged of them, and how they end."""

from __future__ import annotations

from twisted.internet.testing import StringTransport

from tests.channel_client import Connected


def test_all_connections_can_be_ended_and_those_that_are_sending_break() -> None:
    client = Connected()
    idle = StringTransport()
    client.site.buildProtocol(None).makeConnection(idle)
    client.ask()
    client.site.close_connections()
    assert client.broken
    assert idle.disconnecting and not idle.disconnected


def test_over_tls_no_other_protocol_is_offered() -> None:
    assert Connected().site.acceptableProtocols() == [b"http/1.1"]
