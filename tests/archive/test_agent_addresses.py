"""DNS cache and Happy Eyeballs: look-ups, rotation and unreachable addresses."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as _reactor
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.interfaces import IHostnameResolver
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.web.client import readBody
from zope.interface import implementer

from cartd.archive import TlsPolicy
from cartd.archive.http_agent import ADDRESS_SECONDS, ATTEMPT_SECONDS, Agent, Pool
from tests.support.faulty_archive import FaultyArchive

reactor: Any = _reactor
OF_IPV6 = [IPv6Address("TCP", "2001:db8::1", 8080)]


@implementer(IHostnameResolver)
class Names:
    """Resolves every name to ``address`` and others, and counts look-ups."""

    def __init__(self) -> None:
        self.address: IPv4Address | IPv6Address = IPv4Address("TCP", "192.0.2.1", 8080)
        self.others: list[IPv4Address | IPv6Address] = []
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
        for address in (self.address, *self.others):
            resolutionReceiver.addressResolved(address)
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
        pool = Pool(self.reactor, max_idle=1, idle_seconds=30.0)
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


def test_an_address_expires_from_the_dns_cache_even_if_in_use() -> None:
    network = Network()
    network.reach()
    network.names.address = IPv4Address("TCP", "192.0.2.2", 8080)
    network.reactor.advance(ADDRESS_SECONDS - 1)
    assert network.reach() == "192.0.2.1"
    network.reactor.advance(1)
    assert network.reach() == "192.0.2.2"
    assert network.names.asked == 2


def test_an_unreachable_address_leaves_the_dns_cache() -> None:
    network = Network()
    network.reach()
    network.names.address = IPv4Address("TCP", "192.0.2.2", 8080)
    _, factory = network.ask()
    factory.clientConnectionFailed(None, Failure(ConnectionRefusedError()))
    failures: list[Any] = []
    network.asked.addErrback(failures.append)
    assert failures[0].check(ConnectionRefusedError)
    assert network.reach() == "192.0.2.2"


def test_an_ipv6_address_is_connected_to() -> None:
    network = Network()
    network.names.address = IPv6Address("TCP", "2001:db8::1", 8080)
    assert [network.reach(), network.reach()] == ["2001:db8::1"] * 2
    assert network.names.asked == 1


def test_a_cancelled_connection_attempt_leaves_nothing_behind() -> None:
    network = Network()
    network.names.others = [IPv4Address("TCP", "192.0.2.2", 8080)]
    network.ask()
    network.asked.addErrback(lambda _: None)
    network.asked.cancel()
    assert not network.reactor.getDelayedCalls()
    network.reach()
    assert network.names.asked == 1


def tried(network: Network) -> list[str]:
    """The addresses that were tried since the last time."""
    hosts = [host for host, *_ in network.reactor.tcpClients]
    network.reactor.tcpClients.clear()
    return hosts


def test_connections_are_spread_over_all_addresses_of_a_name() -> None:
    network = Network()
    network.names.others = [IPv4Address("TCP", "192.0.2.2", 8080), *OF_IPV6]
    assert [network.reach() for _ in range(7)] == [
        "192.0.2.1", "192.0.2.2", "2001:db8::1", "192.0.2.1", "192.0.2.2", "2001:db8::1",
        "192.0.2.1",
    ]  # fmt: skip
    assert network.names.asked == 1


def test_a_refusing_address_is_skipped_until_the_next_lookup() -> None:
    network = Network()
    network.names.others = [IPv4Address("TCP", "192.0.2.2", 8080)]
    _, factory = network.ask()
    factory.clientConnectionFailed(None, Failure(ConnectionRefusedError()))
    assert tried(network) == ["192.0.2.1", "192.0.2.2"]
    for _ in range(3):
        network.reach()
    assert tried(network) == ["192.0.2.2"] * 3
    network.reactor.advance(ADDRESS_SECONDS)
    network.reach()
    assert tried(network) == ["192.0.2.1"]


def test_a_silent_address_is_raced_and_then_skipped() -> None:
    network = Network()
    network.names.others = [IPv4Address("TCP", "192.0.2.2", 8080)]
    network.ask()
    network.reactor.advance(ATTEMPT_SECONDS / 2)
    assert tried(network) == ["192.0.2.1"]
    network.reactor.advance(ATTEMPT_SECONDS / 2)
    [(_, _, factory, _, _)] = network.reactor.tcpClients
    protocol = factory.buildProtocol(network.names.others[0])
    protocol.makeConnection(Connected())
    silent, _ = network.reactor.connectors
    assert silent.stoppedConnecting
    network.reach()
    assert tried(network) == ["192.0.2.2", "192.0.2.2"]
    assert not network.reactor.getDelayedCalls()


@pytest_twisted.ensureDeferred
async def test_requests_succeed_with_one_of_three_addresses_dead() -> None:
    living = [FaultyArchive(reactor), FaultyArchive(reactor)]
    living[0].listen(interface="127.0.0.1")
    living[1].listen(interface="127.0.0.3", port=living[0].port)
    names = Names()
    names.address = IPv4Address("TCP", "127.0.0.1", living[0].port)
    names.others = [IPv4Address("TCP", f"127.0.0.{last}", living[0].port) for last in (2, 3)]
    before = reactor.installNameResolver(names)
    pool = Pool(reactor, max_idle=0, idle_seconds=30.0)
    agent = Agent(reactor, pool, TlsPolicy(), connect_timeout=10.0)
    try:
        for _ in range(12):
            url = f"http://archive.example:{living[0].port}/7".encode()
            response = await agent.request(b"HEAD", url)
            assert response.code == 404
            await readBody(response)
        assert [len(archive.requests) for archive in living] == [6, 6]
    finally:
        reactor.installNameResolver(before)
        await pool.closeCachedConnections()
        for archive in living:
            await archive.stop()
