"""How long a client may take: for heads, bodies and downloads, and between them."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from cartd.server.channel import CLOSING
from cartd.server.lingering_close import LINGER
from cartd.server.timeouts import PROGRESS, ClientTimers, Late
from tests.channel_client import GET, Connected
from tests.server_limits import limits

POST = b"POST /u HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90\r\n\r\n"


def test_a_client_that_says_nothing_is_closed_without_an_answer() -> None:
    client = Connected(header_timeout=30.0, keepalive_timeout=1.0)
    client.clock.advance(29)
    assert not client.closing
    client.clock.advance(1)
    assert client.closing and not client.broken
    assert client.answers() == []
    client.clock.advance(CLOSING)
    assert client.broken


@pytest.mark.parametrize(
    "head", [b"GET / HTTP/1.1", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: y\r\n"]
)
def test_a_head_that_comes_a_byte_at_a_time_must_be_whole_in_time(head: bytes) -> None:
    client = Connected(header_timeout=30.0)
    client.clock.advance(10)
    for at in range(len(head)):
        client.send(head[at : at + 1])
        client.clock.advance(19 / len(head))
        assert not client.closing
    client.clock.advance(1.1)
    assert client.answers() == [(408, "server.header_timeout")]
    assert client.closing
    client.clock.advance(LINGER)
    assert client.broken


def test_the_head_of_a_later_request_has_its_own_time_from_its_first_byte_on() -> None:
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


def test_a_head_that_has_begun_behind_another_request_is_timed_from_that_ones_end_on() -> None:
    client = Connected(header_timeout=30.0, keepalive_timeout=1000.0)
    client.send(GET + GET[:9])
    client.clock.advance(500)
    client.download.end()
    client.transport.clear()
    client.clock.advance(29)
    assert not client.closing
    client.clock.advance(1)
    assert client.answers() == [(408, "server.header_timeout")]


def test_between_requests_a_connection_is_not_kept_for_long() -> None:
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


def test_a_body_that_stands_still_is_given_up() -> None:
    client = Connected(idle_timeout=60.0)
    client.send(POST + b"abc")
    client.clock.advance(59)
    client.send(b"d")
    client.clock.advance(59)
    assert not client.closing
    client.clock.advance(1)
    assert client.closing
    assert client.answers() == [(408, "server.idle_timeout")]


def test_a_body_that_comes_a_byte_at_a_time_must_be_whole_in_time() -> None:
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


def test_what_comes_after_a_refusal_is_read_past_until_the_connection_breaks() -> None:
    client = Connected(header_timeout=30.0)
    client.send(b"G")
    client.clock.advance(30)
    client.send(b"ET / HTTP/1.1\r\n\r\n" + GET)
    assert len(client.answers()) == 1
    assert not client.broken
    client.clock.advance(LINGER)
    assert client.broken
    client.channel.connectionLost()
    assert client.clock.getDelayedCalls() == []


def test_the_time_that_the_service_takes_for_an_answer_is_not_the_clients() -> None:
    client = Connected(header_timeout=1.0, idle_timeout=1.0, body_timeout=1.0, stall_timeout=1.0)
    client.ask()
    client.clock.advance(10_000)
    assert not client.closing and not client.broken
    client.download.end()
    assert client.transport.value().endswith(b"data")


def test_a_client_that_takes_nothing_for_long_is_given_up() -> None:
    client = Connected(stall_timeout=600.0)
    client.ask()
    client.channel.pauseProducing()
    client.clock.advance(599)
    assert not client.broken
    client.clock.advance(1)
    assert client.broken


def test_a_slow_client_that_takes_something_now_and_then_is_served() -> None:
    client = Connected(stall_timeout=600.0)
    client.ask()
    for number in range(1, 6):
        client.channel.wait_for_client(True, number * PROGRESS)
        client.clock.advance(599)
        client.channel.wait_for_client(False, number * PROGRESS)
        client.clock.advance(601)
    client.download.end()
    assert not client.broken
    assert client.transport.value().endswith(b"\r\n\r\ndata")


def test_a_client_that_takes_a_byte_at_a_time_is_given_up() -> None:
    client = Connected(stall_timeout=600.0)
    client.ask()
    for taken in range(59):
        client.channel.wait_for_client(True, 10**6 + taken)
        client.clock.advance(10)
        client.channel.wait_for_client(False, 10**6 + taken)
        client.clock.advance(50)  # the service's own time
    assert not client.broken
    client.channel.wait_for_client(True, 10**6 + 60)
    client.clock.advance(10)
    assert client.broken


def test_each_download_of_a_connection_has_all_its_time() -> None:
    client = Connected(stall_timeout=600.0)
    for _ in range(3):
        client.ask()
        client.channel.wait_for_client(True, 0)
        client.clock.advance(599)
        client.channel.wait_for_client(False, 0)
        client.download.end()
    assert not client.broken


def test_one_timer_runs_whatever_is_waited_for_and_none_in_the_end() -> None:
    clock, late = Clock(), list[Late]()
    timers = ClientTimers(limits(keepalive_timeout=60.0, header_timeout=30.0), clock, late.append)
    timers.connected()
    for _ in range(3):
        timers.head_begins(first=False)
        timers.body_begins()
        timers.request_is_whole()
        timers.answered()
        assert len(clock.getDelayedCalls()) == 1
    clock.advance(59)
    assert late == []
    clock.advance(1)
    assert late == [Late.REQUEST]
    timers.answered()
    timers.stop()
    assert clock.getDelayedCalls() == []
