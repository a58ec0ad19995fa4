"""The queue of files on tape: exponential backoff, and a few bytes per file."""

from __future__ import annotations

import sys
from array import array

from hypothesis import given
from hypothesis import strategies as st

from cartd.staging.tape import INITIAL_WAIT, MAX_POLL_RETRY_AFTER, MAX_WAIT, RecallQueue


def queue_of(positions: range) -> RecallQueue:
    queue = RecallQueue(positions.stop)
    for position in positions:
        queue.mark(position)
    return queue


def test_a_file_that_was_on_tape_stays_known_when_it_has_come() -> None:
    queue = RecallQueue(3)
    assert 1 not in queue
    queue.mark(1)
    queue.mark(1)
    assert queue.remaining == 1
    queue.done()
    assert (1 in queue, queue.remaining) == (True, 0)


def test_what_is_found_on_the_volume_is_not_recalled() -> None:
    queue = queue_of(range(3))
    queue.unmark([0, 2, 2])
    assert [position in queue for position in range(3)] == [False, True, False]
    assert queue.remaining == 1


def test_a_cart_without_tape_costs_nothing() -> None:
    queue = RecallQueue(10**12)
    queue.unmark([7])
    assert 5 not in queue
    assert queue.next_due() is None
    assert queue.pop_due(10.0, 5) == []


@given(st.integers(0, 12), st.floats(0, 1e6), st.none() | st.floats(0, 1e6))
def test_a_wait_doubles_with_each_poll_or_follows_retry_after(
    polls: int, now: float, asked: float | None
) -> None:
    queue = queue_of(range(1))
    for _ in range(polls):
        queue.add(0, now)
    wait = min(INITIAL_WAIT * 2.0**polls, MAX_WAIT)
    wait = max(wait, min(asked or 0.0, MAX_POLL_RETRY_AFTER))
    assert now + wait <= queue.add(0, now, asked) <= now + wait + 1


@given(st.lists(st.floats(0, 1000), max_size=30), st.integers(1, 7))
def test_what_is_due_is_taken_once_and_nothing_before_its_time(
    times: list[float], most: int
) -> None:
    queue = queue_of(range(len(times)))
    due = {position: queue.add(position, time) for position, time in enumerate(times)}
    for now in sorted(set(due.values())):
        assert queue.next_due() == now
        assert queue.pop_due(now - 0.001, most) == []
        while taken := queue.pop_due(now, most):
            assert len(taken) <= most
            assert taken == sorted(taken)
            assert {due.pop(position) for position in taken} == {now}
    assert not due
    assert queue.next_due() is None


def test_many_files_take_nine_bytes_each() -> None:
    number = 200_000
    queue = queue_of(range(number))
    for position in range(number):
        queue.record_announced(position, position / 1000)
        queue.add(position, position / 1000)
    kept = [queue._marks, queue._announced, *queue._due.values()]
    assert all(isinstance(one, bytearray | array) for one in kept)
    assert sum(map(sys.getsizeof, kept)) < 12 * number
    assert len(queue._due) <= 201
