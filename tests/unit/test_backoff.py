"""The delays between tries."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from cartd.backoff import MAX_DELAY, Backoff, delays


def test_delays_double_from_half_a_second() -> None:
    assert list(delays(5, lambda: 0.5)) == [0.5, 1.0, 2.0, 4.0]


def test_no_delay_is_over_the_longest() -> None:
    assert list(delays(12, lambda: 0.5))[-1] == MAX_DELAY


@pytest.mark.parametrize(("random", "first"), [(0.0, 0.375), (1.0, 0.625)])
def test_jitter_is_a_quarter_either_way(random: float, first: float) -> None:
    assert next(delays(2, lambda: random)) == first


def test_a_single_try_waits_for_nothing() -> None:
    assert list(delays(1, lambda: 0.5)) == []


def test_keyed_backoff_doubles_up_to_its_limit_and_forgets() -> None:
    clock = Clock()
    backoff: Backoff[str] = Backoff(
        clock.seconds, first=5, longest=300, free_failures=1, forget_after=600
    )
    seen = []
    for _ in range(12):
        backoff.failed("a")
        begun = clock.seconds()
        while backoff.is_waiting("a"):
            assert not backoff.is_waiting("b")
            clock.advance(1)
        seen.append(clock.seconds() - begun)
    assert seen == [0, 5, 10, 20, 40, 80, 160, 300, 300, 300, 300, 300]
    clock.advance(600)
    backoff.failed("a")
    assert not backoff.is_waiting("a")


def test_backoff_begins_with_the_first_failure_that_is_not_free() -> None:
    clock = Clock()
    backoff: Backoff[str] = Backoff(clock.seconds, longest=3)
    seen = []
    for _ in range(4):
        backoff.failed("a")
        begun = clock.seconds()
        while backoff.is_waiting("a"):
            clock.advance(0.5)
        seen.append(clock.seconds() - begun)
    assert seen == [1, 2, 3, 3]
    assert len(backoff) == 1
    backoff.succeeded("a")
    assert len(backoff) == 0
