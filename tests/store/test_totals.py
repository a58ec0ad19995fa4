"""Sums over all carts, on SQLite and PostgreSQL."""

from __future__ import annotations

import pytest_twisted

from cartd.model import CartStatus
from cartd.store import Store
from tests.support.stored_carts import claimed, posted, staged, with_status

pytest_plugins = ("tests.support.database_fixtures",)


@pytest_twisted.ensureDeferred
async def test_without_carts_there_are_no_totals(store: Store) -> None:
    assert await store.totals.by_status() == {}
    assert await store.totals.dirty_rows() == 0


@pytest_twisted.ensureDeferred
async def test_totals_are_sums_by_status_without_deleted_carts(store: Store) -> None:
    await posted(store, "a", 2)
    on_tape = await claimed(store, "b", 3)
    await store.progress.record_tape(on_tape.id, "me", 3, now=11)
    await staged(store, "c", 5)
    await with_status(store, "d", CartStatus.ERROR)
    await with_status(store, "e", CartStatus.DELETED)
    totals = await store.totals.by_status()
    assert totals.keys() == {CartStatus.STAGING, CartStatus.READY, CartStatus.ERROR}
    staging, ready, error = (
        totals[status] for status in (CartStatus.STAGING, CartStatus.READY, CartStatus.ERROR)
    )
    assert (staging.carts, staging.files, staging.staged, staging.on_tape) == (2, 5, 0, 3)
    assert (ready.carts, ready.files, ready.staged, ready.failed) == (1, 5, 5, 0)
    assert (error.carts, error.files, error.failed) == (1, 1, 1)
    assert staging.oldest == 10.0
    assert await store.totals.dirty_rows() >= 1
