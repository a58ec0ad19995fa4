"""Batching of many small calls into few calls in threads."""

from __future__ import annotations

from itertools import count

import pytest
from twisted.internet.defer import CancelledError

from cartd.deferreds.threads import (
    MAX_BATCH,
    MAX_CONCURRENT,
    MIN_CONCURRENT,
    BatchingThreadRunner,
)
from tests.support.volume_parts import HeldThreads, InThisThread, failure_of, outcome


def identity(value: object) -> object:
    return value


def fail(error: Exception) -> None:
    raise error


def seconds(each: float, started: int = 0) -> BatchingThreadRunner:
    """Return a runner whose timer measures so many seconds for each call."""
    ticks = count(started)
    return BatchingThreadRunner(InThisThread(), lambda: next(ticks) * each)


def test_each_call_has_its_own_result() -> None:
    threads = HeldThreads()
    limit = BatchingThreadRunner(threads)
    error = OSError("one of many")
    first = [outcome(limit.run(identity, number)) for number in range(10)]
    failed = outcome(limit.run(fail, error))
    last = outcome(limit.run(identity, "last"))
    threads.run_all()
    assert first == [[number] for number in range(10)]
    assert failure_of(failed) is error
    assert last == ["last"]


def test_calls_that_wait_for_a_thread_are_batched() -> None:
    threads = HeldThreads()
    limit = BatchingThreadRunner(threads)
    results = [outcome(limit.run(identity, number)) for number in range(MAX_BATCH + 10)]
    assert threads.made == MIN_CONCURRENT
    threads.run_all()
    assert all(results)
    assert threads.made == MIN_CONCURRENT + 2


def test_a_call_starts_at_once_when_no_thread_is_busy() -> None:
    assert outcome(BatchingThreadRunner(InThisThread()).run(identity, 1)) == [1]


@pytest.mark.parametrize(
    ("each", "expected"),
    [(0.000_1, MIN_CONCURRENT), (0.005, 5), (3.0, MAX_CONCURRENT)],
    ids=["a quick disk", "a slow one", "a remote one"],
)
def test_slower_calls_get_more_threads(each: float, expected: int) -> None:
    limit = seconds(each)
    for _ in range(60):
        limit.run(identity, None)
    assert limit.limit == pytest.approx(expected, abs=1)


def test_a_cancelled_call_does_not_disturb_the_others() -> None:
    threads = HeldThreads()
    limit = BatchingThreadRunner(threads)
    for _ in range(MIN_CONCURRENT):
        limit.run(identity, None)
    cancelled, other = limit.run(identity, 1), limit.run(identity, 2)
    results = outcome(cancelled), outcome(other)
    cancelled.cancel()
    threads.run_all()
    assert isinstance(failure_of(results[0]), CancelledError)
    assert results[1] == [2]
