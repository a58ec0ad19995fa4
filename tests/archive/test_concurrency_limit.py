"""Adaptive limit of parallel requests to the archive."""

from __future__ import annotations

from twisted.internet.task import Clock

from cartd.archive.concurrency_limit import (
    FIRST_DOUBLING_SECONDS,
    INCREASE,
    MAX_DOUBLING_SECONDS,
    MIN_LIMIT,
    AdaptiveLimit,
)


def after(maximum: int = 32) -> tuple[AdaptiveLimit, Clock]:
    clock = Clock()
    return AdaptiveLimit(maximum, clock.seconds), clock


def serial_limit() -> tuple[AdaptiveLimit, Clock]:
    limit, clock = after()
    limit.record_corrupt_file()
    limit.record_corrupt_file()
    assert limit.current() == 1
    return limit, clock


def test_one_corrupt_file_among_many_does_not_change_the_limit() -> None:
    limit, _ = after()
    for _ in range(20):
        limit.record_corrupt_file()
        for _ in range(20):
            limit.record_intact_file()
    assert limit.current() == 32


def test_two_corrupt_files_together_reduce_the_limit_to_1() -> None:
    limit, clock = after()
    limit.record_corrupt_file()
    assert limit.current() == 32
    limit.record_corrupt_file()
    assert limit.current() == 1
    clock.advance(FIRST_DOUBLING_SECONDS - 0.1)
    assert limit.current() == 1


def test_the_limit_doubles_again_with_time() -> None:
    limit, clock = serial_limit()
    seen = []
    for _ in range(7):
        clock.advance(FIRST_DOUBLING_SECONDS)
        seen.append(limit.current())
    assert seen == [2, 4, 8, 16, 32, 32, 32]
    limit.record_corrupt_file()
    assert limit.current() == 32


def test_a_corrupt_file_at_limit_1_does_not_prolong_it() -> None:
    limit, clock = serial_limit()
    limit.record_corrupt_file()
    clock.advance(FIRST_DOUBLING_SECONDS)
    assert limit.current() == 2


def test_a_corrupt_file_during_recovery_resets_the_limit_to_1() -> None:
    limit, clock = serial_limit()
    clock.advance(FIRST_DOUBLING_SECONDS)
    limit.record_corrupt_file()
    assert limit.current() == 1
    clock.advance(2 * FIRST_DOUBLING_SECONDS - 0.1)
    assert limit.current() == 1
    clock.advance(0.1)
    assert limit.current() == 2


def test_the_doubling_interval_grows_to_a_maximum_and_resets() -> None:
    limit, clock = serial_limit()
    expected = FIRST_DOUBLING_SECONDS
    for _ in range(20):
        clock.advance(expected)
        assert limit.current() == 2
        limit.record_corrupt_file()
        assert limit.current() == 1
        expected = min(2 * expected, MAX_DOUBLING_SECONDS)
    clock.advance(6 * MAX_DOUBLING_SECONDS)
    assert limit.current() == 32
    limit.record_corrupt_file()
    limit.record_corrupt_file()
    clock.advance(FIRST_DOUBLING_SECONDS)
    assert limit.current() == 2


def test_the_limit_never_exceeds_its_maximum() -> None:
    limit, clock = after(maximum=3)
    limit.record_corrupt_file()
    limit.record_corrupt_file()
    seen = []
    for _ in range(4):
        seen.append(limit.current())
        clock.advance(FIRST_DOUBLING_SECONDS)
    assert seen == [1, 2, 3, 3]


def test_repeated_identical_corruption_restores_the_limit() -> None:
    limit, _ = serial_limit()
    limit.record_same_corruption()
    assert limit.current() == 32
    limit.record_same_corruption()
    limit.record_corrupt_file()
    assert limit.current() == 32


def test_repeated_identical_corruption_lowers_the_score() -> None:
    limit, _ = after()
    for _ in range(10):
        assert limit.record_corrupt_file()
        limit.record_same_corruption()
    assert limit.current() == 32


def test_one_identical_corruption_does_not_restore_the_limit() -> None:
    limit, clock = serial_limit()
    clock.advance(FIRST_DOUBLING_SECONDS)
    assert limit.record_corrupt_file()
    limit.record_same_corruption()
    assert limit.current() == 1


def test_a_corrupt_file_at_limit_1_does_not_count() -> None:
    limit, _ = serial_limit()
    assert not limit.record_corrupt_file()


def test_closed_connections_decrease_the_limit_to_its_minimum() -> None:
    limit, _ = after()
    seen = []
    for _ in range(30):
        limit.record_response(False)
        seen.append(limit.current())
    assert seen[:3] == [31, 30, 29]
    assert seen[-8:] == [MIN_LIMIT + 1, *[MIN_LIMIT] * 7]


def test_reusable_connections_increase_the_limit_slowly() -> None:
    limit, _ = after()
    for _ in range(30):
        limit.record_response(False)
    for _ in range(round(1 / INCREASE)):
        assert limit.current() == MIN_LIMIT
        limit.record_response(True)
    assert limit.current() == MIN_LIMIT + 1
    for _ in range(round(40 / INCREASE)):
        limit.record_response(True)
    assert limit.current() == 32


def test_the_minimum_does_not_exceed_the_maximum() -> None:
    limit, _ = after(maximum=3)
    limit.record_response(False)
    assert limit.current() == 3
    limit.record_response(True)
    assert limit.current() == 3


def test_corruption_reduces_a_decreased_limit_to_1() -> None:
    limit, clock = after()
    for _ in range(30):
        limit.record_response(False)
    limit.record_corrupt_file()
    limit.record_corrupt_file()
    seen = []
    for _ in range(6):
        seen.append(limit.current())
        clock.advance(FIRST_DOUBLING_SECONDS)
    assert seen == [1, 2, 4, MIN_LIMIT, MIN_LIMIT, MIN_LIMIT]
