"""What the desk does with a post before the store hears of it."""

from __future__ import annotations

from contextlib import nullcontext
from io import BytesIO
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from cartd.carts import Carts
from cartd.errors import InvalidInput, Unavailable
from cartd.model import EVERYBODY
from cartd.shares import NO_LIMITS
from tests.sending import OneByOne


class NoStore:
    """Fails a test that asks anything of the store, or of whoever else works with it."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was asked for")


def desk(threads: OneByOne) -> Carts:
    nobody: Any = NoStore()
    return Carts(
        nobody,
        nobody,
        threads,
        bundle_task=False,
        require_hashsum=False,
        max_entries=10,
        entering=lambda _: nullcontext(),
        limits=NO_LIMITS,
        stage=nobody,
        now=nobody,
    )


def test_a_manifest_is_read_and_parsed_in_a_thread() -> None:
    threads = OneByOne()
    body = BytesIO(b"{}")
    posting = Deferred.fromCoroutine(desk(threads).post(EVERYBODY, "uid", body))
    assert body.tell() == 0 and not posting.called
    threads.finish()
    outcomes: list[Any] = []
    posting.addBoth(outcomes.append)
    [failure] = outcomes
    assert isinstance(failure, Failure) and failure.check(InvalidInput)
    assert str(failure.value) == "fileids: is missing"


@pytest.mark.parametrize("uid", ["", ".x", "a/b", "u" * 256])
def test_a_body_below_a_bad_uid_is_not_even_read(uid: str) -> None:
    threads = OneByOne()
    outcomes: list[Any] = []
    Deferred.fromCoroutine(desk(threads).post(EVERYBODY, uid, BytesIO(b"{}"))).addBoth(
        outcomes.append
    )
    assert threads.held == []
    assert outcomes[0].check(InvalidInput)


def test_a_desk_that_is_closed_asks_to_come_again() -> None:
    threads = OneByOne()
    closed = desk(threads)
    closed.close()
    outcomes: list[Any] = []
    Deferred.fromCoroutine(closed.post(EVERYBODY, "uid", BytesIO(b"{}"))).addBoth(outcomes.append)
    assert threads.held == []
    assert outcomes[0].check(Unavailable)
