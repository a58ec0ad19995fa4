"""The waits between tries."""

from __future__ import annotations

import pytest

from cartd.backoff import LONGEST_WAIT, waits


def test_waits_double_from_half_a_second() -> None:
    assert list(waits(5, lambda: 0.5)) == [0.5, 1.0, 2.0, 4.0]


def test_no_wait_is_over_the_longest() -> None:
    assert list(waits(12, lambda: 0.5))[-1] == LONGEST_WAIT


@pytest.mark.parametrize(("random", "first"), [(0.0, 0.375), (1.0, 0.625)])
def test_jitter_is_a_quarter_either_way(random: float, first: float) -> None:
    assert next(waits(2, lambda: random)) == first


def test_a_single_try_waits_for_nothing() -> None:
    assert list(waits(1, lambda: 0.5)) == []
