"""Transfers of bodies: stall timeouts, pauses, exceptions and cancels."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred

from tests.support.archive_client_fixture import (
    DATA,
    HEAD_TIMEOUT,
    STALL_TIMEOUT,
    ClientUnderTest,
    Sink,
    begun,
    failure_of,
    reactor,
)
from tests.support.archive_faults import (
    Drip,
    Fault,
    Send,
    drip,
    endless,
    hang_after,
    hang_before_head,
    head,
    no_length,
    steps,
    wrong_bytes,
)

pytest_plugins = ("tests.support.archive_fixtures",)


@pytest_twisted.ensureDeferred
async def test_a_response_that_does_not_begin_times_out(asked: ClientUnderTest) -> None:
    asked.faulty.fault("7", hang_before_head())
    failing = begun(failure_of(asked.archive.status("7")))
    await asked.until(lambda: asked.faulty.running == 1)
    asked.clock.advance(HEAD_TIMEOUT - 1)
    assert not failing.called
    asked.clock.advance(1)
    assert failing.called
    error = await failing
    assert str(error) == "the archive did not answer within 60 seconds"
    assert error.outage
    assert error.retryable
    await asked.until(lambda: asked.faulty.open_connections == 0)
    assert await asked.fetch("7") == DATA


@pytest_twisted.ensureDeferred
async def test_a_stalled_body_times_out(asked: ClientUnderTest) -> None:
    asked.faulty.fault("7", hang_after(100))
    sink = Sink()
    failing = begun(failure_of(asked.archive.fetch("7", sink)))
    await sink.first
    asked.clock.advance(STALL_TIMEOUT - 1)
    assert not failing.called
    asked.clock.advance(1)
    error = await failing
    assert str(error) == "the archive sent nothing for 30 seconds"
    assert error.retryable
    assert sink.producer is None
    await asked.until(lambda: asked.faulty.open_connections == 0)
    assert await asked.fetch("7") == DATA


@pytest_twisted.ensureDeferred
async def test_every_byte_resets_the_stall_timeout(asked: ClientUnderTest) -> None:
    asked.faulty.put("slow", b"ten  bytes")
    asked.faulty.fault("slow", drip(1))
    sink = Sink(lambda sink: asked.clock.advance(STALL_TIMEOUT - 1))
    await asked.archive.fetch("slow", sink)
    assert sink.data == b"ten  bytes"


@pytest_twisted.ensureDeferred
async def test_a_paused_sink_stops_reading_and_the_stall_timeout(asked: ClientUnderTest) -> None:
    def pause(sink: Sink) -> None:
        if not sink.first.called:
            assert sink.producer is not None
            sink.producer.pauseProducing()

    size = 16_000_000
    start = Send(head(200, [("Content-Length", str(size))]))
    asked.faulty.fault("7", steps(start, Drip(bytes(size), piece=1_000_000)))
    sink = Sink(pause)
    fetching = begun(asked.archive.fetch("7", sink))
    await sink.first
    seen = len(sink.data)
    await asked.settled()
    asked.clock.advance(10 * STALL_TIMEOUT)
    assert not fetching.called
    assert len(sink.data) - seen <= 65_536
    sink.data = bytearray()
    assert sink.producer is not None
    sink.producer.resumeProducing()
    await fetching
    assert len(sink.data) == size - seen


@pytest_twisted.ensureDeferred
async def test_a_sink_that_is_not_ready_yet_may_pause_from_the_start(
    asked: ClientUnderTest,
) -> None:
    class Unready(Sink):
        def registerProducer(self, producer: Any, streaming: bool) -> None:
            super().registerProducer(producer, streaming)
            producer.pauseProducing()

    data = bytes(1_000_000)
    asked.faulty.put("7", data)
    sink = Unready()
    fetching = begun(asked.archive.fetch("7", sink))
    await asked.until(lambda: asked.faulty.running == 1)
    await asked.settled()
    asked.clock.advance(STALL_TIMEOUT)
    assert len(sink.data) <= 65_536
    assert sink.producer is not None
    sink.producer.resumeProducing()
    await fetching
    assert sink.data == data


@pytest_twisted.ensureDeferred
async def test_the_stall_timeout_runs_again_after_a_pause(asked: ClientUnderTest) -> None:
    asked.faulty.fault("7", hang_after(100))
    sink = Sink(lambda sink: sink.producer.pauseProducing())  # type: ignore[union-attr]
    failing = begun(failure_of(asked.archive.fetch("7", sink)))
    await sink.first
    asked.clock.advance(10 * STALL_TIMEOUT)
    assert not failing.called
    assert sink.producer is not None
    sink.producer.resumeProducing()
    asked.clock.advance(STALL_TIMEOUT)
    assert "sent nothing" in str(await failing)


@pytest.mark.parametrize(
    "fault", [hang_after(100), endless(), drip(100), None], ids=["silent", "endless", "drip", "all"]
)  # fmt: skip
@pytest_twisted.ensureDeferred
async def test_an_exception_of_the_sink_ends_the_transfer(
    asked: ClientUnderTest, fault: Fault | None
) -> None:
    class TooManyError(Exception):
        pass

    def refuse(sink: Sink) -> None:
        raise TooManyError

    if fault is not None:
        asked.faulty.fault("7", fault)
    sink = Sink(refuse)
    with pytest.raises(TooManyError):
        await asked.archive.fetch("7", sink)
    assert sink.producer is None
    assert 0 < len(sink.data) <= 65_536
    if fault is not None:
        await asked.until(lambda: asked.faulty.open_connections == 0)
    assert await asked.fetch("7") == DATA


@pytest_twisted.ensureDeferred
async def test_cancelling_before_the_connection_stands_leaves_none(asked: ClientUnderTest) -> None:
    fetching = begun(asked.archive.fetch("7", Sink()))
    fetching.cancel()
    with pytest.raises(CancelledError):
        await fetching
    await asked.until(lambda: asked.faulty.open_connections == 0)


@pytest.mark.parametrize("method", ["HEAD", "POST", "GET"])
@pytest_twisted.ensureDeferred
async def test_cancelling_before_the_answer_closes_the_connection(
    asked: ClientUnderTest, method: str
) -> None:
    asked.faulty.fault("7", hang_before_head(), method=method)
    asking_now = begun(asked.ask(method))
    await asked.until(lambda: asked.faulty.running == 1)
    asking_now.cancel()
    with pytest.raises(CancelledError):
        await asking_now
    await asked.until(lambda: asked.faulty.open_connections == 0)
    assert await asked.fetch("7") == DATA


@pytest.mark.parametrize("paused", [False, True], ids=["flowing", "paused"])
@pytest.mark.parametrize("fault", [hang_after(100), endless()], ids=["silent", "endless"])
@pytest_twisted.ensureDeferred
async def test_cancelling_within_the_body_closes_the_connection(
    asked: ClientUnderTest, fault: Fault, paused: bool
) -> None:
    def on_write(sink: Sink) -> None:
        assert sink.producer is not None
        if paused:
            sink.producer.pauseProducing()

    asked.faulty.fault("7", fault)
    sink = Sink(on_write)
    fetching = begun(asked.archive.fetch("7", sink))
    await sink.first
    fetching.cancel()
    with pytest.raises(CancelledError):
        await fetching
    assert sink.producer is None
    await asked.until(lambda: asked.faulty.open_connections == 0)
    assert await asked.fetch("7") == DATA


@pytest_twisted.ensureDeferred
async def test_cancelling_within_a_write_does_not_pool_the_connection(
    asked: ClientUnderTest,
) -> None:
    asked.faulty.fault("7", steps(Send(head(200, [("Content-Length", "2")])), Drip(b"ab", 2)))
    posted: Deferred[float | None] = Deferred()

    def cancel(sink: Sink) -> None:
        # Comes before the loop learns that the connection is closed.
        reactor.callLater(0, lambda: begun(asked.archive.stage("7")).chainDeferred(posted))
        fetching.cancel()

    fetching = begun(asked.archive.fetch("7", Sink(cancel)))
    with pytest.raises(CancelledError):
        await fetching
    await posted
    assert [request.connection for request in asked.faulty.requests] == [1, 2]


@pytest_twisted.ensureDeferred
async def test_a_sink_that_stops_the_transfer_ends_it_as_a_cancel_does(
    asked: ClientUnderTest,
) -> None:
    asked.faulty.fault("7", endless())
    sink = Sink(lambda sink: sink.producer.stopProducing())  # type: ignore[union-attr]
    with pytest.raises(CancelledError):
        await asked.archive.fetch("7", sink)
    await asked.until(lambda: asked.faulty.open_connections == 0)


@pytest_twisted.ensureDeferred
async def test_the_sink_checks_length_and_hash_itself(asked: ClientUnderTest) -> None:
    asked.faulty.fault("7", wrong_bytes())
    asked.faulty.fault("7", no_length(10), request=2)
    assert await asked.fetch("7") == bytes(byte ^ 1 for byte in DATA)
    assert await asked.fetch("7") == DATA[:10]
