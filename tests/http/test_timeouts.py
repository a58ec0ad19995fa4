"""Timeouts of heads, bodies and downloads, and between requests."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from cartd.http.connection import CLOSE_TIMEOUT, LINGER_TIMEOUT, MIN_PROGRESS, Timeout, Timeouts
from tests.support.channel_client import GET, Connected
from tests.support.server_limits import limits

POST = b"POST /u HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90\r\n\r\n"


def test_silent_client_is_closed_without_a_response() -> None:
    client = Connected(header_timeout=30.0, keepalive_timeout=1.0)
    client.clock.advance(29)
    assert not client.closing
    client.clock.advance(1)
    assert client.closing and not client.broken
    assert client.answers() == []
    client.clock.advance(CLOSE_TIMEOUT)
    assert client.broken


@pytest.mark.parametrize(
    "head", [b"GET / HTTP/1.1", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: y\r\n"]
)
def test_header_timeout_covers_the_complete_head(head: bytes) -> None:
    client = Connected(header_timeout=30.0)
    client.clock.advance(10)
    for at in range(len(head)):
        client.send(head[at : at + 1])
        client.clock.advance(19 / len(head))
        assert not client.closing
    client.clock.advance(1.1)
    assert client.answers() == [(408, "server.header_timeout")]
    assert client.closing
    client.clock.advance(LINGER_TIMEOUT)
    assert client.broken


def test_header_timeout_of_later_request_starts_at_first_byte() -> None:
    client = Connected(header_timeout=30.0, keepalive_timeout=60.0)
    client.ask()
    client.clock.advance(1000)
    client.download.end()
    client.transport.clear()
    client.clock.advance(59)
    client.send(GET[:1])
    client.clock.advance(29)
    client.send(GET[1:9])
    assert not client.closing
    client.clock.advance(1)
    assert client.answers() == [(408, "server.header_timeout")]


def test_header_timeout_of_a_pipelined_request() -> None:
    client = Connected(header_timeout=30.0, keepalive_timeout=1000.0)
    client.send(GET + GET[:9])
    client.clock.advance(500)
    client.download.end()
    client.transport.clear()
    client.clock.advance(29)
    assert not client.closing
    client.clock.advance(1)
    assert client.answers() == [(408, "server.header_timeout")]


def test_keepalive_timeout_closes_the_connection() -> None:
    client = Connected(idle_timeout=1.0, keepalive_timeout=60.0)
    client.ask()
    client.download.end()
    client.clock.advance(59)
    client.ask()
    client.clock.advance(61)
    assert not client.closing
    client.download.end()
    said = client.transport.value()
    client.clock.advance(60)
    assert client.closing
    assert client.transport.value() == said


def test_idle_timeout_rejects_a_stalled_body() -> None:
    client = Connected(idle_timeout=60.0)
    client.send(POST + b"abc")
    client.clock.advance(59)
    client.send(b"d")
    client.clock.advance(59)
    assert not client.closing
    client.clock.advance(1)
    assert client.closing
    assert client.answers() == [(408, "server.idle_timeout")]


def test_body_timeout_covers_the_complete_body() -> None:
    client = Connected(idle_timeout=60.0, body_timeout=300.0)
    client.send(POST)
    for _ in range(6):
        client.clock.advance(49)
        client.send(b"x")
    assert not client.closing
    client.clock.advance(6)
    assert client.closing
    client.send(b"x" * 84)
    assert client.answers() == [(408, "server.body_timeout")]


def test_data_after_a_rejection_is_ignored() -> None:
    client = Connected(header_timeout=30.0)
    client.send(b"G")
    client.clock.advance(30)
    client.send(b"ET / HTTP/1.1\r\n\r\n" + GET)
    assert len(client.answers()) == 1
    assert not client.broken
    client.clock.advance(LINGER_TIMEOUT)
    assert client.broken
    client.channel.connectionLost()
    assert client.clock.getDelayedCalls() == []


def test_time_of_the_service_is_not_counted() -> None:
    client = Connected(header_timeout=1.0, idle_timeout=1.0, body_timeout=1.0, stall_timeout=1.0)
    client.ask()
    client.clock.advance(10_000)
    assert not client.closing and not client.broken
    client.download.end()
    assert client.transport.value().endswith(b"data")


def test_stall_timeout_aborts_the_download() -> None:
    client = Connected(stall_timeout=600.0)
    client.ask()
    client.channel.pauseProducing()
    client.clock.advance(599)
    assert not client.broken
    client.clock.advance(1)
    assert client.broken


def test_slow_client_with_progress_is_served() -> None:
    client = Connected(stall_timeout=600.0)
    client.ask()
    for number in range(1, 6):
        client.channel.on_send_pause(True, number * MIN_PROGRESS)
        client.clock.advance(599)
        client.channel.on_send_pause(False, number * MIN_PROGRESS)
        client.clock.advance(601)
    client.download.end()
    assert not client.broken
    assert client.transport.value().endswith(b"\r\n\r\ndata")


def test_client_below_min_progress_is_aborted() -> None:
    client = Connected(stall_timeout=600.0)
    client.ask()
    for taken in range(59):
        client.channel.on_send_pause(True, 10**6 + taken)
        client.clock.advance(10)
        client.channel.on_send_pause(False, 10**6 + taken)
        client.clock.advance(50)  # time of the service
    assert not client.broken
    client.channel.on_send_pause(True, 10**6 + 60)
    client.clock.advance(10)
    assert client.broken


def test_stall_timeout_restarts_with_each_download() -> None:
    client = Connected(stall_timeout=600.0)
    for _ in range(3):
        client.ask()
        client.channel.on_send_pause(True, 0)
        client.clock.advance(599)
        client.channel.on_send_pause(False, 0)
        client.download.end()
    assert not client.broken


def test_one_timer_runs_and_none_after_stop() -> None:
    clock, expired = Clock(), list[Timeout]()
    timeouts = Timeouts(limits(keepalive_timeout=60.0, header_timeout=30.0), clock, expired.append)
    timeouts.on_connect()
    for _ in range(3):
        timeouts.on_header_start(first=False)
        timeouts.on_body_start()
        timeouts.on_request_complete()
        timeouts.on_response_end()
        assert len(clock.getDelayedCalls()) == 1
    clock.advance(59)
    assert expired == []
    clock.advance(1)
    assert expired == [Timeout.KEEPALIVE]
    timeouts.on_response_end()
    timeouts.stop()
    assert clock.getDelayedCalls() == []
