"""Deduplication: files that another cart has on the volume are linked, not fetched."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from cartd.errors import LeaseLost, NoSpace
from cartd.model import Cart, CartStatus
from cartd.staging.pipeline import StagingPipeline
from tests.support.sqlite_store import SqliteStore
from tests.support.staging_parts import Bench
from tests.support.volume_parts import failure_of, logged, outcome

pytest_plugins = ("tests.support.database_fixtures",)

FILES = {"1": b"one" * 100, "2": b"two", "3": b"three" * 10}


@pytest.fixture
def bench(tmp_path: Path, sqlite_store: SqliteStore) -> Bench:
    return Bench(sqlite_store, tmp_path / "volume", FILES)


def run(bench: Bench, cart: Cart, *, resumed: bool = False) -> list[Any]:
    """Stage the cart as "me"."""
    held = bench.store.lease_to(cart, "me", until=1000.0)
    staging = StagingPipeline(bench.context(), held, "me", resumed=resumed)
    return outcome(Deferred.fromCoroutine(staging.run()))


def ready(bench: Bench, *names: str, **more: Any) -> Cart:
    cart = bench.put(names, **more)
    assert run(bench, cart) == [None]
    assert bench.store.cart(cart.id).status is CartStatus.READY
    return bench.store.cart(cart.id)


def names_of(bench: Bench, cart: Cart) -> dict[str, int]:
    """Return the link count of each file of the cart's tree."""
    return {
        path.name: path.stat().st_nlink
        for path in (bench.volume.paths.tree(cart) / "dir").iterdir()
    }


def test_a_repeated_cart_is_ready_without_a_request(bench: Bench) -> None:
    ready(bench, uid="first")
    bench.archive.asked.clear()
    again = ready(bench, uid="again")
    assert bench.archive.asked == []
    assert names_of(bench, again) == dict.fromkeys(FILES, 2)
    assert (again.bytes_total, again.volume_bytes) == (353, 353)


def test_space_is_reserved_only_for_files_to_be_fetched(bench: Bench) -> None:
    ready(bench, "1", "3", uid="first")
    bench.archive.asked.clear()
    asked: list[tuple[int, dict[str, int]]] = []

    async def record(cart: Cart, holder: str, **sizes: int) -> None:
        asked.append((cart.volume_bytes, sizes))

    bench.reserve = record
    again = ready(bench, uid="again")
    assert bench.archive.asked == [("HEAD", "2"), ("GET", "2")]
    assert names_of(bench, again) == {"1": 2, "2": 1, "3": 2}
    # Linked bytes count as used, so that no space is reserved for them.
    assert asked == [(350, {"bytes_total": 353, "volume_bytes": 353})]


def test_a_bundled_cart_is_written_from_links_but_gives_none(bench: Bench) -> None:
    ready(bench, "1", uid="first")
    bundled = ready(bench, uid="bundled", bundle=True)
    assert bench.archive.times("GET", "1") == 1
    assert not bench.volume.paths.tree(bundled).exists()
    ready(bench, uid="last")
    assert bench.archive.times("GET", "1") == 1
    assert bench.archive.times("GET", "2") == 2


def test_the_files_are_linked_page_by_page(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cartd.staging.pipeline.PAGE", 2)
    ready(bench, uid="first")
    pages: list[range] = []
    duplicates = bench.store.dedup.duplicates

    async def record(cart_id: int, positions: range) -> Any:
        pages.append(positions)
        return await duplicates(cart_id, positions)

    bench.store.dedup.duplicates = record  # type: ignore[method-assign]
    ready(bench, uid="again")
    assert pages == [range(2), range(2, 4)]
    assert bench.archive.times("GET") == 3


def test_without_hard_links_all_is_fetched_and_one_line_logged(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", fail)
    monkeypatch.setattr("cartd.staging.pipeline.PAGE", 2)
    ready(bench, uid="first")
    with logged() as events:
        again = ready(bench, uid="again")
    assert names_of(bench, again) == dict.fromkeys(FILES, 1)
    assert [event["reason"] for event in events if "reason" in event] == [
        "[Errno 1] Operation not permitted: '2/again/dir/1'"
    ]


def missing(path: Path) -> None:
    path.unlink()


def cut_short(path: Path) -> None:
    path.write_bytes(b"o")


@pytest.mark.parametrize("damage", [missing, cut_short])
def test_a_damaged_file_is_refetched_and_repairs_both_carts(
    bench: Bench, damage: Callable[[Path], None]
) -> None:
    first = ready(bench, uid="first")
    old = bench.volume.paths.member(first, "dir/1")
    damage(old)
    again = ready(bench, uid="again")
    assert bench.archive.times("GET", "1") == 2
    bench.store.restage(first, [0])
    assert run(bench, first) == [None]
    assert bench.archive.times("GET", "1") == 2
    assert old.samefile(bench.volume.paths.member(again, "dir/1"))
    assert old.read_bytes() == FILES["1"]


def test_a_lease_that_is_lost_ends_it(bench: Bench) -> None:
    ready(bench, uid="first")
    cart = bench.put(uid="again")
    bench.store.lease_to(cart, "you", until=1000.0)
    staging = StagingPipeline(bench.context(), cart, "me", resumed=False)
    ended = outcome(Deferred.fromCoroutine(staging.run()))
    assert isinstance(failure_of(ended), LeaseLost)


def test_an_unrecorded_link_is_found_again(bench: Bench) -> None:
    """As after kill -9 between linking and recording."""
    first = ready(bench, uid="first")
    cart = bench.put(uid="again")
    bench.volume.paths.member(cart, "dir/1").parent.mkdir(parents=True)
    bench.volume.paths.member(cart, "dir/1").hardlink_to(bench.volume.paths.member(first, "dir/1"))
    assert run(bench, cart) == [None]
    assert names_of(bench, cart) == dict.fromkeys(FILES, 2)
    assert bench.archive.times("GET") == 3


def test_an_unrecorded_link_is_kept_when_its_duplicate_is_gone(
    bench: Bench,
) -> None:
    """A cart with the same files is linked to it."""
    first = ready(bench, "1", uid="first")
    third = ready(bench, "1", uid="third")
    cart = bench.put(["1"], uid="again")
    mine = bench.volume.paths.member(cart, "dir/1")
    mine.parent.mkdir(parents=True)
    mine.hardlink_to(bench.volume.paths.member(first, "dir/1"))
    bench.store.reserve(cart, len(FILES["1"]))
    for one in (first, third):
        bench.store.restage(one, [0])  # no duplicate any more, but the file is there
    assert run(bench, cart, resumed=True) == [None]
    assert bench.archive.times("GET", "1") == 1
    assert names_of(bench, cart) == {"1": 3}


def test_a_cart_without_space_for_the_rest_keeps_its_links(bench: Bench) -> None:
    ready(bench, "1", uid="first")

    async def refuse(cart: Cart, holder: str, **sizes: int) -> None:
        raise NoSpace

    bench.reserve = refuse
    cart = bench.put(uid="again")
    assert isinstance(failure_of(run(bench, cart)), NoSpace)
    assert names_of(bench, cart) == {"1": 2}
    assert bench.store.staged(cart.id) == ["1"]


def test_a_duplicate_lost_before_recording_is_replaced(
    bench: Bench,
) -> None:
    for uid in ("first", "second"):
        ready(bench, uid=uid)
    share = bench.volume.links.link_duplicates

    async def go_meanwhile(cart: Cart, duplicates: Any) -> Any:
        shared = await share(cart, duplicates)
        [found] = {one.staged_cart for one in duplicates}
        bench.volume.links.link_duplicates = share  # type: ignore[method-assign]
        await bench.store.removals.mark_deleted(found, 0)
        return shared

    bench.volume.links.link_duplicates = go_meanwhile  # type: ignore[method-assign]
    again = ready(bench, uid="again")
    assert names_of(bench, again) == dict.fromkeys(FILES, 3)
    assert bench.store.staged(again.id) == list(FILES)
    assert bench.archive.times("GET") == len(FILES)


def test_a_file_without_a_remaining_duplicate_is_fetched(bench: Bench) -> None:
    first = ready(bench, uid="first")
    share = bench.volume.links.link_duplicates

    async def go_meanwhile(cart: Cart, duplicates: Any) -> Any:
        shared = await share(cart, duplicates)
        await bench.store.removals.mark_deleted(first.id, 0)
        return shared

    bench.volume.links.link_duplicates = go_meanwhile  # type: ignore[method-assign]
    again = ready(bench, uid="again")
    assert names_of(bench, again) == dict.fromkeys(FILES, 1)
    assert bench.archive.times("GET") == 2 * len(FILES)
