"""Requests wait until crash recovery has found which carts must be verified."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from cartd.errors import Unavailable
from cartd.integrity.recovery import RECOVERY_TIMEOUT, Recovery
from cartd.model import Cart
from cartd.store.durability import DirtyRows
from tests.support.sqlite_store import SqliteStore
from tests.support.staging_parts import MTIME, Bench
from tests.support.volume_parts import begin, failure_of, result_of

pytest_plugins = ("tests.support.database_fixtures",)


class Recovered(Bench):
    """A bench with carts of a process that may have died, and a recovery."""

    def __init__(self, store: SqliteStore, root: Path) -> None:
        super().__init__(store, root, {"1": b"one", "2": b"two"})
        self.made: Recovery = self.recovery()
        self.revalidated: list[int] = []
        """The carts that were revalidated, in order."""
        self._revalidate = store.durability.revalidate
        store.durability.revalidate = self._record  # type: ignore[method-assign]

    async def _record(self, cart_id: int, rows: Sequence[int], *, now: float) -> int:
        self.revalidated.append(cart_id)
        return await self._revalidate(cart_id, rows, now=now)

    def recover(self) -> list[object]:
        return begin(self.made.recover("me", {"you"}))

    def put_whole(self, holder: str = "you", *, bundle: bool = False) -> Cart:
        """Return a cart all of whose files are recorded as staged, each with a dirty row."""
        cart = self.put(bundle=bundle)
        self.store.lease_to(cart, holder, until=1000.0)
        progress = self.store.progress
        result_of(progress.record_states(cart.id, holder, [(0, 3, MTIME), (1, 3, MTIME)]))
        for position in (0, 1):
            result_of(progress.record_staged(cart.id, holder, [(position, "")], now=0.0))
        return self.store.cart(cart.id)

    def dirty(self, holder: str = "you") -> DirtyRows:
        return result_of(self.store.durability.dirty_rows(holder))


@pytest.fixture
def bench(tmp_path: Path, sqlite_store: SqliteStore) -> Recovered:
    return Recovered(sqlite_store, tmp_path / "volume")


def test_a_request_before_the_first_recovery_waits_for_it(bench: Recovered) -> None:
    asking = [begin(bench.made.wait_until_recovered()) for _ in range(2)]
    assert asking == [[], []]
    assert bench.recover() == [None]
    assert asking == [[None], [None]]
    assert begin(bench.made.wait_until_recovered()) == [None]
    assert not bench.clock.getDelayedCalls()


def test_an_unavailable_store_keeps_requests_waiting(bench: Recovered) -> None:
    asking = begin(bench.made.wait_until_recovered())
    with bench.store.unavailable():
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
    other = bench.put_whole("somebody else")
    assert [len(rows) for rows in bench.dirty().values()] == [2, 2]
    assert bench.recover() == [None]
    assert bench.revalidated == [first.id, second.id]
    assert bench.store.staged(first.id) == bench.store.staged(second.id) == []
    assert bench.store.staged(other.id) == ["1", "2"]
    assert (bench.dirty(), list(bench.dirty("somebody else"))) == ({}, [other.id])


@pytest.mark.parametrize("there", [True, False])
def test_a_tar_that_is_there_has_been_synced(bench: Recovered, there: bool) -> None:
    cart = bench.put_whole(bundle=True)
    if there:
        tar = bench.volume.paths.tar(cart)
        tar.parent.mkdir()
        tar.write_bytes(b"whole")
    assert bench.recover() == [None]
    assert bench.revalidated == ([] if there else [cart.id])
    assert bench.store.staged(cart.id) == (["1", "2"] if there else [])
    assert bench.dirty() == {}


def test_take_over_returns_the_current_cart(bench: Recovered) -> None:
    cart = bench.put_whole("me")
    assert begin(bench.made.take_over(cart, "me")) == [cart]
    cart = bench.put_whole()
    [taken] = begin(bench.made.take_over(cart, "me"))
    assert taken == bench.store.cart(cart.id) != cart
