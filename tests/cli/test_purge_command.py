"""``cartd-cmd purge`` beside a service that writes access times late and evicts carts."""

from __future__ import annotations

import errno
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred

from cartd.carts.delete import CannotRemove
from cartd.cli.main import Purge
from cartd.model import Cart, CartStatus
from tests.carts.test_delete import RemovalBench, refusing
from tests.support.volume_parts import failure_of, outcome, result_of

BEFORE = 100


@pytest.fixture
def bench(tmp_path: Path) -> RemovalBench:
    return RemovalBench(tmp_path)


def purge_while(
    bench: RemovalBench, monkeypatch: pytest.MonkeyPatch, happens: Callable[[Cart], Cart]
) -> Purge:
    """Purge carts last used before ``BEFORE``; ``happens`` runs once the purge has begun."""
    begin_eviction = bench.store.removals.begin_eviction
    left = [happens]

    async def later(seen: Cart, token: str) -> bool:
        if left:
            bench.store.cart_rows[seen.id] = left.pop()(bench.store.cart_rows[seen.id])
        return await begin_eviction(seen, token)

    monkeypatch.setattr(bench.store.removals, "begin_eviction", later)
    return Purge(bench.store, bench.removal, BEFORE, io.StringIO(), dry_run=False)


def test_purge_ignores_an_access_time_that_is_written_late(
    bench: RemovalBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    cart = bench.ready()
    purge = purge_while(bench, monkeypatch, lambda cart: replace(cart, used=BEFORE - 1))
    result_of(purge.run())
    assert bench.store.cart_rows[cart.id].status is CartStatus.DELETED
    assert bench.left() == set()


def test_a_late_access_time_deletes_no_cart_on_a_failing_disk(
    bench: RemovalBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    carts = [bench.ready("one"), bench.ready("two")]
    refusing(bench, monkeypatch, errno.EPERM)
    purge = purge_while(bench, monkeypatch, lambda cart: replace(cart, used=BEFORE - 1))
    assert isinstance(failure_of(outcome(Deferred.fromCoroutine(purge.run()))), CannotRemove)
    assert {bench.store.cart_rows[cart.id].status for cart in carts} == {CartStatus.READY}


@pytest.mark.parametrize(
    "happens",
    [
        lambda cart: replace(cart, used=BEFORE),
        lambda cart: replace(cart, evicting="the service's"),
    ],
    ids=["used", "evicted"],
)
def test_purge_keeps_carts_used_or_evicted_meanwhile(
    bench: RemovalBench, monkeypatch: pytest.MonkeyPatch, happens: Callable[[Cart], Cart]
) -> None:
    cart = bench.ready()
    purge = purge_while(bench, monkeypatch, happens)
    result_of(purge.run())
    assert bench.store.cart_rows[cart.id].status is CartStatus.READY
