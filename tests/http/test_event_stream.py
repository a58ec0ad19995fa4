"""The connection of an event stream: its timeouts and its end, on a test clock."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.web.server import NOT_DONE_YET, Request

from cartd.http.connection import CLOSE_TIMEOUT, EVENTS_TIMEOUT, State
from cartd.http.event_stream import send_events
from cartd.status.events import Subscription
from tests.support.channel_client import GET, Connected, Download

FIRST, SECOND = b"event: status\ndata: 1\n\n", b"event: status\ndata: 2\n\n"


class Stream(Download):
    """Sends events until the test ends them."""

    def __init__(self) -> None:
        super().__init__()
        self.subscription = Subscription(Clock())
        self.subscription.offer([], FIRST)

    def render(self, request: Request) -> Any:
        self.request = request
        sending = Deferred.fromCoroutine(send_events(request, self.subscription))
        request.notifyFinish().addErrback(lambda _: sending.cancel())
        sending.addCallbacks(lambda _: request.finish() if request.channel else None)
        sending.addErrback(lambda _: None)
        return NOT_DONE_YET


class Streaming:
    """A client that has the first event."""

    def __init__(self, **changed: Any) -> None:
        self.stream = Stream()
        self.client = Connected(download=self.stream, **changed)
        self.client.ask()
        assert FIRST in self.client.transport.value()

    @property
    def state(self) -> State:
        state: State = self.client.channel.state
        return state


def test_a_stream_may_be_silent_for_any_time() -> None:
    short = dict.fromkeys(("stall_timeout", "keepalive_timeout", "idle_timeout"), 1.0)
    streaming = Streaming(**short, body_timeout=1.0, header_timeout=1.0)
    assert streaming.state is State.STREAMING
    streaming.client.clock.advance(100_000)
    assert not (streaming.client.closing or streaming.client.broken)
    streaming.stream.subscription.offer([], SECOND)
    assert SECOND in streaming.client.transport.value()


@pytest.mark.parametrize("stall_timeout", [1.0, 100_000.0])
def test_a_client_that_reads_nothing_is_disconnected(stall_timeout: float) -> None:
    streaming = Streaming(stall_timeout=stall_timeout)
    streaming.client.channel.pauseProducing()
    streaming.client.clock.advance(EVENTS_TIMEOUT - 1)
    assert not streaming.client.broken
    streaming.client.clock.advance(1)
    assert streaming.client.broken


def test_a_client_that_reads_again_stays() -> None:
    streaming = Streaming()
    for _ in range(3):
        streaming.client.channel.pauseProducing()
        streaming.client.clock.advance(EVENTS_TIMEOUT - 1)
        streaming.client.channel.resumeProducing()
        streaming.client.clock.advance(1000)
    assert not streaming.client.broken


def test_nothing_is_sent_to_a_client_that_does_not_read() -> None:
    streaming = Streaming()
    streaming.client.channel.pauseProducing()
    before = streaming.client.transport.value()
    for _ in range(1000):
        streaming.stream.subscription.offer([], FIRST)
    streaming.stream.subscription.offer([], SECOND)
    assert streaming.client.transport.value() == before
    streaming.client.channel.resumeProducing()
    sent = streaming.client.transport.value().removeprefix(before)
    assert sent == b"%x\r\n%s\r\n" % (len(SECOND), SECOND)


def test_the_connection_is_kept_after_the_end() -> None:
    streaming = Streaming(keepalive_timeout=60.0)
    streaming.stream.subscription.offer([], SECOND, last=True)
    assert streaming.client.transport.value().endswith(SECOND + b"\r\n0\r\n\r\n")
    assert streaming.state is State.IDLE
    streaming.client.clock.advance(59)
    streaming.client.send(GET)
    assert not streaming.client.closing


def test_the_connection_is_closed_if_the_client_should_reconnect() -> None:
    streaming = Streaming()
    streaming.stream.subscription.close()
    assert streaming.client.transport.value().endswith(b"\r\n0\r\n\r\n")
    assert streaming.client.closing and not streaming.client.broken


def test_the_end_aborts_the_connection_of_a_client_that_does_not_read() -> None:
    streaming = Streaming()
    streaming.client.channel.pauseProducing()
    streaming.stream.subscription.close()
    assert streaming.client.broken
    streaming.client.channel.connectionLost()
    streaming.client.clock.advance(CLOSE_TIMEOUT)
    assert not streaming.client.clock.getDelayedCalls()


def test_a_stop_of_the_server_aborts_the_connection() -> None:
    streaming = Streaming()
    streaming.client.site.close_connections()
    assert streaming.client.broken


def test_a_client_that_leaves_ends_the_stream() -> None:
    streaming = Streaming()
    streaming.client.channel.connectionLost()
    streaming.stream.subscription.offer([], SECOND)
    assert SECOND not in streaming.client.transport.value()
    assert not streaming.client.clock.getDelayedCalls()
