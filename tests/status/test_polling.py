"""Long polling: who waits, until when, and that nothing is left behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from cartd.status.polling import LongPolls


class Versions:
    """Versions of carts; a query may be held."""

    def __init__(self) -> None:
        self.current = {1: 5, 2: 7}
        self.asked: list[list[int]] = []
        self.held: Deferred[None] | None = None

    async def __call__(self, cart_ids: Sequence[int]) -> Mapping[int, int]:
        self.asked.append(list(cart_ids))
        found = {one: self.current[one] for one in cart_ids if one in self.current}
        if self.held is not None:
            await self.held
        return found


@pytest.fixture
def versions() -> Versions:
    return Versions()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def polls(versions: Versions, clock: Clock) -> LongPolls:
    return LongPolls(versions, clock, limit=3)


def wait(polls: LongPolls, cart_id: int, version: int, seconds: float = 30) -> Deferred[None]:
    return Deferred.fromCoroutine(polls.wait(cart_id, version, seconds))


def poll(polls: LongPolls) -> Deferred[None]:
    return Deferred.fromCoroutine(polls.poll())


def test_a_wait_ends_when_its_cart_has_another_version(polls: LongPolls, clock: Clock) -> None:
    first, second = wait(polls, 1, 5), wait(polls, 2, 6)
    poll(polls)
    assert (first.called, second.called) == (False, True)


def test_a_wait_ends_after_its_time(polls: LongPolls, clock: Clock) -> None:
    waiting = wait(polls, 1, 5, 30)
    clock.advance(29.9)
    assert not waiting.called
    clock.advance(0.1)
    assert waiting.called


def test_a_wait_ends_when_its_cart_is_gone(polls: LongPolls, versions: Versions) -> None:
    waiting = wait(polls, 1, 5)
    del versions.current[1]
    poll(polls)
    assert waiting.called


def test_one_query_serves_all_waits(polls: LongPolls, versions: Versions) -> None:
    waits = [wait(polls, 1, 5), wait(polls, 1, 5), wait(polls, 2, 7)]
    poll(polls)
    assert versions.asked == [[1, 2]]
    assert not any(one.called for one in waits)


def test_nothing_is_asked_while_nobody_waits(polls: LongPolls, versions: Versions) -> None:
    poll(polls)
    assert versions.asked == []


def test_a_wait_that_began_during_a_query_is_not_ended_by_it(
    polls: LongPolls, versions: Versions
) -> None:
    wait(polls, 1, 5)
    versions.held = Deferred()
    poll(polls)
    versions.current[1] = 6
    late = wait(polls, 1, 6)
    versions.held.callback(None)
    assert not late.called


def test_the_number_of_waits_is_limited(polls: LongPolls) -> None:
    waits = [wait(polls, 1, 5) for _ in range(3)]
    assert not polls.has_room
    assert wait(polls, 1, 5).called
    waits[0].addErrback(lambda failure: failure.trap(CancelledError))
    waits[0].cancel()
    assert polls.has_room


def test_a_cancelled_wait_leaves_no_timer(polls: LongPolls, clock: Clock) -> None:
    waiting = wait(polls, 1, 5)
    waiting.addErrback(lambda failure: failure.trap(CancelledError))
    waiting.cancel()
    assert clock.getDelayedCalls() == []


def test_closing_ends_all_waits_and_prevents_others(polls: LongPolls, clock: Clock) -> None:
    waits = [wait(polls, 1, 5), wait(polls, 2, 7)]
    polls.close()
    assert all(one.called for one in waits)
    assert not polls.has_room
    assert wait(polls, 1, 5).called
    assert clock.getDelayedCalls() == []
