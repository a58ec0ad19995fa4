"""Retention: rows of removed carts are kept for a while, then deleted."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import pytest_twisted
from sqlalchemy import create_engine, text
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from cartd.carts.delete import BATCH_PAUSE, Retention
from cartd.model import Cart, CartStatus
from cartd.store import Store, removals
from tests.support.archived_carts import in_a_thread, manifest_of, stage, url_of
from tests.support.cartd_with_archive import assert_no_unexpected_errors
from tests.support.databases import the_reactor
from tests.support.faulty_archive import FaultyArchive
from tests.support.running_cartd import running_cartd, wait_for
from tests.support.stored_carts import STATUSES, gathered, posted, with_status
from tests.support.with_values import with_values

pytest_plugins = ("tests.support.archive_fixtures", "tests.support.database_fixtures")

DAY = 86400.0


def rows(url: str) -> tuple[list[int], int]:
    """Return the ids of the carts in the database, and the number of files."""
    engine = create_engine(url)
    with engine.connect() as connection:
        carts = list(connection.scalars(text("SELECT id FROM cart ORDER BY id")))
        files = connection.scalar(text("SELECT count(*) FROM file"))
    engine.dispose()
    return carts, files


async def gone(store: Store, uid: str, files: int, removed: float) -> Cart:
    """Make a cart that was deleted, and removed from the volume at ``removed``."""
    cart = await posted(store, uid, files)
    assert await store.removals.mark_deleted(cart.id, removed - 1)
    await store.removals.record_removed(cart.id, removed)
    return cart


@pytest_twisted.ensureDeferred
async def test_only_carts_removed_long_ago_are_purged(store: Store, database: str) -> None:
    old = await gone(store, "u", 3, 100)
    young = await gone(store, "u", 3, 200)
    living = [
        await with_status(store, f"is {status}", status)
        for status in STATUSES
        if status is not CartStatus.DELETED
    ]
    leaving = await posted(store, "leaving", 3)
    await store.removals.mark_deleted(leaving.id, 50)
    assert await store.removals.prune_removed(200) == 3 + 1
    assert await store.removals.prune_removed(200) == 0
    carts, files = rows(database)
    assert carts == [young.id, *(cart.id for cart in living), leaving.id]
    assert files == 3 + len(living) + 3
    assert await store.carts.cart(old.id) is None
    assert await store.carts.unknown_among([old.id, young.id]) == {old.id}
    newest = await gone(store, "newest", 1, 300)
    assert await store.removals.prune_removed(1000) == 3 + 1 + 1 + 1
    assert (await posted(store, "next")).id > newest.id


@pytest_twisted.ensureDeferred
async def test_rows_go_in_batches_between_which_others_write(
    store: Store, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removals, "PRUNE_FILE_BATCH", 10)
    monkeypatch.setattr(removals, "PRUNE_CART_BATCH", 2)
    for number in range(5):
        await gone(store, f"u{number}", 15, 100 + number)
    clock = Clock()
    forgetting = Deferred.fromCoroutine(
        Retention(store.removals, 50, clock, lambda: 1000).delete_expired()
    )
    batches, seen = 0, [75]
    while not forgetting.called:
        # After the present batch, before the next.
        await posted(store, f"meanwhile {batches}", 1)
        await store.space.usage()
        left = rows(database)[1] - batches - 1
        assert seen[-1] - left <= 10
        seen.append(left)
        batches += 1
        clock.advance(BATCH_PAUSE)
    await forgetting
    assert seen[-1] == 0
    assert batches >= 8
    assert len(rows(database)[0]) == batches


@pytest_twisted.ensureDeferred
async def test_two_nodes_that_forget_at_once_do_not_hinder_each_other(
    store: Store, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removals, "PRUNE_FILE_BATCH", 7)
    other = Store(database, the_reactor())
    for number in range(5):
        await gone(store, f"u{number}", 20, 100)

    async def forget(node: Store) -> int:
        total = 0
        while number := await node.removals.prune_removed(1000):
            total += number
        return total

    both = await gathered([forget(node) for node in (store, other)])
    assert sum(both) + sum([await forget(store)]) == 5 * 20 + 5
    assert rows(database) == ([], 0)
    await other.close()


@pytest_twisted.ensureDeferred
async def test_it_is_stopped_in_the_middle_and_goes_on(
    store: Store, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removals, "PRUNE_FILE_BATCH", 10)
    await gone(store, "u", 25, 100)
    now = [100 + 90 * DAY]
    forgetting = Retention(store.removals, 90 * DAY, Clock(), lambda: now[0])
    await forgetting.delete_expired()
    assert rows(database)[1] == 25
    now[0] += 1
    cut = Deferred.fromCoroutine(forgetting.delete_expired())
    while rows(database)[1] == 25:
        await store.space.usage()
    cut.cancel()
    with pytest.raises(CancelledError):
        await cut
    assert rows(database)[1] == 15
    await store.removals.prune_removed(now[0])
    await store.removals.prune_removed(now[0])
    assert rows(database) == ([], 0)


@in_a_thread
def test_the_service_forgets_and_goes_on_with_it_after_a_kill(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    soon = {
        "cartd.service.RETENTION_INTERVAL": 0.1,
        "cartd.carts.delete.BATCH_PAUSE": 0.05,
        "cartd.store.removals.PRUNE_FILE_BATCH": 10,
    }
    ini = "[cartd]\nretention = 0.00001\nlru_interval = 0.1\n"
    with running_cartd(tmp_path, archive=url_of(archive), ini=ini, started=False) as cartd:
        cartd.program = with_values(cartd.twistd, soon)
        cartd.start()
        stage(cartd, archive, "kept", 100, files=10)
        stage(cartd, archive, "gone", 1000, files=500)

        def left() -> int:
            with closing(sqlite3.connect(tmp_path / "cartd.sqlite3")) as connection:
                return int(connection.execute("SELECT count(*) FROM file").fetchone()[0])

        assert cartd.delete("gone").status == 200
        wait_for(lambda: left() < 510)
        cartd.kill()
        assert 10 < left() < 510
        cartd.start()
        wait_for(lambda: left() == 10)
        assert len(cartd.download("kept")) == 10
        assert cartd.post("gone", manifest_of(archive, "gone", 1000, files=500)).status == 201
        cartd.wait_until("gone", "ready")
        assert [path.name for path in cartd.volume.glob("[0-9]*")] != []
        assert cartd.terminate() == 0
        assert_no_unexpected_errors(cartd.log)
