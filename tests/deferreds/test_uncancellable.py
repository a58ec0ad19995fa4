"""uncancellable() and with_timeout()."""

from __future__ import annotations

import pytest
from twisted.internet.defer import CancelledError, Deferred, TimeoutError, fail, succeed
from twisted.internet.task import Clock

from cartd.deferreds.tasks import uncancellable, with_timeout
from tests.support.volume_parts import begin, failure_of, outcome, result_of


def test_uncancellable_returns_the_result() -> None:
    assert result_of(uncancellable(succeed(5))) == 5
    job: Deferred[int] = Deferred()
    results = begin(uncancellable(job))
    assert results == []
    job.callback(6)
    assert results == [6]


def test_uncancellable_raises_the_failure() -> None:
    error = OSError("no")
    failed: Deferred[int] = fail(error)
    assert failure_of(begin(uncancellable(failed))) is error


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("succeeds", [True, False], ids=["succeeds", "fails"])
def test_uncancellable_raises_a_cancellation_after_the_work(times: int, succeeds: bool) -> None:
    job: Deferred[int] = Deferred()
    waiting = Deferred.fromCoroutine(uncancellable(job))
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


# with_timeout


def test_with_timeout_returns_a_result_or_failure_in_time() -> None:
    clock, work = Clock(), Deferred[int]()
    results = outcome(with_timeout(5, work, clock))
    clock.advance(4)
    work.callback(6)
    assert results == [6]
    error = OSError("no")
    failed: Deferred[int] = fail(error)
    assert failure_of(outcome(with_timeout(5, failed, clock))) is error
    assert clock.getDelayedCalls() == []


@pytest.mark.parametrize("shields", [False, True], ids=["it is cancelled", "it cannot be"])
def test_with_timeout_raises_after_its_time(shields: bool) -> None:
    clock, job = Clock(), Deferred[int]()
    work = Deferred.fromCoroutine(uncancellable(job)) if shields else job
    results = outcome(with_timeout(5, work, clock))
    clock.advance(4.9)
    assert results == []
    clock.advance(0.1)
    late = failure_of(results)
    assert isinstance(late, TimeoutError)
    assert str(late) == "it took more than 5 s"
    assert job.called is not shields
    if shields:
        job.errback(OSError("too late"))  # ignored


def test_cancelling_with_timeout_cancels_the_work() -> None:
    clock, work = Clock(), Deferred[int]()
    waiting = with_timeout(5, work, clock)
    results = outcome(waiting)
    waiting.cancel()
    assert isinstance(failure_of(results), CancelledError)
    assert work.called
    assert clock.getDelayedCalls() == []


def test_with_timeout_fires_even_if_cancelling_the_work_fails() -> None:
    def cannot_be_cancelled(_: object) -> None:
        raise KeyError("a bug")

    clock, work = Clock(), Deferred[None](cannot_be_cancelled)
    results = outcome(with_timeout(5, work, clock))
    with pytest.raises(KeyError):
        clock.advance(5)
    assert isinstance(failure_of(results), TimeoutError)
