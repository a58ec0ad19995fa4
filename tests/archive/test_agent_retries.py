"""Requests of the HTTP agent: retries over a new connection, and cancels."""

from __future__ import annotations

import socket

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError
from twisted.internet.error import TimeoutError
from twisted.internet.task import Clock
from twisted.web.client import ResponseFailed, ResponseNeverReceived

from cartd.archive import TlsPolicy
from cartd.archive.http_agent import Agent, Pool
from tests.support.agent_fixture import agent_client
from tests.support.archive_client_fixture import TEST_TIMEOUT, reactor
from tests.support.archive_faults import (
    Close,
    Fault,
    Send,
    close_before_head,
    hang_before_head,
    reset_before_head,
    steps,
)


@pytest.mark.parametrize("death", [close_before_head(), reset_before_head()], ids=["fin", "rst"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest_twisted.ensureDeferred
async def test_a_safe_request_is_retried_when_a_kept_connection_closes(
    method: str, death: Fault
) -> None:
    async with agent_client() as asking:
        asking.faulty.fault("7", death, request=2)
        await asking.collect(method)
        assert (await asking.ask(method)).code == 404
        assert asking.connections() == [1, 1, 2]


@pytest_twisted.ensureDeferred
async def test_no_request_is_sent_a_third_time() -> None:
    async with agent_client() as asking:
        await asking.collect("GET")
        asking.faulty.fault("7", close_before_head(), request=2, times=2)
        with pytest.raises(ResponseNeverReceived):
            await asking.ask("GET")
        assert asking.connections() == [1, 1, 2]


@pytest.mark.parametrize(
    ("method", "kept", "fault", "kind"),
    [
        pytest.param("POST", True, close_before_head(), ResponseNeverReceived, id="not-safe"),
        pytest.param("GET", False, close_before_head(), ResponseNeverReceived, id="not-kept"),
        pytest.param("GET", True, steps(Send(b"H"), Close()), ResponseFailed, id="not-silent"),
        pytest.param(
            "GET", True, steps(Send(b"HTTP/1.1 100 C\r\n\r\n"), Close()), ResponseFailed, id="100"
        ),
    ],
)
@pytest_twisted.ensureDeferred
async def test_no_other_request_is_sent_twice(
    method: str, kept: bool, fault: Fault, kind: type[ResponseFailed]
) -> None:
    async with agent_client() as asking:
        if kept:
            await asking.collect("GET", "other")
        asking.faulty.fault("7", fault)
        with pytest.raises(ResponseFailed) as caught:
            await asking.ask(method)
        assert type(caught.value) is kind
        await asking.settled()
        assert asking.connections() == [1]


@pytest_twisted.ensureDeferred
async def test_a_request_cancelled_while_connecting_is_not_sent() -> None:
    async with agent_client() as asking:
        connecting = asking.agent.request(b"GET", (asking.url + "7").encode())
        connecting.cancel()
        with pytest.raises(CancelledError):
            await connecting
        await asking.settled()
        assert asking.connections() == []


@pytest_twisted.ensureDeferred
async def test_connecting_to_a_silent_host_times_out() -> None:
    pool = Pool(Clock(), max_idle=1, idle_seconds=1)
    agent = Agent(reactor, pool, TlsPolicy(), connect_timeout=0.1)
    full = socket.create_server(("127.0.0.1", 0), backlog=0)
    with full, socket.create_connection(full.getsockname()):
        uri = f"http://127.0.0.1:{full.getsockname()[1]}/7".encode()
        with pytest.raises(TimeoutError):
            await agent.request(b"GET", uri).addTimeout(TEST_TIMEOUT, reactor)


@pytest_twisted.ensureDeferred
async def test_a_request_cancelled_on_a_kept_connection_is_not_retried() -> None:
    async with agent_client() as asking:
        await asking.collect("GET")
        asking.faulty.fault("7", hang_before_head(), request=2)
        hanging = asking.agent.request(b"GET", (asking.url + "7").encode())
        await asking.until(lambda: asking.faulty.running == 1)
        hanging.cancel()
        with pytest.raises(CancelledError):
            await hanging
        await asking.until(lambda: asking.faulty.open_connections == 0)
        await asking.settled()
        assert asking.connections() == [1, 1]
