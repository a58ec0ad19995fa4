"""The batcher writes full or old batches; the call that fills one waits for the write."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from cartd.deferreds.tasks import Batcher
from cartd.errors import Unavailable


class Written:
    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.block: Deferred[None] | None = None
        """If set, writes wait for it, and fail with its failure."""

    async def __call__(self, items: Sequence[int]) -> None:
        if self.block is not None:
            await self.block
        self.batches.append(list(items))


def added(batches: Batcher[int], item: int) -> list[object]:
    done: list[object] = []
    Deferred.fromCoroutine(batches.add(item)).addBoth(done.append)
    return done


def test_a_full_batch_is_written() -> None:
    written = Written()
    batches = Batcher(written, Clock().seconds, size=2)
    for item in range(5):
        added(batches, item)
    assert written.batches == [[0, 1], [2, 3]]
    Deferred.fromCoroutine(batches.flush())
    assert written.batches == [[0, 1], [2, 3], [4]]


def test_an_old_batch_is_written_before_it_is_full() -> None:
    clock, written = Clock(), Written()
    batches = Batcher(written, clock.seconds, max_age=1.0)
    added(batches, 0)
    clock.advance(1.0)
    added(batches, 1)
    assert written.batches == [[0, 1]]


def test_add_of_a_full_batch_waits_for_the_write_before() -> None:
    written = Written()
    written.block = Deferred()
    batches = Batcher(written, Clock().seconds, size=1)
    first, second = added(batches, 0), added(batches, 1)
    assert first == second == written.batches == []
    written.block.callback(None)
    assert written.batches == [[0], [1]]
    assert first == second == [None]


def test_nothing_is_written_when_there_is_nothing() -> None:
    written = Written()
    Deferred.fromCoroutine(Batcher(written, Clock().seconds).flush())
    assert written.batches == []


@pytest.mark.parametrize("ends", ["failed", "cancelled"])
def test_a_failed_batch_is_retried_with_later_items(ends: str) -> None:
    written = Written()
    batches = Batcher(written, Clock().seconds)
    added(batches, 0)
    written.block = Deferred()
    flushing = Deferred.fromCoroutine(batches.flush())
    ended: list[object] = []
    flushing.addErrback(lambda failure: ended.append(failure.type))
    added(batches, 1)
    if ends == "failed":
        written.block.errback(Unavailable("closed"))
    else:
        flushing.cancel()
    assert ended == [Unavailable if ends == "failed" else CancelledError]
    written.block = None
    Deferred.fromCoroutine(batches.flush())
    assert written.batches == [[0, 1]]


def test_any_number_may_wait_for_a_slow_write() -> None:
    """A chain of Deferreds deeper than the recursion limit would lose a result."""
    clock, written = Clock(), Written()
    written.block = Deferred()
    batches = Batcher(written, clock.seconds, max_age=1.0)
    waiting = []
    for item in range(2000):
        waiting.append(added(batches, item))
        clock.advance(1.0)
    written.block.callback(None)
    assert [item for batch in written.batches for item in batch] == list(range(2000))
    assert waiting[1:] == [[None]] * 1999


def test_a_cancelled_add_does_not_block_others() -> None:
    written = Written()
    written.block = Deferred()
    batches = Batcher(written, Clock().seconds, size=1)
    first = added(batches, 0)
    given_up = Deferred.fromCoroutine(batches.add(1))
    second = added(batches, 2)
    given_up.addErrback(lambda failure: failure.trap(CancelledError))
    given_up.cancel()
    assert given_up.called
    written.block.callback(None)
    assert written.batches == [[0], [1, 2]]
    assert first == second == [None]
