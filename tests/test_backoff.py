"""The waits between tries."""

from __future__ import annotations

import pytest

from cartd.backoff import LONGEST_WAIT, Rests, waits


def test_waits_double_from_half_a_second() -> None:
    assert list(waits(5, lambda: 0.5)) == [0.5, 1.0, 2.0, 4.0]


def test_no_wait_is_over_the_longest() -> None:
    assert list(waits(12, lambda: 0.5))[-1] == LONGEST_WAIT


@pytest.mark.parametrize(("random", "first"), [(0.0, 0.375), (1.0, 0.625)])
def test_jitter_is_a_quarter_either_way(random: float, first: float) -> None:
    assert next(waits(2, lambda: random)) == first


def test_a_single_try_waits_for_nothing() -> None:
    assert list(waits(1, lambda: 0.5)) == []


def test_what_fails_again_and_again_rests_twice_as_long_each_time_up_to_a_limit() -> None:
    rests: Rests[str] = Rests(5)
    now = 0.0
    seen = []
    for _ in range(12):
        rests.failed("a", now)
        begun = now
        while rests.is_resting("a", now):
            assert not rests.is_resting("b", now)
            now += 1
        seen.append(now - begun)
    assert seen == [0, 5, 10, 20, 40, 80, 160, 300, 300, 300, 300, 300]
    now += Rests.FORGOTTEN_AFTER
    rests.failed("a", now)
    assert not rests.is_resting("a", now)
