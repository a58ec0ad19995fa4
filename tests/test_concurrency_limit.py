"""How many requests at once an archive is asked, after what it has answered."""

from __future__ import annotations

from twisted.internet.task import Clock

from cartd.concurrency_limit import FEWEST, FIRST_WHILE, LONGEST_WHILE, REGAIN, Tolerance


def after(most: int = 32) -> tuple[Tolerance, Clock]:
    clock = Clock()
    return Tolerance(most, clock.seconds), clock


def narrowed() -> tuple[Tolerance, Clock]:
    tolerance, clock = after()
    tolerance.was_wrong()
    tolerance.was_wrong()
    assert tolerance.places() == 1
    return tolerance, clock


def test_a_wrong_file_among_many_that_are_right_changes_nothing() -> None:
    tolerance, _ = after()
    for _ in range(20):
        tolerance.was_wrong()
        for _ in range(20):
            tolerance.was_right()
    assert tolerance.places() == 32


def test_two_wrong_files_together_are_followed_by_one_at_a_time() -> None:
    tolerance, clock = after()
    tolerance.was_wrong()
    assert tolerance.places() == 32
    tolerance.was_wrong()
    assert tolerance.places() == 1
    clock.advance(FIRST_WHILE - 0.1)
    assert tolerance.places() == 1


def test_more_at_a_time_are_tried_again_by_and_by() -> None:
    tolerance, clock = narrowed()
    seen = []
    for _ in range(7):
        clock.advance(FIRST_WHILE)
        seen.append(tolerance.places())
    assert seen == [2, 4, 8, 16, 32, 32, 32]
    tolerance.was_wrong()
    assert tolerance.places() == 32


def test_a_wrong_file_that_met_nobody_says_nothing_of_company() -> None:
    tolerance, clock = narrowed()
    tolerance.was_wrong()
    clock.advance(FIRST_WHILE)
    assert tolerance.places() == 2


def test_a_wrong_file_on_the_way_back_takes_it_to_one_for_twice_the_while() -> None:
    tolerance, clock = narrowed()
    clock.advance(FIRST_WHILE)
    tolerance.was_wrong()
    assert tolerance.places() == 1
    clock.advance(2 * FIRST_WHILE - 0.1)
    assert tolerance.places() == 1
    clock.advance(0.1)
    assert tolerance.places() == 2


def test_the_while_grows_to_a_bound_and_is_forgotten_when_all_places_are_back() -> None:
    tolerance, clock = narrowed()
    expected = FIRST_WHILE
    for _ in range(20):
        clock.advance(expected)
        assert tolerance.places() == 2
        tolerance.was_wrong()
        assert tolerance.places() == 1
        expected = min(2 * expected, LONGEST_WHILE)
    clock.advance(6 * LONGEST_WHILE)
    assert tolerance.places() == 32
    tolerance.was_wrong()
    tolerance.was_wrong()
    clock.advance(FIRST_WHILE)
    assert tolerance.places() == 2


def test_there_are_never_more_places_than_were_set() -> None:
    tolerance, clock = after(most=3)
    tolerance.was_wrong()
    tolerance.was_wrong()
    seen = []
    for _ in range(4):
        seen.append(tolerance.places())
        clock.advance(FIRST_WHILE)
    assert seen == [1, 2, 3, 3]


def test_files_that_are_wrong_in_any_company_are_not_held_against_it() -> None:
    tolerance, _ = narrowed()
    tolerance.was_wrong_again()
    assert tolerance.places() == 32
    tolerance.was_wrong_again()
    tolerance.was_wrong()
    assert tolerance.places() == 32


def test_a_suspicion_is_taken_back_before_it_leads_to_anything() -> None:
    tolerance, _ = after()
    for _ in range(10):
        assert tolerance.was_wrong()
        tolerance.was_wrong_again()
    assert tolerance.places() == 32


def test_one_that_is_wrong_in_any_company_does_not_excuse_the_others() -> None:
    tolerance, clock = narrowed()
    clock.advance(FIRST_WHILE)
    assert tolerance.was_wrong()
    tolerance.was_wrong_again()
    assert tolerance.places() == 1


def test_a_file_that_met_nobody_is_no_reason_for_suspicion() -> None:
    tolerance, _ = narrowed()
    assert not tolerance.was_wrong()


def test_an_archive_that_closes_connections_is_asked_for_fewer_at_once_but_for_a_few() -> None:
    tolerance, _ = after()
    seen = []
    for _ in range(30):
        tolerance.answered(False)
        seen.append(tolerance.places())
    assert seen[:3] == [31, 30, 29]
    assert seen[-8:] == [FEWEST + 1, *[FEWEST] * 7]


def test_an_archive_that_keeps_connections_is_asked_for_more_by_and_by() -> None:
    tolerance, _ = after()
    for _ in range(30):
        tolerance.answered(False)
    for _ in range(round(1 / REGAIN)):
        assert tolerance.places() == FEWEST
        tolerance.answered(True)
    assert tolerance.places() == FEWEST + 1
    for _ in range(round(40 / REGAIN)):
        tolerance.answered(True)
    assert tolerance.places() == 32


def test_closed_connections_give_no_more_places_than_were_set() -> None:
    tolerance, _ = after(most=3)
    tolerance.answered(False)
    assert tolerance.places() == 3
    tolerance.answered(True)
    assert tolerance.places() == 3


def test_a_file_that_met_others_is_asked_for_alone_whatever_the_archive_keeps() -> None:
    tolerance, clock = after()
    for _ in range(30):
        tolerance.answered(False)
    tolerance.was_wrong()
    tolerance.was_wrong()
    seen = []
    for _ in range(6):
        seen.append(tolerance.places())
        clock.advance(FIRST_WHILE)
    assert seen == [1, 2, 4, FEWEST, FEWEST, FEWEST]
