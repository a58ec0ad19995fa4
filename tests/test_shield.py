"""Waiting for work that cannot be interrupted."""

from __future__ import annotations

import pytest
from twisted.internet.defer import CancelledError, Deferred, fail, succeed

from cartd.shield import shielded
from tests.volume_parts import begin, failure_of, outcome, result_of


def test_the_result_is_that_of_the_work() -> None:
    assert result_of(shielded(succeed(5))) == 5
    job: Deferred[int] = Deferred()
    results = begin(shielded(job))
    assert results == []
    job.callback(6)
    assert results == [6]


def test_the_failure_is_that_of_the_work() -> None:
    error = OSError("no")
    failed: Deferred[int] = fail(error)
    assert failure_of(begin(shielded(failed))) is error


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("succeeds", [True, False], ids=["succeeds", "fails"])
def test_a_cancellation_is_raised_when_the_work_has_ended(times: int, succeeds: bool) -> None:
    job: Deferred[int] = Deferred()
    waiting = Deferred.fromCoroutine(shielded(job))
    results = outcome(waiting)
    for _ in range(times):
        waiting.cancel()
    assert results == []
    assert not job.called
    if succeeds:
        job.callback(5)
    else:
        job.errback(OSError("no"))
    assert isinstance(failure_of(results), CancelledError)
