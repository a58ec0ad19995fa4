"""ByteLimit: order, limit and cancels."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from cartd.deferreds.fair_semaphore import ByteLimit

MOST = 10


class Holder:
    """Holds ``size`` bytes until the test ends it."""

    def __init__(self, limit: ByteLimit, size: int) -> None:
        self._limit = limit
        self.size = size
        self.is_in = False
        self._released: Deferred[None] = Deferred()
        self.ended: list[object] = []
        self.job = Deferred.fromCoroutine(self._hold())
        self.job.addBoth(self.ended.append)

    async def _hold(self) -> None:
        async with self._limit.hold(self.size):
            self.is_in = True
            await self._released
        self.is_in = False

    def release(self) -> None:
        self._released.callback(None)


def those_in(holders: Sequence[Holder]) -> list[int]:
    return [at for at, holder in enumerate(holders) if holder.is_in]


def test_waiters_are_served_in_order_even_if_a_later_one_fits() -> None:
    limit = ByteLimit(MOST)
    holders = [Holder(limit, size) for size in (6, 5, 1)]
    assert those_in(holders) == [0]
    holders[0].release()
    assert those_in(holders) == [1, 2]


def test_a_request_above_the_limit_waits_until_it_is_alone() -> None:
    limit = ByteLimit(MOST)
    holders = [Holder(limit, size) for size in (1, 99, 1)]
    assert those_in(holders) == [0]
    holders[0].release()
    assert those_in(holders) == [1]
    holders[1].release()
    assert those_in(holders) == [2]
    assert limit.taken == 1


def test_a_cancelled_waiter_blocks_no_other() -> None:
    limit = ByteLimit(MOST)
    holders = [Holder(limit, size) for size in (6, 99, 4)]
    holders[1].job.cancel()
    [failure] = holders[1].ended
    assert isinstance(failure, Failure) and failure.check(CancelledError)
    assert those_in(holders) == [0, 2]


def test_a_holder_that_is_cancelled_releases_its_bytes() -> None:
    limit = ByteLimit(MOST)
    holder = Holder(limit, 6)
    holder.job.cancel()
    assert limit.taken == 0


@given(
    st.lists(
        st.tuples(st.sampled_from(["come", "release", "cancel"]), st.integers(0, 15)), max_size=40
    )
)
def test_the_limit_holds_except_for_a_single_large_request(
    steps: list[tuple[str, int]],
) -> None:
    limit = ByteLimit(MOST)
    holders: list[Holder] = []
    for what, number in steps:
        if what == "come":
            holders.append(Holder(limit, number))
        elif holders:
            one = holders[number % len(holders)]
            if what == "cancel" and not one.is_in:
                one.job.cancel()
            elif what == "release" and one.is_in:
                one.release()
        inside = [holder.size for holder in holders if holder.is_in and holder.size]
        assert limit.taken == sum(inside)
        assert sum(inside) <= MOST or len(inside) == 1
    for holder in holders:
        holder.job.cancel()
    assert limit.taken == 0
