"""``cartd-cmd purge`` beside a service that writes access times late and evicts carts."""

from __future__ import annotations

import errno
import io
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from cartd.carts.delete import CannotRemove
from cartd.cli.carts import Purge
from cartd.model import Cart, CartStatus
from tests.carts.test_delete import RemovalBench, refusing
from tests.support.sqlite_store import SqliteStore
from tests.support.volume_parts import failure_of, outcome, result_of

pytest_plugins = ("tests.support.database_fixtures",)

BEFORE = 100
Happens = Callable[[SqliteStore, Cart], Coroutine[Any, Any, object]]


@pytest.fixture
def bench(tmp_path: Path, sqlite_store: SqliteStore) -> RemovalBench:
    return RemovalBench(sqlite_store, tmp_path / "volume")


def used_at(time: float) -> Happens:
    return lambda store, cart: store.carts.touch({cart.id: time})


def evicted(store: SqliteStore, cart: Cart) -> Coroutine[Any, Any, object]:
    return store.removals.begin_eviction(cart, "the service's")


def purge_while(bench: RemovalBench, monkeypatch: pytest.MonkeyPatch, happens: Happens) -> Purge:
    """Purge carts last used before ``BEFORE``; ``happens`` runs once the purge has begun."""
    begin_eviction = bench.store.removals.begin_eviction
    left = [happens]

    async def later(seen: Cart, token: str) -> bool:
        if left:
            await left.pop()(bench.store, seen)
        return await begin_eviction(seen, token)

    monkeypatch.setattr(bench.store.removals, "begin_eviction", later)
    return Purge(bench.store, bench.removal, BEFORE, io.StringIO(), dry_run=False)


def test_purge_ignores_an_access_time_that_is_written_late(
    bench: RemovalBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    cart = bench.ready()
    purge = purge_while(bench, monkeypatch, used_at(BEFORE - 1))
    result_of(purge.run())
    assert bench.store.cart(cart.id).status is CartStatus.DELETED
    assert bench.left() == set()


def test_a_late_access_time_deletes_no_cart_on_a_failing_disk(
    bench: RemovalBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    carts = [bench.ready("one"), bench.ready("two")]
    refusing(bench, monkeypatch, errno.EPERM)
    purge = purge_while(bench, monkeypatch, used_at(BEFORE - 1))
    assert isinstance(failure_of(outcome(Deferred.fromCoroutine(purge.run()))), CannotRemove)
    assert {bench.store.cart(cart.id).status for cart in carts} == {CartStatus.READY}


@pytest.mark.parametrize("happens", [used_at(BEFORE), evicted], ids=["used", "evicted"])
def test_purge_keeps_carts_used_or_evicted_meanwhile(
    bench: RemovalBench, monkeypatch: pytest.MonkeyPatch, happens: Happens
) -> None:
    cart = bench.ready()
    purge = purge_while(bench, monkeypatch, happens)
    result_of(purge.run())
    assert bench.store.cart(cart.id).status is CartStatus.READY
