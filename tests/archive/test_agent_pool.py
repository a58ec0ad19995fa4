"""Connection pool of the HTTP agent: reuse, expiry, loss and closing."""

from __future__ import annotations

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, gatherResults
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.web.client import ResponseDone

from cartd.archive.http_agent import Connection, Pool
from cartd.archive.http_messages import Origin
from tests.support.agent_fixture import IDLE_SECONDS, KEPT, AgentClient, Collected, agent_client
from tests.support.archive_faults import (
    Close,
    Drip,
    Send,
    hang_before_head,
    head,
    steps,
    truncated,
)


async def open_together(asking: AgentClient, count: int) -> None:
    """So many requests at once, and so many connections."""
    await gatherResults([asking.ask("HEAD") for _ in range(count)])
    assert asking.faulty.total_connections == count


@pytest_twisted.ensureDeferred
async def test_no_more_connections_are_kept_than_asked_for() -> None:
    async with agent_client() as asking:
        await open_together(asking, KEPT + 3)
        await asking.until(lambda: asking.faulty.open_connections == KEPT)
        await gatherResults([asking.ask("HEAD") for _ in range(KEPT)])
        assert asking.faulty.total_connections == KEPT + 3


@pytest_twisted.ensureDeferred
async def test_the_connection_used_last_is_used_next() -> None:
    async with agent_client() as asking:
        await open_together(asking, 2)
        for _ in range(4):
            await asking.ask("HEAD")
        assert len(set(asking.connections()[2:])) == 1


@pytest_twisted.ensureDeferred
async def test_an_idle_connection_is_closed_and_its_timer_stopped() -> None:
    async with agent_client() as asking:
        await open_together(asking, 2)
        asking.clock.advance(IDLE_SECONDS - 1)
        await asking.ask("HEAD")
        asking.clock.advance(1)
        await asking.until(lambda: asking.faulty.open_connections == 1)
        asking.clock.advance(IDLE_SECONDS - 2)
        await asking.ask("HEAD")
        assert len(set(asking.connections()[2:])) == 1
        asking.clock.advance(1)
        asking.clock.advance(IDLE_SECONDS - 1)
        await asking.until(lambda: asking.faulty.open_connections == 0)
        assert asking.clock.getDelayedCalls() == []
        await asking.ask("HEAD")
        assert asking.faulty.total_connections == 3


@pytest_twisted.ensureDeferred
async def test_a_busy_connection_is_not_closed_as_idle() -> None:
    async with agent_client() as asking:
        await asking.ask("HEAD")
        asking.faulty.put("7", bytes(1_000_000))
        response = await asking.ask("GET")
        asking.clock.advance(2 * IDLE_SECONDS)
        body = Collected()
        response.deliverBody(body)
        assert isinstance(await body.end(), ResponseDone)
        assert len(body.data) == 1_000_000


@pytest_twisted.ensureDeferred
async def test_interim_responses_are_limited_for_each_request() -> None:
    async with agent_client() as asking:
        interim = head(103, [("Link", "x" * 40_000)])
        asking.faulty.fault("7", steps(Send(interim + head(204))), times=None)
        for _ in range(3):
            assert (await asking.ask("GET")).code == 204
        assert asking.connections() == [1, 1, 1]


@pytest_twisted.ensureDeferred
async def test_bytes_over_an_idle_connection_close_it() -> None:
    async with agent_client() as asking:
        late_response = Drip(b"HTTP/1.1 408 Request Timeout\r\n\r\n", piece=3, delay=0.001)
        asking.faulty.fault("7", steps(Send(head(204)), late_response))
        await asking.ask("GET")
        await asking.until(lambda: asking.faulty.open_connections == 0)
        assert (await asking.ask("POST")).code == 404


@pytest_twisted.ensureDeferred
async def test_closing_waits_until_the_idle_connections_are_gone() -> None:
    async with agent_client() as asking:
        await open_together(asking, 2)
        closed = asking.pool.closeCachedConnections()
        assert not closed.called
        await closed
        assert asking.clock.getDelayedCalls() == []
        await asking.until(lambda: asking.faulty.open_connections == 0)


@pytest_twisted.ensureDeferred
async def test_closing_waits_for_the_connection_of_a_cancelled_request() -> None:
    async with agent_client() as asking:
        asking.faulty.fault("7", hang_before_head())
        hanging = asking.agent.request(b"GET", (asking.url + "7").encode())
        await asking.until(lambda: asking.faulty.running == 1)
        hanging.cancel()
        closed = asking.pool.closeCachedConnections()
        assert not closed.called
        await closed
        with pytest.raises(CancelledError):
            await hanging


@pytest_twisted.ensureDeferred
async def test_closing_lets_running_requests_end_and_keeps_none() -> None:
    async with agent_client() as asking:
        asking.faulty.put("7", bytes(1_000_000))
        response = await asking.ask("GET")
        await asking.pool.closeCachedConnections()
        body = Collected()
        response.deliverBody(body)
        assert isinstance(await body.end(), ResponseDone)
        assert len(body.data) == 1_000_000
        await asking.until(lambda: asking.faulty.open_connections == 0)
        assert asking.clock.getDelayedCalls() == []


@pytest_twisted.ensureDeferred
async def test_closing_an_unused_pool_is_done_at_once() -> None:
    async with agent_client() as asking:
        assert asking.pool.closeCachedConnections().called


@pytest_twisted.ensureDeferred
async def test_on_response_reports_whether_the_connection_is_reusable() -> None:
    async with agent_client() as asking:
        asking.faulty.put("7", b"seven")
        last = head(200, [("Content-Length", "5"), ("Connection", "close")])
        asking.faulty.fault("7", steps(Send(last + b"seven"), Close()), method="GET")
        asking.faulty.fault("7", truncated(3), method="GET", request=3)
        for _ in range(4):
            await asking.collect("GET")
        await asking.ask("HEAD")
        assert asking.reusable == [False, True, True, True]


ORIGIN = Origin("http", "archive.example", 80, b"archive.example")


def connected(pool: Pool) -> tuple[Connection, StringTransport]:
    """A connection over a transport that does nothing by itself."""
    connection, transport = Connection(ORIGIN, pool), StringTransport()
    connection.makeConnection(transport)
    return connection, transport


def test_the_longest_idle_connection_is_closed_beyond_the_limit() -> None:
    pool = Pool(Clock(), max_idle=2, idle_seconds=1)
    transports = []
    for _ in range(4):
        connection, transport = connected(pool)
        pool.put(connection)
        transports.append(transport)
    assert [transport.disconnecting for transport in transports] == [True, True, False, False]


def test_each_connection_has_its_own_idle_time() -> None:
    clock = Clock()
    pool = Pool(clock, max_idle=2, idle_seconds=30)
    connection, first = connected(pool)
    pool.put(connection)
    clock.advance(10)
    connection, second = connected(pool)
    pool.put(connection)
    clock.advance(19)
    assert not first.disconnecting
    clock.advance(1)
    assert first.disconnecting
    clock.advance(9)
    assert not second.disconnecting
    clock.advance(1)
    assert second.disconnecting


def test_a_lost_connection_is_not_reused() -> None:
    pool = Pool(Clock(), max_idle=2, idle_seconds=1)
    connection, _ = connected(pool)
    pool.put(connection)
    connection.connectionLost()
    assert pool.take(ORIGIN) is None


def test_closing_does_not_wait_for_a_tls_close_notify() -> None:
    pool = Pool(Clock(), max_idle=2, idle_seconds=1)
    connection, transport = connected(pool)
    connection.close()
    assert not transport.disconnected
    closed = pool.closeCachedConnections()
    assert transport.disconnected
    assert not closed.called
    connection.connectionLost()
    assert closed.called
