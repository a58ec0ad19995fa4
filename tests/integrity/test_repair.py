"""Damaged carts are restaged, whatever their size, but not endlessly."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest

from cartd.errors import Unavailable, VolumeNotWritable
from cartd.integrity.repair import MAX_RESTAGES, PAGE, RESTAGE_WINDOW, Repair
from cartd.model import Cart, CartFile, CartStatus, FileStatus
from cartd.volume import FileFacts
from tests.support.volume_parts import logged, result_of

MANY = 200_000
CART = Cart(1, "mine", CartStatus.READY, 0, 0, 0, files_total=MANY, bytes_total=MANY)


class Rows:
    """A store with a cart of many files, each of one byte, which takes no memory."""

    def __init__(self, number: int = MANY, cart: Cart = CART) -> None:
        self.carts = self.progress = self
        self.current = cart
        self._number = number
        self.pages = 0
        self.lost: list[int] = []
        """How many files were lost at each restage."""
        self.ended: list[str] = []
        self.status: dict[int, FileStatus] = {}

    async def cart(self, _: int) -> Cart:
        return self.current

    async def files(self, _: int, *, after: int, limit: int) -> list[CartFile]:
        self.pages += 1
        assert limit == PAGE
        return [
            CartFile(
                at,
                f"id-{at}",
                f"directory/file-{at}",
                "sha1",
                "0" * 40,
                self.status.get(at, FileStatus.STAGED),
                size=1,
            )
            for at in range(after + 1, min(after + 1 + limit, self._number))
        ]

    async def restage(self, _: int, *, lost: Iterable[int], now: float) -> bool:
        self.lost.append(sum(1 for _ in lost))
        return True

    async def record_unrecoverable(self, _: int, message: str, *, now: float) -> bool:
        self.ended.append(message)
        return True


class Lacking:
    """A volume on which every file is missing from the position ``first`` on."""

    def __init__(self, first: int = 0) -> None:
        self._first = first
        self.verification = self.bundles = self
        self.refuses = ""
        """Why the volume is not writable."""

    async def stat_files(self, _: Cart, files: Sequence[CartFile]) -> list[FileFacts | None]:
        return [
            None if file.position >= self._first else FileFacts(file.position, 1, 0)
            for file in files
        ]

    async def size(self, _: Cart) -> int | None:
        return None

    async def check_writable(self) -> None:
        if self.refuses:
            raise VolumeNotWritable(self.refuses)


class TarIndexCache:
    def invalidate(self, _: int) -> None:
        pass


class Bench:
    def __init__(self, rows: Rows, volume: Lacking) -> None:
        self.now = 0.0
        self.staged: list[int] = []
        self.rows = rows
        self.repair = Repair(
            cast(Any, rows),
            cast(Any, volume),
            cast(Any, TarIndexCache()),
            stage=self.staged.append,
            now=lambda: self.now,
        )

    def restage(
        self, damaged: Sequence[int] = (), unreadable: str | None = None, *, retry: bool = False
    ) -> None:
        restaging = self.repair.restage(CART, damaged, unreadable=unreadable, retry_failed=retry)
        result_of(restaging)


@pytest.mark.parametrize("first", [0, MANY // 2])
def test_a_cart_of_many_files_is_checked_page_by_page(first: int) -> None:
    """Only the positions of lost files are kept in memory: eight bytes per file."""
    bench = Bench(Rows(), Lacking(first))
    tracemalloc.start()
    bench.restage([7])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert bench.rows.lost == [MANY - first + (first > 7)]
    assert bench.rows.pages == MANY // PAGE + 1
    assert peak < 12 * MANY + 4 * 2**20


def test_a_damaged_bundle_is_restaged_whole() -> None:
    bench = Bench(Rows(cart=replace(CART, bundle=True)), Lacking())
    bench.restage(unreadable="directory/file-3")
    assert (bench.rows.lost, bench.rows.pages) == ([MANY], 0)


def test_the_file_that_cannot_be_read_is_lost_and_no_other() -> None:
    bench = Bench(Rows(3), Lacking(3))
    bench.restage(unreadable="directory/file-1")
    assert bench.rows.lost == [1]


def test_a_cart_that_is_damaged_again_and_again_ends_in_error() -> None:
    bench = Bench(Rows(3), Lacking())
    for _ in range(MAX_RESTAGES):
        bench.restage()
    assert (len(bench.staged), bench.rows.ended) == (MAX_RESTAGES, [])
    with logged() as events:
        bench.restage()
    assert len(bench.staged) == MAX_RESTAGES
    [message] = bench.rows.ended
    assert message.startswith(f"Its files were damaged on the volume {MAX_RESTAGES + 1} times")
    assert [event["log_level"].name for event in events] == ["error"]
    # After an administrator has restaged it, counting starts again.
    bench.restage()
    assert len(bench.staged) == MAX_RESTAGES + 1


def test_a_cart_stays_ready_while_the_volume_is_not_writable() -> None:
    volume = Lacking()
    bench = Bench(Rows(3), volume)
    volume.refuses = "Read-only file system"
    with logged() as events:
        for _ in range(2 * MAX_RESTAGES):
            with pytest.raises(VolumeNotWritable, match="Read-only file system"):
                bench.restage()
    assert (bench.staged, bench.rows.ended, bench.rows.lost) == ([], [], [])
    assert [event["log_level"].name for event in events] == ["error"]
    volume.refuses = ""
    bench.restage()
    assert bench.staged == [1]


class TestPartialCarts:
    """The last of three files has failed, and is not on the volume."""

    @pytest.fixture
    def bench(self) -> Bench:
        rows = Rows(3, replace(CART, bundle=True, files_total=3, files_failed=1))
        rows.status[2] = FileStatus.ERROR
        return Bench(rows, Lacking(2))

    def test_a_partial_cart_is_intact_without_its_failed_files(self, bench: Bench) -> None:
        assert result_of(bench.repair.is_intact(bench.rows.current))
        bench.restage()
        assert bench.staged == []

    def test_only_a_retry_restages_it_and_may_do_so_often(self, bench: Bench) -> None:
        for _ in range(2 * MAX_RESTAGES):
            bench.restage(retry=True)
        assert bench.rows.lost == [0] * 2 * MAX_RESTAGES and bench.rows.ended == []

    def test_only_its_damaged_files_are_lost(self, bench: Bench) -> None:
        bench.restage([1])
        assert bench.rows.lost == [1]

    def test_a_retry_needs_a_writable_volume(self) -> None:
        rows, volume = Rows(3, replace(CART, files_failed=1)), Lacking(3)
        volume.refuses = "Read-only file system"
        bench = Bench(rows, volume)
        with pytest.raises(Unavailable, match="the cart stays as it is"):
            bench.restage(retry=True)
        assert bench.staged == []


def test_restages_outside_the_window_do_not_count() -> None:
    bench = Bench(Rows(3), Lacking())
    for _ in range(3 * MAX_RESTAGES):
        bench.restage()
        bench.now += RESTAGE_WINDOW / (MAX_RESTAGES - 1)
    assert (len(bench.staged), bench.rows.ended) == (3 * MAX_RESTAGES, [])


def test_restages_by_an_administrator_do_not_count() -> None:
    bench = Bench(Rows(3, replace(CART, status=CartStatus.ERROR)), Lacking())
    for _ in range(3 * MAX_RESTAGES):
        bench.restage()
    assert (len(bench.staged), bench.rows.ended) == (3 * MAX_RESTAGES, [])
