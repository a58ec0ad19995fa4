"""Carts that become ready without the files that have failed, as their manifests permit."""

from __future__ import annotations

import errno
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from cartd.archive.outage_status import OutageTooLong
from cartd.archive.retry import FileFailed
from cartd.errors import CartdError, NoSpace, Problem
from cartd.model import MAX_MISSING, Cart, CartFile, CartFormat, FileStatus, Outcome
from cartd.staging.fetch import Failures, FilesFailed
from cartd.staging.pipeline import StagingPipeline
from tests.support.sqlite_store import SqliteStore
from tests.support.staging_parts import Bench, missing, outage
from tests.support.volume_parts import begin, failure_of, result_of

pytest_plugins = ("tests.support.database_fixtures",)

FILES = {"1": b"one", "2": b"two" * 100, "3": b""}


@pytest.fixture
def bench(tmp_path: Path, sqlite_store: SqliteStore) -> Bench:
    bench = Bench(sqlite_store, tmp_path / "volume", FILES)
    bench.tries = 1
    return bench


def staging(bench: Bench, cart: Cart, *, resumed: bool = False) -> Coroutine[Any, Any, None]:
    leased = bench.store.lease_to(cart, "me", until=60.0)
    return StagingPipeline(bench.context(), leased, "me", resumed=resumed).run()


def staged(bench: Bench, cart: Cart) -> Cart:
    """Stage a cart until it is ready."""
    result_of(staging(bench, cart))
    return bench.store.cart(cart.id)


def retried(bench: Bench, cart: Cart, *lost: int) -> Cart:
    """Stage a ready cart again, some seconds later, after ``lost`` files were found damaged."""
    bench.clock.advance(10)
    bench.store.restage(cart, lost)
    result_of(staging(bench, cart, resumed=True))
    return bench.store.cart(cart.id)


def failed(bench: Bench, cart: Cart) -> dict[str, str]:
    """Return the recorded errors of files, by their ids."""
    rows = bench.store.files(cart.id)
    return {row.archive_id: row.error for row in rows if row.status is FileStatus.ERROR}


def on_volume(bench: Bench, cart: Cart) -> list[str]:
    """Return what is in the directory of the cart: a tar, or the files of its tree."""
    there = (bench.root / str(cart.id)).rglob("*")
    return sorted(path.name for path in there if path.is_file())


def link(bench: Bench, cart: Cart) -> str:
    return (bench.root / "cartuids" / cart.uid).readlink().name


class TestLimit:
    @pytest.mark.parametrize("method", ["HEAD", "GET"])
    def test_a_cart_is_ready_without_the_files_that_may_fail(
        self, bench: Bench, method: str
    ) -> None:
        bench.archive.fails[method, "2"] = [missing()]
        cart = staged(bench, bench.put(max_failed=1))
        assert (cart.outcome, cart.error, cart.problem) == (Outcome.PARTIAL, "", None)
        assert (cart.files_staged, cart.files_failed, cart.files_total) == (2, 1, 3)
        assert (cart.bytes_total, cart.bytes_staged, cart.volume_bytes) == (3, 3, 3)
        assert failed(bench, cart) == {"2": "404"}
        assert on_volume(bench, cart) == ["1", "3"]

    @pytest.mark.parametrize(
        ("max_failed", "limit"),
        [
            (None, ""),
            (0, "; its manifest permits that 0 files fail (max_failed)"),
            (1, "; its manifest permits that 1 file fail (max_failed)"),
        ],
    )
    def test_a_cart_fails_if_more_files_fail(
        self, bench: Bench, max_failed: int | None, limit: str
    ) -> None:
        bench.archive.bad = {"1": missing(), "2": missing()}
        cart = bench.put(max_failed=max_failed)
        error = failure_of(begin(staging(bench, cart)))
        assert isinstance(error, FilesFailed) and error.problem is Problem.FILE_NOT_IN_ARCHIVE
        first = "Failed to stage dir/1 (archive id 1): 404"
        assert str(error) == f"{first}; 1 other file failed too{limit}"
        # All others are there, for a retry.
        assert bench.store.staged(cart.id) == ["3"]

    def test_all_files_may_be_missing(self, bench: Bench) -> None:
        bench.archive.failure = missing()
        cart = staged(bench, bench.put(max_failed=3, bundle=True))
        assert (cart.outcome, cart.files_failed, cart.files_staged) == (Outcome.PARTIAL, 3, 0)
        assert (cart.bytes_total, cart.volume_bytes) == (0, 0)
        assert cart.tar is not None
        assert link(bench, cart) == cart.uid
        bench.archive.failure = None
        assert retried(bench, cart).outcome is Outcome.COMPLETE

    def test_the_archive_is_not_asked_on_once_too_many_fail(self, bench: Bench) -> None:
        bench.archive.files = {f"{n}": b"" for n in range(600)}
        bench.archive.failure = missing()
        cart = bench.put(max_failed=250)
        error = failure_of(begin(staging(bench, cart)))
        assert str(error).endswith(
            "; 250 other files failed too; the rest was not tried; its manifest permits that 250"
            " files fail (max_failed)"
        )
        assert len(bench.archive.asked) < 250 + 10

    def test_a_limit_above_the_largest_one_is_cut(self) -> None:
        async def record(_failed: object) -> None:
            pass

        failures = Failures(record, lambda: 0.0, max_failed=2 * MAX_MISSING)

        async def fail(number: int) -> None:
            for position in range(number):
                file = CartFile(position, "x", "y", "sha1", "")
                await failures.add(FileFailed(file, missing()))
            await failures.check()

        result_of(fail(MAX_MISSING))
        error = failure_of(begin(fail(MAX_MISSING + 1)))
        assert "at most 10,000 files may be missing in a partial cart" in str(error)

    @pytest.mark.parametrize("what", ["volume", "space", "outage"])
    def test_what_concerns_the_whole_cart_fails_it(self, bench: Bench, what: str) -> None:
        async def no_space(*_: object, **__: object) -> None:
            raise NoSpace

        expected: type[CartdError] = FileFailed
        if what == "volume":
            bench.archive.fails["GET", "2"] = [OSError(errno.EIO, "disk")]
        elif what == "space":
            bench.reserve, expected = no_space, NoSpace
        else:
            bench.archive.failure, bench.outage_limit, expected = outage(), 5.0, OutageTooLong
        ended = begin(staging(bench, bench.put(max_failed=9)))
        for _ in range(100):
            bench.clock.advance(1)
        assert isinstance(failure_of(ended), expected)


class TestRetry:
    @pytest.mark.parametrize("bundle", [False, True])
    def test_a_retry_in_vain_changes_nothing(self, bench: Bench, bundle: bool) -> None:
        bench.archive.bad = {"1": missing(), "2": missing()}
        before = staged(bench, bench.put(max_failed=2, bundle=bundle))
        bench.archive.asked.clear()

        cart = retried(bench, before)

        assert bench.archive.asked == [("HEAD", "1"), ("HEAD", "2")]
        assert cart.tar == before.tar and cart.outcome is Outcome.PARTIAL
        assert cart.files_failed == 2 and failed(bench, cart) == {"1": "404", "2": "404"}
        assert on_volume(bench, cart) == ["3"] and link(bench, cart) == cart.uid

    def test_what_comes_right_makes_another_tar(self, bench: Bench) -> None:
        bench.archive.bad = {"1": missing(), "2": missing()}
        before = staged(bench, bench.put(max_failed=2))
        del bench.archive.bad["1"]

        cart = retried(bench, before)

        assert (cart.files_failed, cart.bytes_total) == (1, 3)
        assert cart.tar is not None and before.tar is not None
        assert cart.tar.digest != before.tar.digest and cart.tar.since == 10.0
        bench.archive.bad.clear()
        whole = retried(bench, cart)
        assert (whole.outcome, whole.files_failed, whole.bytes_total) == (
            Outcome.COMPLETE,
            0,
            sum(map(len, FILES.values())),
        )

    @pytest.mark.parametrize("format_", CartFormat)
    def test_a_bundle_is_written_once_no_file_is_missing(
        self, bench: Bench, format_: CartFormat
    ) -> None:
        bench.archive.bad = {"2": missing()}
        posted = bench.put(max_failed=2, bundle=True)
        bench.store.query("UPDATE cart SET format = ?", format_.value)
        cart = staged(bench, posted)
        assert on_volume(bench, cart) == ["1", "3"] and not cart.has_tar
        bench.archive.bad.clear()

        cart = retried(bench, cart)

        assert on_volume(bench, cart) == ["mine.tar"] and link(bench, cart) == "mine.tar"
        assert cart.has_tar and cart.volume_bytes == (bench.root / "1" / "mine.tar").stat().st_size

    @pytest.mark.parametrize("lost", [[0, 1, 2], [1]])
    def test_a_damaged_bundle_may_become_partial(self, bench: Bench, lost: list[int]) -> None:
        cart = staged(bench, bench.put(max_failed=1, bundle=True))
        (bench.root / "1" / "mine.tar").write_bytes(b"damaged")
        bench.archive.bad = {"2": missing()}

        cart = retried(bench, cart, *range(3))

        assert (cart.outcome, cart.volume_bytes) == (Outcome.PARTIAL, 3)
        assert on_volume(bench, cart) == ["1", "3"] and link(bench, cart) == "mine"
        bench.archive.bad.clear()
        assert on_volume(bench, retried(bench, cart)) == ["mine.tar"]

    def test_nothing_stays_in_the_place_of_a_missing_file(self, bench: Bench) -> None:
        cart = staged(bench, bench.put(max_failed=1))
        (bench.root / "1" / "mine" / "dir" / "2").write_bytes(b"bad" * 100)
        bench.archive.bad = {"2": missing()}
        cart = retried(bench, cart, 1)
        assert on_volume(bench, cart) == ["1", "3"]

    def test_an_attempt_that_was_interrupted_counts_its_failures_anew(self, bench: Bench) -> None:
        """Another process continues, and the files that had failed are there by now."""
        bench.archive.bad = {"1": missing()}
        held = bench.archive.holds["GET", "2"] = Deferred()
        cart = bench.put(max_failed=1, bundle=True)
        running = Deferred.fromCoroutine(staging(bench, cart))
        running.addErrback(lambda _: None)
        assert bench.store.cart(cart.id).files_failed == 1
        running.cancel()
        bench.archive.bad = {}
        bench.archive.holds = {}
        del held

        result_of(staging(bench, cart, resumed=True))

        cart = bench.store.cart(cart.id)
        assert (cart.outcome, cart.files_failed) == (Outcome.COMPLETE, 0)
        assert on_volume(bench, cart) == ["mine.tar"]


class TestDuplicates:
    def test_a_failed_file_that_another_cart_has_staged_meanwhile_is_linked(
        self, bench: Bench
    ) -> None:
        bench.archive.fails["HEAD", "1"] = [missing()]
        bench.archive.bad = {"3": missing()}
        held = bench.archive.holds["GET", "2"] = Deferred()
        cart = bench.put(max_failed=2)
        ended = begin(staging(bench, cart))
        assert failed(bench, cart).keys() == {"1", "3"}
        staged(bench, bench.put(["1"], "other"))

        held.callback(None)
        assert ended == [None]

        cart = bench.store.cart(cart.id)
        assert failed(bench, cart).keys() == {"3"}
        assert (cart.files_staged, cart.files_failed, cart.bytes_linked) == (2, 1, 3)
        assert cart.bytes_total == cart.bytes_staged == cart.volume_bytes == 303

    @pytest.mark.parametrize("bundle", [False, True])
    def test_a_link_keeps_a_cart_below_its_limit(self, bench: Bench, bundle: bool) -> None:
        reserved: list[tuple[int, int]] = []
        reserve = bench.reserve

        async def record(cart: Cart, holder: str, *, bytes_total: int, volume_bytes: int) -> None:
            reserved.append((bytes_total, volume_bytes))
            await reserve(cart, holder, bytes_total=bytes_total, volume_bytes=volume_bytes)

        bench.reserve = record
        bench.archive.fails["HEAD", "1"] = [missing()]
        held = bench.archive.holds["GET", "2"] = Deferred()
        cart = bench.put(max_failed=0, bundle=bundle)
        ended = begin(staging(bench, cart))
        staged(bench, bench.put(["1"], "other"))
        held.callback(None)
        assert ended == [None]
        cart = bench.store.cart(cart.id)
        tar = (bench.root / "1" / "mine.tar").stat().st_size if bundle else 0
        assert cart.outcome is Outcome.COMPLETE
        assert (cart.bytes_total, cart.volume_bytes) == (303, tar or 303)
        # What is linked needs no space of its own, but its copy in the tar does.
        assert reserved[0] == (300, 300) and reserved[-1] == (303, 303 + tar)

    def test_a_failed_file_is_no_source_and_the_others_are(self, bench: Bench) -> None:
        bench.archive.bad = {"2": missing()}
        staged(bench, bench.put(max_failed=1))
        bench.archive.asked.clear()
        cart = staged(bench, bench.put(uid="another", max_failed=1))
        assert cart.bytes_linked == 3 and failed(bench, cart).keys() == {"2"}
        assert {name for _, name in bench.archive.asked} == {"2"}

    def test_files_of_a_partial_bundle_are_no_source(self, bench: Bench) -> None:
        """A retry removes its tree."""
        bench.archive.bad = {"2": missing()}
        staged(bench, bench.put(max_failed=1, bundle=True))
        cart = staged(bench, bench.put(uid="another", max_failed=1))
        assert cart.bytes_linked == 0

    def test_an_unrecorded_link_to_a_partial_bundle_is_not_counted_twice(
        self, bench: Bench
    ) -> None:
        bench.archive.bad = {"2": missing()}
        bundled = staged(bench, bench.put(max_failed=1, bundle=True))
        cart = bench.store.lease_to(bench.put(["1"], "another"), "me", until=60.0)
        digest = bench.store.files(cart.id)[0].hash_sum
        found = bench.store.dedup.record_found(cart.id, "me", {0: digest})
        assert result_of(found) == set()
        bench.archive.bad = {}
        retried(bench, bundled)
        assert result_of(bench.store.dedup.record_found(cart.id, "me", {0: digest})) == {0}
