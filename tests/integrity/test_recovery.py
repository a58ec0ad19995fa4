"""Requests wait until crash recovery has found which carts must be verified."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from cartd.errors import Unavailable
from cartd.integrity.recovery import RECOVERY_TIMEOUT, Recovery
from cartd.model import Cart
from cartd.store.durability import DirtyRows
from tests.support.memory_store import MemoryStore
from tests.support.staging_parts import Bench
from tests.support.volume_parts import begin, failure_of


class LeftBehind(MemoryStore):
    """``dirty``: dirty rows of dead processes."""

    def __init__(self) -> None:
        super().__init__()
        self.dirty: DirtyRows = {}
        self.done: list[tuple[str, int, list[int]]] = []

    async def abandoned_dirty_rows(
        self, holder: str, *, dead: Collection[str], now: float
    ) -> DirtyRows:
        self._check_call()
        assert (holder, set(dead)) == ("me", {"you"})
        return self.dirty

    async def dirty_rows_of_others(self, cart_id: int, holder: str) -> DirtyRows:
        return {cart_id: self.dirty[cart_id]} if cart_id in self.dirty else {}

    async def revalidate(self, cart_id: int, rows: Sequence[int], *, now: float) -> int:
        self._check_call()
        self.done.append(("revalidated", cart_id, list(rows)))
        self._change(cart_id, files_staged=0)
        return len(rows)

    async def record_synced(
        self, rows: Sequence[int], *, holder: str = "", cache: str | None = None
    ) -> None:
        self.done.append(("synced", 0, list(rows)))


class Recovered(Bench):
    def __init__(self, root: Path) -> None:
        super().__init__(root, {"1": b"one", "2": b"two"})
        self.left = self.store = LeftBehind()
        self.made: Recovery = self.recovery()

    def recover(self) -> list[object]:
        return begin(self.made.recover("me", {"you"}))

    def put_whole(self, *, bundle: bool = False) -> Cart:
        """Return a cart all of whose files are recorded as staged."""
        cart = self.put(bundle=bundle)
        self.left._change(cart.id, files_staged=cart.files_total)
        return self.left.cart_rows[cart.id]


@pytest.fixture
def bench(tmp_path: Path) -> Recovered:
    return Recovered(tmp_path / "volume")


def test_a_request_before_the_first_recovery_waits_for_it(bench: Recovered) -> None:
    asking = [begin(bench.made.wait_until_recovered()) for _ in range(2)]
    assert asking == [[], []]
    assert bench.recover() == [None]
    assert asking == [[None], [None]]
    assert begin(bench.made.wait_until_recovered()) == [None]
    assert not bench.clock.getDelayedCalls()


def test_an_unavailable_store_keeps_requests_waiting(bench: Recovered) -> None:
    asking = begin(bench.made.wait_until_recovered())
    bench.store.failing_calls = 1
    assert isinstance(failure_of(bench.recover()), Unavailable)
    assert asking == []
    assert bench.recover() == [None]
    assert asking == [None]


def test_a_request_that_waits_too_long_is_unavailable(bench: Recovered) -> None:
    asking = begin(bench.made.wait_until_recovered())
    bench.clock.advance(RECOVERY_TIMEOUT)
    assert isinstance(failure_of(asking), Unavailable)
    assert bench.recover() == [None]


def test_a_cancelled_waiter_is_removed(bench: Recovered) -> None:
    asking = Deferred.fromCoroutine(bench.made.wait_until_recovered())
    left: list[Failure | None] = []
    asking.addBoth(left.append)
    asking.cancel()
    assert isinstance(failure_of(left), CancelledError)
    assert not bench.clock.getDelayedCalls()
    assert bench.recover() == [None]


def test_carts_are_revalidated_one_after_the_other(bench: Recovered) -> None:
    first, second = bench.put_whole(), bench.put_whole()
    bench.left.dirty = {first.id: [1, 2, 3], second.id: [99]}
    assert bench.recover() == [None]
    assert bench.left.done == [
        ("revalidated", first.id, [1, 2, 3]),
        ("revalidated", second.id, [99]),
    ]


@pytest.mark.parametrize("there", [True, False])
def test_a_tar_that_is_there_has_been_synced(bench: Recovered, there: bool) -> None:
    cart = bench.put_whole(bundle=True)
    if there:
        tar = bench.volume.paths.tar(cart)
        tar.parent.mkdir()
        tar.write_bytes(b"whole")
    bench.left.dirty = {cart.id: [1, 2]}
    assert bench.recover() == [None]
    assert bench.left.done == [("synced", 0, [1, 2]) if there else ("revalidated", cart.id, [1, 2])]


def test_take_over_returns_the_current_cart(bench: Recovered) -> None:
    cart = bench.put_whole()
    assert begin(bench.made.take_over(cart, "me")) == [cart]
    bench.left.dirty = {cart.id: [1]}
    [taken] = begin(bench.made.take_over(cart, "me"))
    assert taken == bench.left.cart_rows[cart.id] != cart
