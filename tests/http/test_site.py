"""The server's connections: ALPN and closing."""

from __future__ import annotations

from twisted.internet.testing import StringTransport

from cartd.http.connection import State
from cartd.http.request_limits import EarlyResponse
from tests.support.channel_client import GET, Connected


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


def test_connection_passes_through_its_states() -> None:
    client = Connected()
    states = [client.channel.state]

    def after(data: bytes) -> None:
        client.send(data)
        states.append(client.channel.state)

    after(GET[:5])
    after(GET[5:])
    client.download.end()
    states.append(client.channel.state)
    after(b"POST /u HTTP/1.1\r\n")
    after(b"Host: localhost\r\nContent-Length: 9\r\n\r\n")
    client.clock.advance(client.limits.body_timeout)
    states.append(client.channel.state)
    after(GET)
    client.channel.connectionLost()
    states.append(client.channel.state)
    assert states == [
        *(State.NEW, State.HEAD, State.SENDING, State.IDLE),
        *(State.HEAD, State.BODY, State.REJECTED, State.REJECTED, State.LOST),
    ]


def test_lost_connection_is_not_rejected() -> None:
    client = Connected()
    client.ask()
    client.channel.connectionLost()
    sent = client.transport.value()
    client.channel.reject(EarlyResponse(400, "late"))
    assert client.channel.state is State.LOST and client.transport.value() == sent
