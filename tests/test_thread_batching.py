"""Many small pieces of work in few trips to a thread."""

from __future__ import annotations

from itertools import count

import pytest
from twisted.internet.defer import CancelledError

from cartd.volume.thread_batching import (
    MAX_BATCH,
    MAX_CONCURRENT,
    MIN_CONCURRENT,
    BatchingThreadRunner,
)
from tests.volume_parts import HeldThreads, InThisThread, failure_of, outcome


def identity(value: object) -> object:
    return value


def fail(error: Exception) -> None:
    raise error


def seconds(each: float, started: int = 0) -> BatchingThreadRunner:
    """Trips of which the timer says that each takes so long."""
    ticks = count(started)
    return BatchingThreadRunner(InThisThread(), lambda: next(ticks) * each)


def test_each_piece_has_its_own_result() -> None:
    threads = HeldThreads()
    limit = BatchingThreadRunner(threads)
    error = OSError("one of many")
    first = [outcome(limit.run(identity, number)) for number in range(10)]
    failed = outcome(limit.run(fail, error))
    last = outcome(limit.run(identity, "last"))
    threads.let_all_go()
    assert first == [[number] for number in range(10)]
    assert failure_of(failed) is error
    assert last == ["last"]


def test_work_that_comes_while_trips_are_under_way_goes_together() -> None:
    threads = HeldThreads()
    limit = BatchingThreadRunner(threads)
    results = [outcome(limit.run(identity, number)) for number in range(MAX_BATCH + 10)]
    assert threads.made == MIN_CONCURRENT
    threads.let_all_go()
    assert all(results)
    assert threads.made == MIN_CONCURRENT + 2


def test_a_piece_does_not_wait_for_others_when_no_trip_is_under_way() -> None:
    assert outcome(BatchingThreadRunner(InThisThread()).run(identity, 1)) == [1]


@pytest.mark.parametrize(
    ("each", "expected"),
    [(0.000_1, MIN_CONCURRENT), (0.005, 5), (3.0, MAX_CONCURRENT)],
    ids=["a quick disk", "a slow one", "one far away"],
)
def test_the_slower_each_piece_the_more_trips(each: float, expected: int) -> None:
    limit = seconds(each)
    for _ in range(60):
        limit.run(identity, None)
    assert limit.limit == pytest.approx(expected, abs=1)


def test_a_cancelled_piece_does_not_disturb_the_others() -> None:
    threads = HeldThreads()
    limit = BatchingThreadRunner(threads)
    for _ in range(MIN_CONCURRENT):
        limit.run(identity, None)
    cancelled, other = limit.run(identity, 1), limit.run(identity, 2)
    results = outcome(cancelled), outcome(other)
    cancelled.cancel()
    threads.let_all_go()
    assert isinstance(failure_of(results[0]), CancelledError)
    assert results[1] == [2]
