"""Minimum rate of a body, below which its transfer is aborted."""

from __future__ import annotations

import re

import pytest_twisted

from tests.support.archive_client_fixture import (
    DATA,
    MIN_RATE,
    ClientFactory,
    ClientUnderTest,
    Sink,
    asking,
    failure_of,
)
from tests.support.archive_faults import Drip, Send, drip, head, steps

pytest_plugins = ("tests.support.archive_fixtures",)

STEP = 25.0
"""Seconds between pieces: less than the stall timeout."""
ENOUGH = round(STEP * MIN_RATE) + 1
"""Bytes of a piece at the minimum rate."""


def passing(asked: ClientUnderTest) -> Sink:
    return Sink(lambda sink: asked.clock.advance(STEP))


@pytest_twisted.ensureDeferred
async def test_a_body_below_the_minimum_rate_is_aborted(asked: ClientUnderTest) -> None:
    asked.faulty.fault("7", drip(1))
    sink = passing(asked)
    error = await failure_of(asked.archive.fetch("7", sink))
    matched = re.fullmatch("the archive sent only ([0-9]+) bytes in 300 seconds", str(error))
    assert matched is not None
    assert len(sink.data) <= int(matched[1]) < 300 * MIN_RATE
    assert error.retryable and not error.outage
    assert sink.producer is None
    await asked.until(lambda: asked.faulty.open_connections == 0)
    assert await asked.fetch("7") == DATA


@pytest_twisted.ensureDeferred
async def test_a_body_above_the_minimum_rate_may_take_any_time(asked: ClientUnderTest) -> None:
    asked.faulty.fault("7", drip(ENOUGH, 0.001))
    sink = passing(asked)
    await asked.archive.fetch("7", sink)
    assert sink.data == DATA
    assert asked.clock.seconds() > 600


@pytest_twisted.ensureDeferred
async def test_the_minimum_rate_is_checked_in_each_window(asked: ClientUnderTest) -> None:
    start = head(200, [("Content-Length", str(len(DATA)))])
    asked.faulty.fault("7", steps(Send(start), Drip(DATA[:9000], 3000, 0.01), Drip(DATA[9000:])))
    error = await failure_of(asked.archive.fetch("7", passing(asked)))
    assert re.search("sent only [0-9]{,3} bytes in 300 seconds", str(error))


@pytest_twisted.ensureDeferred
async def test_pauses_of_the_sink_do_not_count_for_the_rate(asked: ClientUnderTest) -> None:
    def pause(sink: Sink) -> None:
        assert sink.producer is not None
        sink.producer.pauseProducing()
        asked.clock.advance(1000)
        sink.producer.resumeProducing()

    asked.faulty.fault("7", drip(1000, 0.001))
    sink = Sink(pause)
    await asked.archive.fetch("7", sink)
    assert sink.data == DATA


@pytest_twisted.ensureDeferred
async def test_minimum_rate_0_allows_any_rate(make_client: ClientFactory) -> None:
    async with asking(make_client, min_rate=0) as asked:
        asked.faulty.put("7", b"x" * 30)
        asked.faulty.fault("7", drip(1, 0.001))
        sink = passing(asked)
        await asked.archive.fetch("7", sink)
        assert sink.data == b"x" * 30
        assert asked.clock.seconds() > 300
