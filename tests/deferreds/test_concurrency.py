"""Fair semaphore, worker pool and both()."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import TypeVar

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from cartd.deferreds.fair_semaphore import INITIAL_SLOTS, RAMP_UP_SECONDS, FairSemaphore
from cartd.deferreds.tasks import both, for_each

T = TypeVar("T")


async def each(items: Iterable[T]) -> AsyncIterator[T]:
    for item in items:
        yield item


def outcome(deferred: Deferred[None]) -> list[object]:
    results: list[object] = []
    deferred.addBoth(results.append)
    return results


class Jobs:
    """Jobs that run until the test ends them."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.cleaned: list[str] = []
        self.running: dict[str, Deferred[None]] = {}

    async def work(self, name: str) -> None:
        self.started.append(name)
        self.running[name] = Deferred()
        try:
            await self.running[name]
        finally:
            del self.running[name]
            self.cleaned.append(name)

    def end(self, name: str) -> None:
        self.running[name].callback(None)


async def hold(semaphore: FairSemaphore, key: str, log: list[str], end: Deferred[None]) -> None:
    async with semaphore.slot(key):
        log.append(key)
        await end


def test_a_busy_key_does_not_starve_another() -> None:
    semaphore = FairSemaphore(lambda: 1, Clock())
    log: list[str] = []
    ends: list[Deferred[None]] = [Deferred() for _ in range(6)]
    for key, end in zip("aaaabb", ends, strict=True):
        Deferred.fromCoroutine(hold(semaphore, key, log, end))
    for _ in range(6):
        by_key = {"a": ends[:4], "b": ends[4:]}[log[-1]]
        next(end for end in by_key if not end.called).callback(None)
    assert log == ["a", "a", "b", "a", "b", "a"]


def test_no_more_slots_are_held_than_the_limit() -> None:
    semaphore = FairSemaphore(lambda: 2, Clock())
    log: list[str] = []
    first: Deferred[None] = Deferred()
    others: Deferred[None] = Deferred()
    for key in "abc":
        Deferred.fromCoroutine(hold(semaphore, key, log, first if key == "a" else others))
    assert log == ["a", "b"]
    first.callback(None)
    assert log == ["a", "b", "c"]
    others.callback(None)


def test_a_cancelled_waiter_acquires_no_slot() -> None:
    semaphore = FairSemaphore(lambda: 1, Clock())
    log: list[str] = []
    first: Deferred[None] = Deferred()
    last: Deferred[None] = Deferred()
    Deferred.fromCoroutine(hold(semaphore, "a", log, first))
    cancelled = Deferred.fromCoroutine(hold(semaphore, "b", log, Deferred()))
    Deferred.fromCoroutine(hold(semaphore, "c", log, last))
    result = outcome(cancelled)
    cancelled.cancel()
    assert isinstance(result[0], Failure) and result[0].check(CancelledError)
    first.callback(None)
    assert log == ["a", "c"]
    last.callback(None)


class Holders:
    """Holders of slots, each with a key of its own; ``log`` has the keys that got one."""

    def __init__(self) -> None:
        self.most = 100
        self.clock = Clock()
        self.semaphore = FairSemaphore(lambda: self.most, self.clock)
        self.log: list[str] = []
        self.ends: dict[str, Deferred[None]] = {}
        self.acquired = 0

    def acquire(self, number: int) -> None:
        for _ in range(number):
            self.acquired += 1
            end = self.ends[str(self.acquired)] = Deferred()
            Deferred.fromCoroutine(hold(self.semaphore, str(self.acquired), self.log, end))

    def release(self, number: int) -> None:
        for key in list(self.ends)[:number]:
            self.ends.pop(key).callback(None)


@pytest.fixture
def holders() -> Iterator[Holders]:
    """All have got a slot at the end."""
    holders = Holders()
    yield holders
    holders.release(len(holders.ends))
    assert len(holders.log) == holders.acquired


def test_slots_ramp_up_with_each_release(holders: Holders) -> None:
    holders.acquire(50)
    assert len(holders.log) == INITIAL_SLOTS
    holders.release(1)
    assert len(holders.log) == INITIAL_SLOTS + 2  # the released slot, and another one
    holders.release(3)
    assert len(holders.log) == INITIAL_SLOTS + 8


def test_slots_ramp_up_with_time(holders: Holders) -> None:
    holders.acquire(3 * INITIAL_SLOTS + 1)
    seen = []
    for _ in range(4):
        holders.clock.advance(RAMP_UP_SECONDS)
        seen.append(len(holders.log))
    assert seen == [
        2 * INITIAL_SLOTS,
        3 * INITIAL_SLOTS,
        3 * INITIAL_SLOTS + 1,
        3 * INITIAL_SLOTS + 1,
    ]
    assert holders.clock.getDelayedCalls() == []


def test_the_next_burst_begins_with_the_initial_slots(holders: Holders) -> None:
    holders.acquire(20)
    holders.release(20)
    assert len(holders.log) == 20
    holders.clock.advance(RAMP_UP_SECONDS)
    holders.acquire(20)
    assert len(holders.log) == 20 + INITIAL_SLOTS


def test_any_number_of_slots_may_be_released_at_once(holders: Holders) -> None:
    """Nested callbacks would exceed Python's stack."""
    holders.acquire(INITIAL_SLOTS + 2000)
    for key in list(holders.ends)[INITIAL_SLOTS:]:
        holders.ends.pop(key).callback(None)
    holders.release(1)
    assert len(holders.log) == INITIAL_SLOTS + 2000


def test_a_lowered_limit_is_respected_on_release(holders: Holders) -> None:
    holders.acquire(20)
    holders.most = 1
    holders.release(INITIAL_SLOTS - 1)
    assert len(holders.log) == INITIAL_SLOTS
    holders.release(1)
    assert len(holders.log) == INITIAL_SLOTS + 1
    holders.clock.advance(RAMP_UP_SECONDS)
    holders.release(1)
    assert len(holders.log) == INITIAL_SLOTS + 2
    holders.most = 2
    holders.release(1)
    assert len(holders.log) == INITIAL_SLOTS + 4


def test_for_each_limits_concurrency_and_reads_of_its_source() -> None:
    jobs = Jobs()
    done = outcome(Deferred.fromCoroutine(for_each(each("abcd"), jobs.work, lambda: 2)))
    assert jobs.started == ["a", "b"]
    jobs.end("b")
    assert jobs.started == ["a", "b", "c"]
    for name in "acd":
        jobs.end(name)
    assert jobs.cleaned == ["b", "a", "c", "d"]
    assert done == [None]


def test_the_worker_pool_grows_and_shrinks_with_its_limit() -> None:
    wanted = 1
    jobs = Jobs()
    done = outcome(Deferred.fromCoroutine(for_each(each("abcdefg"), jobs.work, lambda: wanted)))
    assert jobs.started == ["a"]
    wanted = 3
    jobs.end("a")
    assert set(jobs.running) == set("bcd")
    wanted = 1
    for name in "bcd":
        jobs.end(name)
    assert set(jobs.running) == {"e"}
    for name in "efg":
        jobs.end(name)
    assert done == [None]


class Pages:
    """A source whose items come when the test provides them."""

    def __init__(self) -> None:
        self.page: Deferred[int] = Deferred()

    def provide(self, number: int) -> None:
        page, self.page = self.page, Deferred()
        page.callback(number)

    async def items(self) -> AsyncIterator[str]:
        while number := await self.page:
            for item in range(number):
                yield str(item)


def test_any_number_of_workers_may_wait_for_the_source() -> None:
    """Nested callbacks would exceed Python's stack."""
    pages, jobs = Pages(), Jobs()
    many = 2000
    done = outcome(Deferred.fromCoroutine(for_each(pages.items(), jobs.work, lambda: many)))
    for _ in range(3):
        pages.provide(many)
        assert len(jobs.running) == many
        for name in list(jobs.running):
            jobs.end(name)
    assert done == []
    pages.provide(0)
    assert done == [None] and len(jobs.cleaned) == 3 * many


def test_a_failing_worker_may_cancel_those_that_wait_for_items() -> None:
    async def fail(_: str) -> None:
        raise OSError("disk")

    pages = Pages()
    done = outcome(Deferred.fromCoroutine(for_each(pages.items(), fail, lambda: 9)))
    pages.provide(5)
    assert isinstance(done[0], Failure) and done[0].check(OSError)


def test_any_number_of_jobs_may_end_at_once() -> None:
    async def work(_: int) -> None:
        pass

    assert outcome(Deferred.fromCoroutine(for_each(each(range(5000)), work, lambda: 9))) == [None]


@pytest.mark.parametrize("ends", ["failed", "cancelled"])
def test_the_failure_of_the_source_cancels_the_jobs(ends: str) -> None:
    pages, jobs = Pages(), Jobs()
    loop = Deferred.fromCoroutine(for_each(pages.items(), jobs.work, lambda: 5))
    done = outcome(loop)
    pages.provide(2)
    if ends == "failed":
        pages.page.errback(OSError("disk"))
    else:
        loop.cancel()
    assert sorted(jobs.cleaned) == ["0", "1"]
    assert isinstance(done[0], Failure)
    assert done[0].check(OSError if ends == "failed" else CancelledError)


def test_the_first_failure_cancels_the_others_and_is_raised_last() -> None:
    jobs = Jobs()
    done = outcome(Deferred.fromCoroutine(for_each(each("abcd"), jobs.work, lambda: 3)))
    jobs.running["b"].errback(OSError("disk"))
    assert jobs.started == ["a", "b", "c"]
    assert sorted(jobs.cleaned) == ["a", "b", "c"]
    assert isinstance(done[0], Failure) and str(done[0].value) == "disk"


def test_cancelling_for_each_waits_until_every_job_has_ended() -> None:
    slow: Deferred[None] = Deferred()

    async def clean_slowly(_: str) -> None:
        try:
            await Deferred()
        finally:
            await slow

    loop = Deferred.fromCoroutine(for_each(each("ab"), clean_slowly, lambda: 2))
    done = outcome(loop)
    loop.cancel()
    assert done == []
    slow.callback(None)
    assert isinstance(done[0], Failure) and done[0].check(CancelledError)


@pytest.mark.parametrize("fails", ["first", "second"])
def test_both_cancels_the_other_when_one_fails(fails: str) -> None:
    jobs = Jobs()
    done = outcome(Deferred.fromCoroutine(both(jobs.work("first"), jobs.work("second"))))
    jobs.running[fails].errback(OSError("disk"))
    assert sorted(jobs.cleaned) == ["first", "second"]
    assert isinstance(done[0], Failure) and done[0].check(OSError)


def test_both_closes_a_coroutine_that_has_never_begun() -> None:
    async def fail() -> None:
        raise OSError("disk")

    jobs = Jobs()
    second = jobs.work("second")
    done = outcome(Deferred.fromCoroutine(both(fail(), second)))
    assert inspect.getcoroutinestate(second) == inspect.CORO_CLOSED
    assert jobs.started == []
    assert isinstance(done[0], Failure) and done[0].check(OSError)
