"""A name is looked up once for many connections, and again when its address may have changed."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.interfaces import IHostnameResolver
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from cartd.archive import TlsPolicy
from cartd.archive.agent import Agent, Pool
from cartd.archive.agent.agent import ADDRESS_SECONDS


@implementer(IHostnameResolver)
class Names:
    """Resolves every name to ``address``, and counts how often it is asked."""

    def __init__(self) -> None:
        self.address: IPv4Address | IPv6Address = IPv4Address("TCP", "192.0.2.1", 8080)
        self.asked = 0

    def resolveHostName(
        self,
        resolutionReceiver: Any,
        hostName: str,
        portNumber: int = 0,
        addressTypes: object = None,
        transportSemantics: str = "TCP",
    ) -> Any:
        self.asked += 1
        resolutionReceiver.resolutionBegan(None)
        resolutionReceiver.addressResolved(self.address)
        resolutionReceiver.resolutionComplete()
        return None


class Connected(StringTransport):
    def setTcpNoDelay(self, _: bool) -> None:
        pass


class Network:
    """An agent, and what it tries to connect to."""

    def __init__(self, scheme: str = "http") -> None:
        self.reactor: Any = MemoryReactorClock()
        self.names = Names()
        self.reactor.installNameResolver(self.names)
        pool = Pool(self.reactor, kept=1, idle_seconds=30.0)
        self.agent = Agent(self.reactor, pool, TlsPolicy(), connect_timeout=10.0)
        self.url = f"{scheme}://archive.example:8080/".encode()

    def ask(self) -> tuple[str, Any]:
        """The address of the new connection, and its factory."""
        self.asked: Deferred[Any] = self.agent.request(b"HEAD", self.url)
        host, port, factory, timeout, _ = self.reactor.tcpClients[-1]
        assert (port, timeout) == (8080, 10.0)
        return host, factory

    def reach(self) -> str:
        host, factory = self.ask()
        protocol = factory.buildProtocol(self.names.address)
        protocol.makeConnection(Connected())
        return host


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_name_is_looked_up_once_for_many_connections(scheme: str) -> None:
    network = Network(scheme)
    assert [network.reach() for _ in range(5)] == ["192.0.2.1"] * 5
    assert network.names.asked == 1


def test_after_a_while_it_is_looked_up_again_however_much_it_was_used() -> None:
    network = Network()
    network.reach()
    network.names.address = IPv4Address("TCP", "192.0.2.2", 8080)
    network.reactor.advance(ADDRESS_SECONDS - 1)
    assert network.reach() == "192.0.2.1"
    network.reactor.advance(1)
    assert network.reach() == "192.0.2.2"
    assert network.names.asked == 2


def test_an_address_that_is_not_reached_is_believed_no_more() -> None:
    network = Network()
    network.reach()
    network.names.address = IPv4Address("TCP", "192.0.2.2", 8080)
    _, factory = network.ask()
    factory.clientConnectionFailed(None, Failure(ConnectionRefusedError()))
    failures: list[Any] = []
    network.asked.addErrback(failures.append)
    assert failures[0].check(ConnectionRefusedError)
    assert network.reach() == "192.0.2.2"


def test_an_address_of_ipv6_is_connected_to_as_one() -> None:
    network = Network()
    network.names.address = IPv6Address("TCP", "2001:db8::1", 8080)
    assert [network.reach(), network.reach()] == ["2001:db8::1"] * 2
    assert network.names.asked == 1


def test_a_connection_that_is_given_up_is_no_address() -> None:
    network = Network()
    network.ask()
    network.asked.addErrback(lambda _: None)
    network.asked.cancel()
    network.reach()
    assert network.names.asked == 2
