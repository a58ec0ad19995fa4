"""Limits on connections, in total and per address, and the responses beyond them."""

from __future__ import annotations

import json
import resource
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.web.resource import Resource

from cartd.http.connection import LINGER_TIMEOUT
from cartd.http.paths import REQUEST_RULES
from cartd.http.server import MAX_OVERFLOW_CONNECTIONS, ConnectionLimits, LimitedSite
from cartd.runtime import raise_nofile_limit
from tests.support.server_limits import limits
from tests.support.volume_parts import InThisThread


def v4(host: str) -> IPv4Address:
    return IPv4Address("TCP", host, 1)


def v6(host: str) -> IPv6Address:
    return IPv6Address("TCP", host, 1)


def test_max_connections_and_release() -> None:
    counted = ConnectionLimits(2, 9)
    assert counted.acquire(v4("192.0.2.1")) is None
    assert counted.acquire(UNIXAddress("/a")) is None
    assert counted.acquire(v4("192.0.2.2")) == "max_connections"
    counted.release(UNIXAddress("/a"))
    assert counted.acquire(v4("192.0.2.2")) is None
    assert counted.acquire(None) == "max_connections"


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        (v4("192.0.2.1"), v4("192.0.2.1"), v4("192.0.2.2")),
        (v6("2001:db8::1"), v6("2001:db8::ffff:0:0:2"), v6("2001:db8:0:1::1")),
        (v6("fe80::1%eth0"), v6("fe80::2%eth0"), v6("fe81::1")),
        (v6("::ffff:192.0.2.1"), v4("192.0.2.1"), v6("::ffff:192.0.2.2")),
    ],
    ids=["IPv4", "IPv6", "IPv6 of a link", "IPv4 in IPv6"],
)
def test_max_connections_per_address(one: Any, same: Any, other: Any) -> None:
    counted = ConnectionLimits(9, 2)
    assert counted.acquire(one) is None
    assert counted.acquire(same) is None
    assert counted.acquire(one) == "max_connections_per_address"
    assert counted.acquire(other) is None
    counted.release(same)
    assert counted.acquire(same) is None


def test_unix_sockets_have_no_limit_per_address() -> None:
    counted = ConnectionLimits(9, 1)
    assert [counted.acquire(UNIXAddress("/a")) for _ in range(5)] == [None] * 5


class Server:
    """A site to which clients connect without sockets."""

    def __init__(self, **changed: Any) -> None:
        self.clock = Clock()
        self.site = LimitedSite(
            Resource(), REQUEST_RULES, self.clock, limits(**changed), threads=InThisThread()
        )

    def connect(self, host: str = "192.0.2.1") -> tuple[Any, StringTransport]:
        protocol, transport = self.site.buildProtocol(v4(host)), StringTransport()
        protocol.makeConnection(transport)
        return protocol, transport


def rejection_of(transport: StringTransport) -> tuple[int, str]:
    head, _, body = transport.value().partition(b"\r\n\r\n")
    assert b"\r\nRetry-After: 2\r\n" in head and b"\r\nConnection: close\r\n" in head
    return int(head.split()[1]), json.loads(body)["limit"]


def test_connection_over_the_limit_gets_503_and_is_closed() -> None:
    server = Server(max_connections=1)
    first, _ = server.connect()
    refused, transport = server.connect()
    assert rejection_of(transport) == (503, "server.max_connections")
    assert transport.disconnecting
    refused.dataReceived(b"GET / HTTP/1.1\r\n\r\n" * 10_000)
    server.clock.advance(LINGER_TIMEOUT)
    assert transport.disconnected
    refused.connectionLost()
    assert rejection_of(server.connect()[1])[0] == 503
    first.connectionLost()
    assert server.connect()[1].value() == b""


def test_connection_over_the_limit_per_address_gets_429() -> None:
    server = Server(max_connections_per_address=1)
    server.connect()
    assert rejection_of(server.connect()[1]) == (429, "server.max_connections_per_address")
    assert server.connect("192.0.2.2")[1].value() == b""


def test_number_of_open_overflow_connections_is_limited() -> None:
    server = Server(max_connections=1)
    server.connect()
    refused = [server.connect() for _ in range(MAX_OVERFLOW_CONNECTIONS + 1)]
    assert [bool(transport.value()) for _, transport in refused] == [
        True
    ] * MAX_OVERFLOW_CONNECTIONS + [False]
    assert refused[-1][1].disconnected and not refused[0][1].disconnected
    for protocol, _ in refused:
        protocol.connectionLost()
    assert rejection_of(server.connect()[1])[0] == 503


def test_close_connections_aborts_overflow_connections() -> None:
    server = Server(max_connections=1)
    server.connect()
    refused, transport = server.connect()
    server.site.close_connections()
    assert transport.disconnected
    refused.connectionLost()
    assert all(call.getTime() > LINGER_TIMEOUT for call in server.clock.getDelayedCalls())


@pytest.mark.parametrize(
    ("soft", "hard", "raised", "fit"),
    [
        (100_000, 100_000, None, 1000),
        (1024, 100_000, 1000 * 4 + 420, 1000),
        (1024, resource.RLIM_INFINITY, 1000 * 4 + 420, 1000),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, None, 1000),
        (1024, 2420, 2420, 500),
        (100, 100, None, 1),
    ],
)
def test_rlimit_nofile_is_raised_as_needed(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, raised: int | None, fit: int
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: asked.append(wanted))
    assert raise_nofile_limit(1000, 10) == fit
    assert asked == ([] if raised is None else [(raised, hard)])


def test_rlimit_that_cannot_be_raised_limits_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_limit: int, _wanted: tuple[int, int]) -> None:
        raise PermissionError

    monkeypatch.setattr(resource, "getrlimit", lambda _: (820, 10**6))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert raise_nofile_limit(1000, 10) == 100
