"""Deletion, eviction and sweeps of carts."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import capturedLogs, formatEvent

from cartd.carts.delete import CLIENT_WAIT, CONCURRENCY, SMALL_CART_FILES, CannotRemove, Removal
from cartd.carts.download import Pins
from cartd.deferreds.threads import ThreadRunner
from cartd.model import UNRESTRICTED, Cart, CartStatus
from cartd.staging.stager import Stager
from cartd.volume.locks import ProcessLocks
from cartd.volume.remove import RemovalStopped, remove_tree
from cartd.volume.rooted_fs import RootedFS
from tests.support.sqlite_store import SqliteStore
from tests.support.staging_parts import Bench
from tests.support.volume_parts import (
    HeldThreads,
    InThisThread,
    begin,
    everything,
    failure_of,
    outcome,
    result_of,
)

pytest_plugins = ("tests.support.database_fixtures",)

FILES = {"1": b"one", "2": b"two"}
EMPTY = {"cartuids", "incoming"}


class RemovalBench(Bench):
    """A bench with a stager and a removal on it."""

    def __init__(self, store: SqliteStore, root: Path, threads: ThreadRunner | None = None) -> None:
        super().__init__(store, root, FILES, threads)
        self.pins = Pins()
        process_locks = ProcessLocks(root / "holders")
        now = self.clock.seconds
        self.stager = Stager(
            self.store, process_locks, self.recovery(), InThisThread(), self.clock, now
        )
        self.stager.start(self.context(), claim_unfinished=False)
        self.removal = Removal(
            self.store, self.volume, self.pins, self.stager.abort, now, self.clock
        )

    def ready(self, uid: str = "mine") -> Cart:
        cart = self.put(uid=uid)
        self.stager.begin(cart.id)
        return self.store.cart(cart.id)

    def left(self) -> set[str]:
        """Return what carts have on the volume."""
        return {path for path in everything(self.root) - EMPTY if not path.endswith(".lock")}


@pytest.fixture
def bench(tmp_path: Path, sqlite_store: SqliteStore) -> Iterator[RemovalBench]:
    bench = RemovalBench(sqlite_store, tmp_path / "volume")
    yield bench
    result_of(bench.removal.stop())
    result_of(bench.stager.stop())
    assert not bench.clock.getDelayedCalls()


def test_a_deleted_cart_leaves_nothing_behind(bench: RemovalBench) -> None:
    cart = bench.ready()
    assert result_of(bench.removal.delete(cart)) == cart.volume_bytes
    assert bench.store.cart(cart.id).status is CartStatus.DELETED
    assert bench.left() == set()
    assert bench.store.pending_removal() == set()


def test_a_cart_deleted_while_staged_is_dropped_first(bench: RemovalBench) -> None:
    held: Deferred[None] = Deferred()
    bench.archive.holds["GET", "2"] = held
    cart = bench.put()
    bench.stager.begin(cart.id)
    assert any(path.endswith("dir/1") for path in bench.left())
    assert result_of(bench.removal.delete(cart)) == 6
    assert held.called
    assert bench.stager.count() == 0
    assert bench.left() == set()


def test_all_carts_of_a_uid_are_deleted_and_no_other(bench: RemovalBench) -> None:
    for uid in ("mine", "another", "mine"):
        bench.ready(uid)
    assert result_of(bench.removal.delete_all(UNRESTRICTED, "mine")) == 2
    assert {path.split("/")[0] for path in bench.left()} == {"2", "cartuids"}
    assert result_of(bench.removal.delete_all(UNRESTRICTED, "mine")) == 0


def test_a_second_removal_of_a_cart_waits_for_the_first(
    tmp_path: Path, sqlite_store: SqliteStore
) -> None:
    threads = HeldThreads()
    bench = RemovalBench(sqlite_store, tmp_path / "volume", threads)
    threads.run_all()
    cart = bench.store.post("mine", {})
    (bench.root / f"{cart.id}/mine").mkdir(parents=True)
    deleting = begin(bench.removal.delete(cart))
    sweeping = begin(bench.removal.sweep())
    for _ in ("that it is the volume", "the cart"):
        threads.held.pop()()  # the sweep has got that far
    assert (len(threads.held), deleting, sweeping) == (1, [], [])
    threads.run_one()
    assert (deleting, sweeping) == ([0], [])
    threads.run_one()
    assert sweeping == [None]
    assert bench.left() == set()
    result_of(bench.stager.stop())


def test_the_newest_of_a_uid_goes_last(bench: RemovalBench) -> None:
    """If the process ends in between, no older cart takes the place of a deleted one."""
    carts = [bench.ready() for _ in range(3)]
    order: list[int] = []
    mark_deleted = bench.store.removals.mark_deleted

    async def note(cart_id: int, now: float) -> bool:
        order.append(cart_id)
        return await mark_deleted(cart_id, now)

    bench.store.removals.mark_deleted = note  # type: ignore[method-assign]
    result_of(bench.removal.delete_all(UNRESTRICTED, "mine"))
    assert order == [cart.id for cart in carts]


def test_the_link_leads_to_the_older_cart_after_a_deletion(
    bench: RemovalBench,
) -> None:
    first, second, third = (bench.ready() for _ in range(3))
    link = bench.root / "cartuids" / "mine"
    assert link.readlink() == Path(f"../{third.id}/mine")
    result_of(bench.removal.delete(first))
    assert link.readlink() == Path(f"../{third.id}/mine")
    result_of(bench.removal.delete(third))
    assert link.readlink() == Path(f"../{second.id}/mine")
    result_of(bench.removal.delete(second))
    assert bench.left() == set()


def test_a_link_to_a_cart_deleted_meanwhile_is_removed(
    bench: RemovalBench,
) -> None:
    first, second = bench.ready(), bench.ready()
    link = bench.volume.links.place

    async def go_meanwhile(older: Cart) -> None:
        assert older.id == first.id
        await bench.removal.delete(first)
        await link(older)

    bench.volume.links.place = go_meanwhile  # type: ignore[method-assign,assignment]
    result_of(bench.removal.delete(second))
    assert bench.left() == set()


def test_what_is_being_sent_stays_until_the_last_has_it(bench: RemovalBench) -> None:
    cart = bench.ready()
    before = bench.left()
    with bench.pins.pin(cart.id):
        with bench.pins.pin(cart.id):
            assert result_of(bench.removal.delete(cart)) == 0
            assert bench.store.cart(cart.id).status is CartStatus.DELETED
        result_of(bench.removal.sweep())
        assert bench.left() == before
        assert bench.store.pending_removal() == {cart.id}
    assert bench.left() == set()
    assert bench.store.pending_removal() == set()


def test_what_goes_wrong_after_the_last_download_is_in_the_log(bench: RemovalBench) -> None:
    async def broken(cart: Cart) -> bool:
        raise RuntimeError("a fault of ours")

    cart = bench.ready()
    bench.volume.removal.remove = broken  # type: ignore[method-assign]
    with capturedLogs() as events, bench.pins.pin(cart.id):
        result_of(bench.removal.delete(cart))
    failures = [event["log_failure"].value for event in events if "log_failure" in event]
    assert [str(error) for error in failures] == ["a fault of ours"]


def test_a_stop_leaves_what_is_being_sent_to_the_next_start(bench: RemovalBench) -> None:
    cart = bench.ready()
    before = bench.left()
    with bench.pins.pin(cart.id):
        result_of(bench.removal.delete(cart))
        result_of(bench.removal.stop())
    assert bench.left() == before
    result_of(bench.removal.sweep())
    assert bench.left() == set()


def test_what_cannot_be_removed_goes_with_a_later_sweep(
    bench: RemovalBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    cart = bench.ready()
    heal = refusing(bench, monkeypatch, errno.EIO)
    assert result_of(bench.removal.delete(cart)) == 0
    assert bench.store.pending_removal() == {cart.id}
    heal()
    bench.clock.advance(1)
    result_of(bench.removal.sweep())
    assert bench.left() == set()
    assert bench.store.pending_removal() == set()


def test_an_interrupted_removal_counts_until_it_is_done(
    bench: RemovalBench,
) -> None:
    cart = bench.ready()
    bench.volume.stop()
    assert result_of(bench.removal.delete(cart)) == 0
    result_of(bench.removal.sweep())
    assert bench.store.pending_removal() == {cart.id}


def test_files_removed_by_others_leave_nothing(
    bench: RemovalBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    cart = bench.ready()
    heal = refusing(bench, monkeypatch, errno.EIO)
    result_of(bench.removal.delete(cart))
    heal()
    remove_tree(RootedFS(bench.root), bench.root / str(cart.id))
    bench.clock.advance(1)
    result_of(bench.removal.sweep())
    assert bench.store.pending_removal() == set()


def test_a_deleted_cart_of_no_files_leaves_no_link_to_nowhere(bench: RemovalBench) -> None:
    cart = bench.ready()
    remove_tree(RootedFS(bench.root), bench.root / str(cart.id))
    result_of(bench.store.removals.mark_deleted(cart.id, 0))
    assert bench.left() == {"cartuids/mine"}
    result_of(bench.removal.sweep())
    assert bench.left() == set()
    assert bench.store.pending_removal() == set()


def test_a_sweep_leaves_alone_what_is_not_a_deleted_carts(bench: RemovalBench) -> None:
    bench.ready()
    (bench.root / "99" / "of another database").mkdir(parents=True)
    before = bench.left()
    result_of(bench.removal.sweep())
    assert bench.left() == before


def test_a_sweep_finishes_what_a_crash_has_left(bench: RemovalBench) -> None:
    cart = bench.ready()
    result_of(bench.store.removals.mark_deleted(cart.id, 0))
    assert begin(bench.removal.sweep()) == [None]
    assert bench.left() == set()


def refusing(
    bench: RemovalBench, monkeypatch: pytest.MonkeyPatch, number: int
) -> Callable[[], None]:
    """Make the disk refuse to remove files, until the result is called."""
    unlink = os.unlink

    def refuse(name: str, **more: int) -> None:
        if not more or name.endswith(".lock"):
            unlink(name, **more)
        else:
            raise OSError(number, os.strerror(number), name)

    monkeypatch.setattr(os, "unlink", refuse)
    return lambda: monkeypatch.setattr(os, "unlink", unlink)


REFUSALS = (errno.EROFS, errno.EIO, errno.EPERM, errno.EACCES, errno.EDQUOT, errno.ENOSPC)


@pytest.mark.parametrize("number", REFUSALS, ids=os.strerror)
def test_a_cart_with_an_unremovable_first_file_stays(
    bench: RemovalBench, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    cart = bench.ready()
    before = bench.left()
    heal = refusing(bench, monkeypatch, number)
    error = failure_of(outcome(Deferred.fromCoroutine(bench.removal.evict(cart))))
    assert isinstance(error, CannotRemove)
    assert error.reason == os.strerror(number)
    assert bench.store.cart(cart.id) == cart
    assert bench.left() == before
    heal()
    assert result_of(bench.removal.evict(cart)) == cart.volume_bytes
    assert bench.left() == set()
    assert bench.store.pending_removal() == set()


def test_a_cart_that_was_used_since_it_was_seen_is_not_evicted(bench: RemovalBench) -> None:
    seen = bench.ready()
    result_of(bench.store.carts.touch({seen.id: seen.used + 1}))
    before = bench.left()
    assert result_of(bench.removal.evict(seen)) == 0
    with bench.pins.pin(seen.id):
        assert result_of(bench.removal.evict(bench.store.cart(seen.id))) == 0
    assert bench.store.cart(seen.id).evicting is None
    assert bench.left() == before


def test_a_download_that_begins_during_eviction_keeps_the_cart(bench: RemovalBench) -> None:
    cart = bench.ready()
    begin_eviction = bench.store.removals.begin_eviction

    async def pin_then_begin(seen: Cart, token: str) -> bool:
        pins.enter_context(bench.pins.pin(cart.id))
        return await begin_eviction(seen, token)

    bench.store.removals.begin_eviction = pin_then_begin  # type: ignore[method-assign]
    with ExitStack() as pins:
        assert result_of(bench.removal.evict(cart)) == 0
    assert bench.store.cart(cart.id) == cart


def test_nothing_is_evicted_while_the_service_stops(bench: RemovalBench) -> None:
    """Otherwise the evictor would try cart after cart, without freeing anything."""
    carts = [bench.ready(uid) for uid in ("a", "b")]
    before = bench.left()
    bench.volume.stop()
    for cart in carts:
        evicting = outcome(Deferred.fromCoroutine(bench.removal.evict(cart)))
        assert isinstance(failure_of(evicting), RemovalStopped)
        assert bench.store.cart(cart.id) == cart
    assert bench.left() == before


def test_a_stop_ends_an_eviction_for_a_reservation(
    bench: RemovalBench,
) -> None:
    cart = bench.ready()
    mark_deleted = bench.store.removals.mark_deleted

    async def stopped_then(cart_id: int, now: float) -> bool:
        bench.volume.stop()
        return await mark_deleted(cart_id, now)

    bench.store.removals.mark_deleted = stopped_then  # type: ignore[method-assign]
    evicting = outcome(Deferred.fromCoroutine(bench.removal.evict(cart)))
    assert isinstance(failure_of(evicting), RemovalStopped)
    assert bench.store.pending_removal() == {cart.id}


def test_a_cancelled_reservation_completes_its_eviction(bench: RemovalBench) -> None:
    """Otherwise downloads of the cart would wait for the next sweep."""
    cart = bench.ready()
    looked: Deferred[None] = Deferred()
    remove_one_file = bench.volume.removal.remove_one_file

    async def held(cart: Cart) -> bool:
        await looked
        return await remove_one_file(cart)

    bench.volume.removal.remove_one_file = held  # type: ignore[method-assign]
    evicting = Deferred.fromCoroutine(bench.removal.evict(cart))
    evicting.cancel()
    ended = outcome(evicting)
    looked.callback(None)
    assert isinstance(failure_of(ended), CancelledError)
    assert bench.store.cart(cart.id).status is CartStatus.DELETED


def test_a_sweep_ignores_an_eviction_given_up_meanwhile(
    bench: RemovalBench,
) -> None:
    first, second = (bench.ready(uid) for uid in ("a", "b"))
    for cart in (first, second):
        assert result_of(bench.store.removals.begin_eviction(cart, f"of {cart.uid}"))
    remove_one_file = bench.volume.removal.remove_one_file

    async def given_up_meanwhile(cart: Cart) -> bool:
        await bench.store.removals.end_eviction(second.id, f"of {second.uid}")
        return await remove_one_file(cart)

    bench.volume.removal.remove_one_file = given_up_meanwhile  # type: ignore[method-assign]
    result_of(bench.removal.sweep())
    assert bench.store.cart(first.id).status is CartStatus.DELETED
    assert bench.store.cart(second.id) == replace(second, bytes_linked=0)


def test_a_waiting_download_does_not_undo_an_eviction(
    bench: RemovalBench,
) -> None:
    """Otherwise the cart would be sent without the file that was removed."""
    cart = bench.ready()
    assert result_of(bench.store.removals.begin_eviction(cart, "of a process that died"))
    assert result_of(bench.volume.removal.remove_one_file(cart))
    with bench.pins.pin(cart.id):
        result_of(bench.removal.sweep())
    assert bench.store.cart(cart.id).status is CartStatus.DELETED


@pytest.mark.parametrize("removed", [0, 1, 2], ids=lambda number: f"{number} files removed")
def test_a_sweep_finishes_an_interrupted_eviction(bench: RemovalBench, removed: int) -> None:
    cart = bench.ready()
    assert result_of(bench.store.removals.begin_eviction(cart, "of a process that died"))
    for _ in range(removed):
        assert result_of(bench.volume.removal.remove_one_file(cart))
    result_of(bench.removal.sweep())
    assert bench.store.cart(cart.id).status is CartStatus.DELETED
    assert bench.left() == set()
    assert bench.store.pending_removal() == set()


def test_an_interrupted_eviction_on_a_failing_disk(
    bench: RemovalBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    cart = bench.ready()
    result_of(bench.store.removals.begin_eviction(cart, "of a process that died"))
    before = bench.left()
    refusing(bench, monkeypatch, errno.EROFS)
    result_of(bench.removal.sweep())
    assert bench.store.cart(cart.id) == cart
    assert bench.left() == before


def test_a_failing_removal_backs_off_and_is_logged_once(
    bench: RemovalBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    carts = [bench.ready(f"cart-{number}") for number in range(8)]
    heal = refusing(bench, monkeypatch, errno.EROFS)
    tries = 0
    remove = bench.volume.removal.remove

    async def counted(cart: Cart) -> bool:
        nonlocal tries
        tries += 1
        return await remove(cart)

    bench.volume.removal.remove = counted  # type: ignore[method-assign]
    with capturedLogs() as events:

        def lines() -> list[str]:
            ours = [one for one in events if one["log_namespace"] == "cartd.carts.delete"]
            return [line for line in map(formatEvent, ours) if "is deleted" not in line]

        for cart in carts:
            result_of(bench.removal.delete(cart))
        for _ in range(24 * 12):
            bench.clock.advance(300)
            result_of(bench.removal.sweep())
        assert len(lines()) == 1
        assert "Read-only file system" in lines()[0]
        assert tries < len(carts) * 50
        heal()
        bench.clock.advance(3600)
        result_of(bench.removal.sweep())
        assert bench.store.pending_removal() == set()
        assert bench.left() == set()
        assert len(lines()) == 1 + len(carts) + 1


def test_a_large_cart_is_gone_for_clients_before_its_files_are(
    tmp_path: Path, sqlite_store: SqliteStore
) -> None:
    threads = HeldThreads()
    bench = RemovalBench(sqlite_store, tmp_path / "volume", threads)
    cart = bench.store.post("mine", dict.fromkeys(map(str, range(SMALL_CART_FILES + 1)), b""))
    (bench.root / f"{cart.id}/mine").mkdir(parents=True)
    threads.run_all()
    assert begin(bench.removal.delete_all(UNRESTRICTED, "mine")) == [1]
    assert bench.store.pending_removal() == {cart.id}
    assert (bench.root / str(cart.id)).exists()
    threads.run_all()
    assert bench.store.pending_removal() == set()
    assert bench.left() == set()
    result_of(bench.stager.stop())


def test_a_client_waits_only_briefly_for_a_removal(
    tmp_path: Path, sqlite_store: SqliteStore
) -> None:
    threads = HeldThreads()
    bench = RemovalBench(sqlite_store, tmp_path / "volume", threads)
    cart = bench.store.post("mine", {})
    threads.run_all()
    deleting = begin(bench.removal.delete(cart))
    assert deleting == []
    bench.clock.advance(CLIENT_WAIT)
    assert deleting == [0]
    assert bench.store.pending_removal() == {cart.id}
    threads.run_all()
    assert bench.store.pending_removal() == set()
    result_of(bench.stager.stop())


def test_many_deleted_carts_are_removed_a_few_at_a_time(
    tmp_path: Path,
    sqlite_store: SqliteStore,
) -> None:
    threads = HeldThreads()
    bench = RemovalBench(sqlite_store, tmp_path / "volume", threads)
    carts = [bench.store.post(f"cart-{number}", {}) for number in range(10 * CONCURRENCY)]
    threads.run_all()
    for cart in carts:
        begin(bench.removal.delete(cart))
        assert len(threads.held) <= 2 * CONCURRENCY
    assert len(bench.store.pending_removal()) == len(carts)
    settled = begin(bench.removal.wait_until_idle())
    threads.run_all()
    assert settled == [None]
    assert bench.store.pending_removal() == set()
    result_of(bench.stager.stop())


def test_a_stop_cancels_background_removals(tmp_path: Path, sqlite_store: SqliteStore) -> None:
    threads = HeldThreads()
    bench = RemovalBench(sqlite_store, tmp_path / "volume", threads)
    carts = [bench.store.post(f"cart-{number}", {}) for number in range(3 * CONCURRENCY)]
    threads.run_all()
    for cart in carts:
        begin(bench.removal.delete(cart))
    bench.volume.stop()
    stopped = begin(bench.removal.stop())
    assert stopped == []
    threads.run_all()
    assert stopped == [None]
    assert bench.store.pending_removal()
    result_of(bench.removal.wait_until_idle())
    result_of(bench.stager.stop())
