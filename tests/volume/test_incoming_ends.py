"""Incoming files that are aborted, finished or cancelled, in any order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred

from cartd.volume.incoming import BLOCK, IncomingFile, State
from tests.support.incoming_place import LARGE, SMALL, Place
from tests.support.volume_parts import (
    HeldThreads,
    InThisThread,
    begin,
    failure_of,
    open_below,
    outcome,
    result_of,
)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, InThisThread(), InThisThread())


@pytest.fixture
def held(tmp_path: Path) -> tuple[Place, HeldThreads]:
    threads = HeldThreads()
    return Place(tmp_path, threads, threads), threads


END: dict[str, Callable[[IncomingFile], Coroutine[Any, Any, Any]]] = {
    "finished": IncomingFile.finish,
    "aborted": IncomingFile.abort,
}


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        (["finished"], [State.FINISHING, State.COMPLETING, State.COMMITTED]),
        (["aborted"], [State.ABORTING, State.DISCARDING, State.FAILED]),
        (["finished", "aborted"], [State.ABORTING, State.DISCARDING, State.FAILED]),
    ],
    ids=["finished", "aborted", "finished and aborted"],
)
def test_the_states_of_a_file_that_ends_while_a_thread_writes(
    held: tuple[Place, HeldThreads], calls: list[str], expected: list[State]
) -> None:
    place, threads = held
    incoming = place.incoming(LARGE)
    states = [incoming.state]
    incoming.write(LARGE)
    states.append(incoming.state)
    ended = [begin(END[call](incoming)) for call in calls]
    states.append(incoming.state)
    threads.run_one()
    states.append(incoming.state)
    threads.run_one()
    assert [*states, incoming.state] == [State.RECEIVING, State.WRITING, *expected]
    assert all(ended)


def test_a_file_that_is_being_completed_is_not_aborted(held: tuple[Place, HeldThreads]) -> None:
    place, threads = held
    incoming = place.incoming(SMALL)
    incoming.write(SMALL)
    finished = begin(incoming.finish())
    begin(incoming.abort())
    states = [incoming.state]
    threads.run_all()
    assert [*states, incoming.state] == [State.COMPLETING, State.COMMITTED]
    assert finished == [hashlib.sha1(SMALL).hexdigest()]


def test_an_abort_before_the_first_block_needs_no_thread(held: tuple[Place, HeldThreads]) -> None:
    place, threads = held
    incoming = place.incoming(SMALL)
    incoming.write(SMALL)
    result_of(incoming.abort())
    result_of(incoming.abort())
    assert threads.made == 0
    assert place.files() == []


def test_an_abort_waits_for_the_thread_and_leaves_nothing(
    held: tuple[Place, HeldThreads],
) -> None:
    place, threads = held
    incoming = place.incoming(LARGE)
    incoming.write(LARGE[:BLOCK])
    aborted = begin(incoming.abort())
    assert aborted == []
    threads.run_one()
    assert open_below(place.root) > 0
    assert aborted == []
    threads.run_all()
    assert aborted == [None]
    assert place.files() == []
    assert open_below(place.root) == 0


def test_a_cancelled_abort_still_waits_for_the_thread(
    held: tuple[Place, HeldThreads],
) -> None:
    place, threads = held
    incoming = place.incoming(LARGE)
    incoming.write(LARGE[:BLOCK])
    aborting = Deferred.fromCoroutine(incoming.abort())
    aborted = outcome(aborting)
    aborting.cancel()
    threads.run_one()
    assert aborted == []
    threads.run_all()
    assert isinstance(failure_of(aborted), CancelledError)
    assert place.files() == []


def test_finish_after_abort_raises_cancelled_error(place: Place) -> None:
    incoming = place.incoming(SMALL)
    incoming.write(SMALL)
    result_of(incoming.abort())
    with pytest.raises(CancelledError):
        result_of(incoming.finish())
    assert place.files() == []


def test_abort_after_finish_keeps_the_file(place: Place) -> None:
    incoming = place.incoming(SMALL)
    incoming.write(SMALL)
    result_of(incoming.finish())
    result_of(incoming.abort())
    assert place.final.read_bytes() == SMALL


def test_an_abort_ends_a_finish_that_waits(held: tuple[Place, HeldThreads]) -> None:
    place, threads = held
    incoming = place.incoming(LARGE)
    incoming.write(LARGE)
    finished, aborted = begin(incoming.finish()), begin(incoming.abort())
    threads.run_all()
    assert isinstance(failure_of(finished), CancelledError)
    assert aborted == [None]
    assert place.files() == []


def test_a_cancelled_finish_waits_for_the_running_thread(
    held: tuple[Place, HeldThreads],
) -> None:
    place, threads = held
    incoming = place.incoming(LARGE)
    incoming.write(LARGE[:BLOCK])
    threads.run_one()
    incoming.write(LARGE[BLOCK:])
    finishing = Deferred.fromCoroutine(incoming.finish())
    finished = outcome(finishing)
    finishing.cancel()
    assert place.files() == [place.root / "incoming" / "7" / "0-x"]
    assert (len(threads.held), finished) == (1, [])
    threads.run_all()
    assert isinstance(failure_of(finished), CancelledError)
    assert place.files() == []


def test_a_finish_that_is_cancelled_twice_still_cleans_up(
    held: tuple[Place, HeldThreads],
) -> None:
    place, threads = held
    incoming = place.incoming(LARGE)
    incoming.write(LARGE)
    finishing = Deferred.fromCoroutine(incoming.finish())
    finished = outcome(finishing)
    finishing.cancel()
    finishing.cancel()
    threads.run_all()
    assert isinstance(failure_of(finished), CancelledError)
    assert place.files() == []


def test_a_file_that_was_whole_when_the_cancel_came_stays(
    held: tuple[Place, HeldThreads],
) -> None:
    place, threads = held
    incoming = place.incoming(SMALL)
    incoming.write(SMALL)
    finishing = Deferred.fromCoroutine(incoming.finish())
    finished = outcome(finishing)
    finishing.cancel()
    threads.run_all()
    assert isinstance(failure_of(finished), CancelledError)
    assert place.files() == [place.final]
