"""How many requests at once an archive is asked, after what it has answered."""

from __future__ import annotations

from twisted.internet.task import Clock

from cartd.concurrency_limit import (
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


def test_a_wrong_file_among_many_that_are_right_changes_nothing() -> None:
    limit, _ = after()
    for _ in range(20):
        limit.record_corrupt_file()
        for _ in range(20):
            limit.record_intact_file()
    assert limit.current() == 32


def test_two_wrong_files_together_are_followed_by_one_at_a_time() -> None:
    limit, clock = after()
    limit.record_corrupt_file()
    assert limit.current() == 32
    limit.record_corrupt_file()
    assert limit.current() == 1
    clock.advance(FIRST_DOUBLING_SECONDS - 0.1)
    assert limit.current() == 1


def test_more_at_a_time_are_tried_again_by_and_by() -> None:
    limit, clock = serial_limit()
    seen = []
    for _ in range(7):
        clock.advance(FIRST_DOUBLING_SECONDS)
        seen.append(limit.current())
    assert seen == [2, 4, 8, 16, 32, 32, 32]
    limit.record_corrupt_file()
    assert limit.current() == 32


def test_a_wrong_file_that_met_nobody_says_nothing_of_company() -> None:
    limit, clock = serial_limit()
    limit.record_corrupt_file()
    clock.advance(FIRST_DOUBLING_SECONDS)
    assert limit.current() == 2


def test_a_wrong_file_on_the_way_back_takes_it_to_one_for_twice_the_while() -> None:
    limit, clock = serial_limit()
    clock.advance(FIRST_DOUBLING_SECONDS)
    limit.record_corrupt_file()
    assert limit.current() == 1
    clock.advance(2 * FIRST_DOUBLING_SECONDS - 0.1)
    assert limit.current() == 1
    clock.advance(0.1)
    assert limit.current() == 2


def test_the_while_grows_to_a_bound_and_is_forgotten_when_all_places_are_back() -> None:
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


def test_there_are_never_more_places_than_were_set() -> None:
    limit, clock = after(maximum=3)
    limit.record_corrupt_file()
    limit.record_corrupt_file()
    seen = []
    for _ in range(4):
        seen.append(limit.current())
        clock.advance(FIRST_DOUBLING_SECONDS)
    assert seen == [1, 2, 3, 3]


def test_files_that_are_wrong_in_any_company_are_not_held_against_it() -> None:
    limit, _ = serial_limit()
    limit.record_same_corruption()
    assert limit.current() == 32
    limit.record_same_corruption()
    limit.record_corrupt_file()
    assert limit.current() == 32


def test_a_suspicion_is_taken_back_before_it_leads_to_anything() -> None:
    limit, _ = after()
    for _ in range(10):
        assert limit.record_corrupt_file()
        limit.record_same_corruption()
    assert limit.current() == 32


def test_one_that_is_wrong_in_any_company_does_not_excuse_the_others() -> None:
    limit, clock = serial_limit()
    clock.advance(FIRST_DOUBLING_SECONDS)
    assert limit.record_corrupt_file()
    limit.record_same_corruption()
    assert limit.current() == 1


def test_a_file_that_met_nobody_is_no_reason_for_suspicion() -> None:
    limit, _ = serial_limit()
    assert not limit.record_corrupt_file()


def test_an_archive_that_closes_connections_is_asked_for_fewer_at_once_but_for_a_few() -> None:
    limit, _ = after()
    seen = []
    for _ in range(30):
        limit.record_response(False)
        seen.append(limit.current())
    assert seen[:3] == [31, 30, 29]
    assert seen[-8:] == [MIN_LIMIT + 1, *[MIN_LIMIT] * 7]


def test_an_archive_that_keeps_connections_is_asked_for_more_by_and_by() -> None:
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


def test_closed_connections_give_no_more_places_than_were_set() -> None:
    limit, _ = after(maximum=3)
    limit.record_response(False)
    assert limit.current() == 3
    limit.record_response(True)
    assert limit.current() == 3


def test_a_file_that_met_others_is_asked_for_alone_whatever_the_archive_keeps() -> None:
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
