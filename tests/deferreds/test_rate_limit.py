"""Rate limiter: bursts, refill, rotation among owners and cancels."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from cartd.deferreds.rate_limit import FairRateLimiter


def taken(limiter: FairRateLimiter, owner: str, times: list[str]) -> Deferred[None]:
    token = limiter.acquire(owner)
    token.addCallback(lambda _: times.append(owner))
    token.addErrback(lambda failure: failure.trap(CancelledError))
    return token


def test_the_rate_is_limited_after_a_short_burst() -> None:
    clock, log = Clock(), list[str]()
    limiter = FairRateLimiter(20, clock)
    for _ in range(100):
        taken(limiter, "a", log)
    assert len(log) == 2
    for second in range(1, 5):
        clock.pump([0.05] * 20)
        assert len(log) == 2 + 20 * second
    clock.pump([0.05] * 40)
    assert len(log) == 100
    assert not clock.getDelayedCalls()


def test_unused_tokens_are_kept_only_for_a_burst() -> None:
    clock, log = Clock(), list[str]()
    limiter = FairRateLimiter(20, clock)
    clock.advance(3600)
    for _ in range(10):
        taken(limiter, "a", log)
    assert len(log) == 2


def test_rates_below_ten_a_second_work() -> None:
    clock, log = Clock(), list[str]()
    limiter = FairRateLimiter(1, clock)
    for _ in range(3):
        taken(limiter, "a", log)
    clock.pump([0.125] * 8 * 2)
    assert len(log) == 3


def test_owners_are_served_in_rotation() -> None:
    clock, log = Clock(), list[str]()
    limiter = FairRateLimiter(10, clock)
    for owner in "xaaaabbc":
        taken(limiter, owner, log)
    clock.pump([0.1] * 8)
    assert log == list("xabcabaa")


def test_a_cancelled_waiter_takes_no_token_and_is_removed() -> None:
    clock, log = Clock(), list[str]()
    limiter = FairRateLimiter(10, clock)
    tokens = [taken(limiter, owner, log) for owner in "xaab"]
    tokens[1].cancel()
    tokens[3].cancel()
    clock.advance(0.1)
    assert log == ["x", "a"]
    last = taken(limiter, "c", log)
    last.cancel()
    assert not clock.getDelayedCalls()


def test_ten_thousand_waiters_do_not_exhaust_the_stack() -> None:
    clock, log = Clock(), list[str]()
    limiter = FairRateLimiter(1_000_000, clock)

    async def again() -> None:
        for _ in range(10_000):
            await limiter.acquire("a")
            log.append("a")

    Deferred.fromCoroutine(again())
    clock.advance(0)
    assert len(log) == 10_000
