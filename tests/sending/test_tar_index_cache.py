"""The tar index cache: builds, hits, evictions and concurrent requests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
from twisted.internet.defer import CancelledError, Deferred

from cartd.deferreds.threads import ThreadRunner
from cartd.errors import VolumeDamaged
from cartd.model import Cart, CartStatus
from cartd.sending import tar_index_cache
from cartd.sending.tar_index_cache import PAGE_SIZE, TarIndexCache
from cartd.store import Carts
from cartd.tar.index import TarIndex
from cartd.tar.members import Members
from cartd.tar.virtual_tar import VirtualTar, tar_facts
from tests.support.built_tars import Member, columns, index_of
from tests.support.volume_parts import (
    HeldThreads,
    InThisThread,
    begin,
    failure_of,
    outcome,
    result_of,
)

MEMBERS = [
    Member(f"d{n // 7}/f{n}", n, 2 * n, "md5", f"{n:032x}") for n in range(2 * PAGE_SIZE + 3)
]
CART = Cart(7, "mine", CartStatus.READY, 5.5, 0, 0, files_total=len(MEMBERS))
OTHER = replace(CART, id=8)


class MembersInMemory(Carts):
    """A store that knows the members of two carts, and counts the pages that were read."""

    def __init__(self, members: list[Member]) -> None:
        self._members = members
        self.asked = 0

    async def members(self, cart_id: int, positions: range) -> Members:
        assert cart_id in (CART.id, OTHER.id)
        self.asked += 1
        return columns(self._members[positions.start : positions.stop])


def cache_of(members: list[Member], threads: ThreadRunner) -> tuple[TarIndexCache, MembersInMemory]:
    store = MembersInMemory(members)
    unused = cast(Any, None)
    return TarIndexCache(store, unused, threads), store


def test_an_index_of_many_pages_covers_all_members() -> None:
    tar_indexes, _ = cache_of(MEMBERS, InThisThread())
    index = result_of(tar_indexes.build(CART))
    assert index == index_of(MEMBERS, page=PAGE_SIZE)


def test_an_index_is_cached_until_it_is_invalidated() -> None:
    tar_indexes, store = cache_of(MEMBERS, InThisThread())
    index = result_of(tar_indexes.get(CART))
    assert result_of(tar_indexes.get(CART)) is index
    assert store.asked == 3
    for top in ("top", "pot", "ä"):
        assert result_of(tar_indexes.tar_below(CART, top)).index is index
    assert store.asked == 3
    tar_indexes.invalidate(CART.id)
    assert result_of(tar_indexes.get(CART)) is not index


def test_a_cart_with_an_unknown_size_has_no_index() -> None:
    tar_indexes, _ = cache_of(MEMBERS[:-1], InThisThread())
    with pytest.raises(VolumeDamaged):
        result_of(tar_indexes.build(CART))


def test_concurrent_requests_share_one_index_build() -> None:
    threads = HeldThreads()
    tar_indexes, store = cache_of(MEMBERS, threads)
    asking = [Deferred.fromCoroutine(tar_indexes.get(CART)) for _ in range(4)]
    got = [outcome(one) for one in asking]
    asking[0].cancel()
    asking[2].cancel()
    threads.run_all()
    assert store.asked == 3
    assert [type(failure_of(got[number])) for number in (0, 2)] == [CancelledError] * 2
    index = index_of(MEMBERS, page=PAGE_SIZE)
    assert got[1] == got[3] == [index]
    assert result_of(tar_indexes.get(CART)) is got[1][0]


def test_a_build_without_waiters_is_cancelled() -> None:
    threads = HeldThreads()
    tar_indexes, store = cache_of(MEMBERS, threads)
    asking = [Deferred.fromCoroutine(tar_indexes.get(CART)) for _ in range(2)]
    left = [outcome(one) for one in asking]
    for one in asking:
        one.cancel()
    threads.run_all()
    assert (store.asked, len(left[0]), len(left[1])) == (2, 1, 1)
    again = begin(tar_indexes.get(CART))
    threads.run_all()
    assert again == [index_of(MEMBERS, page=PAGE_SIZE)]


def test_a_failed_build_is_retried_for_the_next_request() -> None:
    threads = HeldThreads()
    tar_indexes, store = cache_of(MEMBERS[:-1], threads)
    failed = [begin(tar_indexes.get(CART)) for _ in range(2)]
    threads.run_all()
    assert [type(failure_of(one)) for one in failed] == [VolumeDamaged] * 2
    again = begin(tar_indexes.get(CART))
    threads.run_all()
    assert isinstance(failure_of(again), VolumeDamaged)
    assert store.asked == 6


def test_an_index_invalidated_while_built_is_not_cached() -> None:
    threads = HeldThreads()
    tar_indexes, store = cache_of(MEMBERS, threads)
    old = begin(tar_indexes.get(CART))
    tar_indexes.invalidate(CART.id)
    new = begin(tar_indexes.get(CART))
    threads.run_all()
    assert len(old) == len(new) == 1
    assert store.asked == 6
    assert result_of(tar_indexes.get(CART)) is new[0]


@pytest.mark.parametrize("place", [0, PAGE_SIZE, 2 * PAGE_SIZE])
def test_a_bad_path_on_any_page_is_reported(place: int) -> None:
    members = list(MEMBERS)
    members[place] = members[place]._replace(path="../outside")
    tar_indexes, _ = cache_of(members, InThisThread())
    with pytest.raises(ValueError, match="outside"):
        result_of(tar_indexes.build(CART))


def test_one_page_is_indexed_while_the_next_is_read() -> None:
    threads = HeldThreads()
    tar_indexes, store = cache_of(MEMBERS, threads)
    built: list[TarIndex] = []
    Deferred.fromCoroutine(tar_indexes.build(CART)).addCallback(built.append)
    assert (store.asked, len(threads.held)) == (2, 1)
    threads.run_one()
    assert (store.asked, len(threads.held)) == (3, 1)
    threads.run_one()
    for _ in ("the last page", "the index"):
        assert (len(threads.held), built) == (1, [])
        threads.run_one()
    assert built == [index_of(MEMBERS, page=PAGE_SIZE)]


NAMES = [letter * length for letter in "ax\u00e4" for length in range(1, 120)]


def test_one_index_serves_all_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_index_cache, "MAX_SHIFTS_PER_INDEX", 3)
    long = Member("l" * 90 + "/" + "m" * 90, 1, 1, "md5", "00")
    for members in (MEMBERS, [long, *MEMBERS[1:]]):
        tar_indexes, store = cache_of(members, InThisThread())
        for name in NAMES + NAMES:
            bundle = result_of(tar_indexes.tar_below(CART, name))
            assert bundle == VirtualTar(name, bundle.index, bundle.index.shift(name))
        assert store.asked == 3


def test_the_last_index_is_kept_however_large_and_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tar_index_cache, "MAX_BYTES", 1000)
    tar_indexes, store = cache_of(MEMBERS, InThisThread())
    for cart, asked in ((CART, 3), (CART, 3), (OTHER, 6), (OTHER, 6), (CART, 9)):
        result_of(tar_indexes.get(cart))
        assert store.asked == asked


def test_indexes_are_kept_as_long_as_their_bytes_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = index_of(MEMBERS).weight
    assert weight > sum(len(member.path) for member in MEMBERS)
    monkeypatch.setattr(tar_index_cache, "MAX_BYTES", 2 * weight + 10_000)
    tar_indexes, store = cache_of(MEMBERS, InThisThread())
    for cart in (CART, OTHER, CART, OTHER):
        result_of(tar_indexes.get(cart))
    assert store.asked == 6


def test_an_index_that_a_download_holds_is_not_built_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tar_index_cache, "MAX_BYTES", 1000)
    tar_indexes, store = cache_of(MEMBERS, InThisThread())
    held = result_of(tar_indexes.tar_below(CART, "top"))
    result_of(tar_indexes.get(OTHER))
    assert result_of(tar_indexes.tar_below(CART, "other")).index is held.index
    assert store.asked == 6


def test_a_cart_restaged_by_another_process_is_reindexed() -> None:
    tar_indexes, store = cache_of(MEMBERS, InThisThread())
    index = result_of(tar_indexes.get(CART))
    same = replace(CART, tar=tar_facts(index, 1.0))
    assert result_of(tar_indexes.get(same)) is index
    other = replace(CART, tar=tar_facts(index_of(MEMBERS[1:]), 1.0))
    assert result_of(tar_indexes.get(other)) is not index
    assert store.asked == 6


def test_large_indexes_are_built_one_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tar_index_cache, "LARGE_CART_FILES", len(MEMBERS))
    threads = HeldThreads()
    tar_indexes, store = cache_of(MEMBERS, threads)
    first, second = begin(tar_indexes.get(CART)), begin(tar_indexes.get(OTHER))
    assert store.asked == 2
    begin(tar_indexes.build(replace(OTHER, files_total=1)))
    assert store.asked == 3
    threads.run_all()
    assert store.asked == 3 + 1 + 3
    assert len(first) == len(second) == 1


def test_a_cancelled_request_leaves_the_build_queue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tar_index_cache, "LARGE_CART_FILES", len(MEMBERS))
    threads = HeldThreads()
    tar_indexes, store = cache_of(MEMBERS, threads)
    first = begin(tar_indexes.get(CART))
    waiting = Deferred.fromCoroutine(tar_indexes.get(OTHER))
    left = outcome(waiting)
    waiting.cancel()
    assert isinstance(failure_of(left), CancelledError)
    threads.run_all()
    assert (len(first), store.asked) == (1, 3)
    again = begin(tar_indexes.get(OTHER))
    threads.run_all()
    assert len(again) == 1
