"""The staging of one cart on a test clock: retries, recalls, and the state when it ends."""

from __future__ import annotations

import errno
import tarfile
from hashlib import sha1
from pathlib import Path

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from cartd.archive import ArchiveError
from cartd.archive.retry import FileFailed
from cartd.errors import LeaseLost, NoSpace
from cartd.model import Cart, CartStatus, FileStatus
from cartd.staging.fetch import MAX_FAILED_IF_MOST_FAIL, WINDOW, FilesFailed
from cartd.staging.pipeline import StagingPipeline
from cartd.tar.bag import loaded_facts
from tests.support.sqlite_store import SqliteStore
from tests.support.staging_parts import MTIME, Bench, passing
from tests.support.volume_parts import (
    HeldThreads,
    begin,
    everything,
    failure_of,
    outcome,
    result_of,
)

pytest_plugins = ("tests.support.database_fixtures",)

FILES = {"1": b"one", "2": b"two" * 100, "3": b""}


def claimed(bench: Bench, cart: Cart) -> Cart:
    return bench.store.lease_to(cart, "me", until=60.0)


def run(
    bench: Bench, cart: Cart, *, resumed: bool = False
) -> tuple[Deferred[None], list[Failure | None]]:
    staging = StagingPipeline(bench.context(), claimed(bench, cart), "me", resumed=resumed)
    running = Deferred.fromCoroutine(staging.run())
    return running, outcome(running)


@pytest.fixture
def bench(tmp_path: Path, sqlite_store: SqliteStore) -> Bench:
    return Bench(sqlite_store, tmp_path / "volume", FILES)


def errors(bench: Bench, cart_id: int) -> dict[str, str]:
    """Return the recorded errors of files, by their ids."""
    rows = bench.store.files(cart_id)
    return {row.archive_id: row.error for row in rows if row.status is FileStatus.ERROR}


def content(bench: Bench) -> dict[str, bytes]:
    files = bench.root.glob("[0-9]*/**/*")
    return {path.name: path.read_bytes() for path in files if path.is_file()}


class TestRetries:
    @pytest.mark.parametrize("method", ["HEAD", "GET"])
    def test_the_waits_between_tries_double(self, bench: Bench, method: str) -> None:
        bench.tries = 5
        bench.archive.fails[method, "1"] = [passing() for _ in range(4)]
        _, ended = run(bench, bench.put())
        tried = bench.times_until(lambda: bench.archive.times(method, "1"), seconds=10)
        assert tried == [0.5, 1.5, 3.5, 7.5]
        assert ended == [None]
        assert content(bench) == FILES

    def test_the_archive_may_ask_for_a_longer_wait_within_reason(self, bench: Bench) -> None:
        asked = [passing(retry_after=4), passing(retry_after=0.1), passing(retry_after=86_400)]
        bench.tries = 4
        bench.archive.fails["GET", "2"] = list(asked)
        _, ended = run(bench, bench.put())
        tried = bench.times_until(lambda: bench.archive.times("GET", "2"), seconds=400)
        assert tried == [4, 5, 305]
        assert ended == [None]

    def test_after_all_attempts_the_last_cause_is_reported(self, bench: Bench) -> None:
        bench.archive.fails["GET", "2"] = [passing("first"), passing("second"), passing("third")]
        _, ended = run(bench, bench.put())
        bench.clock.pump([0.5, 1.0])
        error = failure_of(ended)
        assert isinstance(error, FilesFailed)
        assert str(error) == "Failed to stage dir/2 (archive id 2): third"
        assert errors(bench, 1) == {"2": "third"}
        assert not bench.clock.getDelayedCalls()

    def test_a_wrong_hash_is_tried_again(self, bench: Bench) -> None:
        cart = bench.put()
        right, bench.archive.files["2"] = bench.archive.files["2"], b"owt" * 100
        _, ended = run(bench, cart)
        bench.archive.files["2"] = right
        bench.clock.advance(0.5)
        assert ended == [None]
        assert content(bench) == FILES

    @pytest.mark.parametrize(("contents", "slots"), [([b"owt", b"owt"], 4), ([b"owt", b"wto"], 1)])
    def test_only_varying_corruption_lowers_the_concurrency(
        self, tmp_path: Path, sqlite_store: SqliteStore, contents: list[bytes], slots: int
    ) -> None:
        bench = Bench(sqlite_store, tmp_path / "volume", dict.fromkeys(["1", "2"], b"two"))
        cart = bench.put()
        bench.archive.files = dict.fromkeys(["1", "2"], contents[0])
        staging = StagingPipeline(bench.context(), claimed(bench, cart), "me", resumed=False)
        running = Deferred.fromCoroutine(staging.run())
        assert bench.slots() == 1
        bench.archive.files = dict.fromkeys(["1", "2"], contents[1])
        bench.clock.advance(0.5)
        assert bench.slots() == slots
        outcome(running)
        running.cancel()

    @pytest.mark.parametrize(
        "error", [ArchiveError("no such file", retryable=False), OSError(5, "broken disk")]
    )
    def test_a_permanent_failure_is_not_retried(self, bench: Bench, error: Exception) -> None:
        bench.archive.fails["GET", "2"] = [error]
        _, ended = run(bench, bench.put())
        assert isinstance(failure_of(ended), FilesFailed | FileFailed)
        assert str(error) in str(failure_of(ended))
        assert bench.archive.times("GET", "2") == 1

    def test_a_volume_that_fails_ends_the_waiting_of_the_other_files(self, bench: Bench) -> None:
        bench.archive.fails["GET", "1"] = [passing()]
        bench.archive.fails["GET", "2"] = [OSError(errno.EROFS, "Read-only file system")]
        cart = bench.put()
        _, ended = run(bench, cart)
        assert isinstance(failure_of(ended), FileFailed)
        assert not bench.clock.getDelayedCalls()
        assert not any("incoming/" in path for path in everything(bench.root))


class TestFailedFiles:
    """All bad files are reported, and all others staged."""

    @staticmethod
    def of(tmp_path: Path, sqlite_store: SqliteStore, number: int) -> Bench:
        return Bench(sqlite_store, tmp_path / "volume", {f"{n}": b"%d" % n for n in range(number)})

    @pytest.mark.parametrize("bundle", [False, True])
    def test_all_failures_are_reported_and_good_files_are_staged(
        self, tmp_path: Path, sqlite_store: SqliteStore, bundle: bool
    ) -> None:
        bench = self.of(tmp_path, sqlite_store, 39)
        bench.archive.fails["HEAD", "20"] = [ArchiveError("404", retryable=False)]
        bench.archive.fails["HEAD", "10"] = [passing("500")] * 3
        bench.archive.fails["GET", "30"] = [ArchiveError("403", retryable=False)]
        cart = bench.put(bundle=bundle)
        bench.archive.files["5"] = b"X"
        _, ended = run(bench, cart)
        bench.clock.pump([0.125] * 80)
        error = failure_of(ended)
        assert isinstance(error, FilesFailed)
        assert str(error) == (
            "Failed to stage dir/5 (archive id 5): its sha1 is"
            f" {sha1(b'X').hexdigest()} where {sha1(b'5').hexdigest()} was declared;"
            " 3 other files failed too"
        )
        failed = errors(bench, cart.id)
        assert failed.pop("5").startswith("its sha1 is")
        assert failed == {"10": "500", "20": "404", "30": "403"}
        assert len(bench.store.staged(cart.id)) == 35
        assert not bench.clock.getDelayedCalls()

        # A restaged cart fetches only the failed files.
        bench.archive.files["5"] = b"5"
        bench.archive.asked.clear()
        _, ended = run(bench, cart, resumed=True)
        assert ended == [None]
        assert bench.archive.times("GET") == 4

    def test_files_on_tape_fail_for_themselves(
        self, tmp_path: Path, sqlite_store: SqliteStore
    ) -> None:
        bench = self.of(tmp_path, sqlite_store, 5)
        bench.archive.on_tape = set(bench.archive.files)
        bench.archive.fails["POST", "1"] = [ArchiveError("400", retryable=False)]
        bench.archive.fails["GET", "3"] = [ArchiveError("403", retryable=False)]
        cart = bench.put()
        _, ended = run(bench, cart)
        bench.archive.on_tape.clear()
        bench.clock.advance(1)
        assert "400; 1 other file failed too" in str(failure_of(ended))
        assert errors(bench, cart.id) == {"1": "400", "3": "403"}
        assert bench.store.staged(cart.id) == ["0", "2", "4"]
        assert not bench.clock.getDelayedCalls()

    @pytest.mark.parametrize("method", ["HEAD", "GET"])
    def test_a_large_cart_whose_files_all_fail_is_aborted_early(
        self, tmp_path: Path, sqlite_store: SqliteStore, method: str
    ) -> None:
        bench = self.of(tmp_path, sqlite_store, 3000)
        for name in bench.archive.files:
            bench.archive.fails[method, name] = [ArchiveError("404", retryable=False)]
        cart = bench.put()
        _, ended = run(bench, cart)
        bench.clock.pump([0.125] * 8)
        error = str(failure_of(ended))
        assert error.startswith("Failed to stage dir/0 (archive id 0): 404; ")
        assert error.endswith(" other files failed too; the rest was not tried")
        assert (
            MAX_FAILED_IF_MOST_FAIL
            <= bench.archive.times(method)
            < MAX_FAILED_IF_MOST_FAIL + WINDOW
        )
        assert (
            MAX_FAILED_IF_MOST_FAIL
            <= len(errors(bench, cart.id))
            < MAX_FAILED_IF_MOST_FAIL + WINDOW
        )

    def test_a_cart_whose_files_mostly_succeed_is_aborted_late(
        self, tmp_path: Path, sqlite_store: SqliteStore
    ) -> None:
        bench = self.of(tmp_path, sqlite_store, 1600)
        for name in list(bench.archive.files)[::5]:
            bench.archive.fails["HEAD", name] = [ArchiveError("404", retryable=False)]
        cart = bench.put()
        _, ended = run(bench, cart)
        bench.clock.pump([0.125] * 8)
        assert str(failure_of(ended)).endswith("404; 319 other files failed too")
        assert len(bench.store.staged(cart.id)) == 1280


class TestReservation:
    def test_space_is_reserved_before_a_byte_is_fetched(self, bench: Bench) -> None:
        async def refuse(cart: Cart, holder: str, **sizes: int) -> None:
            assert sizes == {"bytes_total": 303, "volume_bytes": 303}
            raise NoSpace

        bench.reserve = refuse
        _, ended = run(bench, bench.put())
        assert isinstance(failure_of(ended), NoSpace)
        assert bench.archive.times("HEAD") == 3
        assert bench.archive.times("GET") == 0

    def test_space_for_a_bundle_is_reserved_beside_its_files(self, bench: Bench) -> None:
        asked: list[dict[str, int]] = []

        async def record(cart: Cart, holder: str, **sizes: int) -> None:
            asked.append(sizes)

        bench.reserve = record
        cart = bench.put(bundle=True)
        _, ended = run(bench, cart)
        assert ended == [None]
        length = (bench.root / "1" / "mine.tar").stat().st_size
        assert asked == [{"bytes_total": 303, "volume_bytes": 303 + length}]
        assert bench.store.cart(cart.id).volume_bytes == length

    def test_space_for_a_bag_is_reserved_before_its_hashes_are_known(self, bench: Bench) -> None:
        asked: list[int] = []

        async def record(cart: Cart, holder: str, *, bytes_total: int, volume_bytes: int) -> None:
            asked.append(volume_bytes)

        bench.reserve = record
        cart = bench.put(bundle=True)
        bench.store.query("UPDATE cart SET format = 'bag'")
        bench.store.query("UPDATE file SET hash_value = '' WHERE position = 1")
        _, ended = run(bench, bench.store.cart(cart.id))
        assert ended == [None]
        tar = bench.root / "1" / "mine.tar"
        assert 303 + tar.stat().st_size <= asked[0] <= 303 + tar.stat().st_size + 10_240
        cart = bench.store.cart(cart.id)
        assert (cart.status, cart.volume_bytes) == (CartStatus.READY, tar.stat().st_size)
        with tarfile.open(tar) as bag:
            assert bag.getnames()[4] == "mine/tagmanifest-sha1.txt"
        [facts] = [loaded_facts(cart.bag)]
        assert facts is not None and facts.length("mine") == tar.stat().st_size


class TestTapes:
    def test_all_are_announced_and_asked_for_with_growing_waits(self, bench: Bench) -> None:
        bench.archive.on_tape = {"1", "2"}
        running, ended = run(bench, bench.put())
        assert [one for one in bench.archive.asked if one[0] != "HEAD"] == [
            ("GET", "3"),
            ("POST", "1"),
            ("POST", "2"),
        ]
        looked = bench.times_until(lambda: bench.archive.times("HEAD"), seconds=3000)
        assert looked == [1, 3, 7, 15, 31, 63, 127, 255, 511, 1023, 1623, 2223, 2823]
        assert ended == []
        running.cancel()

    def test_a_recalled_file_does_not_change_the_waits_of_others(self, bench: Bench) -> None:
        bench.archive.on_tape = {"1", "2"}
        _, ended = run(bench, bench.put())
        bench.times_until(lambda: None, seconds=8)
        bench.archive.on_tape = {"2"}
        looked = bench.times_until(lambda: bench.archive.times("HEAD", "2"), seconds=60)
        assert looked == [7, 23, 55]
        assert bench.archive.times("GET", "1") == 1
        bench.archive.on_tape = set()
        bench.times_until(lambda: None, seconds=70)
        assert ended == [None]
        assert content(bench) == FILES

    def test_a_file_is_announced_again_only_after_as_long_as_is_set(self, bench: Bench) -> None:
        bench.archive.on_tape = {"1"}
        bench.recall_retry_interval = 7200
        running, _ = run(bench, bench.put())
        posted = bench.times_until(lambda: bench.archive.times("POST", "1"), seconds=16_000)
        assert posted == [7623, 14_823]
        running.cancel()

    def test_retry_after_of_a_file_on_tape_is_honoured_up_to_a_limit(self, bench: Bench) -> None:
        bench.archive.on_tape = {"1", "2"}
        bench.archive.asks_to_wait = {"1": 20, "2": 86_400}
        running, _ = run(bench, bench.put())
        looked = bench.times_until(lambda: bench.archive.times("HEAD", "1"), seconds=50)
        assert looked == [20, 40]
        looked = bench.times_until(lambda: bench.archive.times("HEAD", "2"), seconds=7200)
        assert looked == [3550, 7150]
        running.cancel()

    @pytest.mark.parametrize("number", [50, 100, 200])
    def test_recalling_many_files_costs_a_few_requests_each(
        self, tmp_path: Path, sqlite_store: SqliteStore, number: int
    ) -> None:
        """One poll per second, the first after 20 seconds."""
        bench = Bench(sqlite_store, tmp_path / "volume", {f"{n}": b"" for n in range(number)})
        bench.archive.comes_at = {f"{n}": 20.0 + n for n in range(number)}
        bench.archive.seconds = bench.clock.seconds
        _, ended = run(bench, bench.put())
        bench.clock.pump([0.25] * 4 * 300)
        assert ended == [None]
        heads = [bench.archive.times("HEAD", name) for name in bench.archive.files]
        assert max(heads) <= 12
        assert bench.archive.times("POST") == bench.archive.times("GET") == number

    def test_waiting_for_tape_is_reported_and_rarely_recorded(
        self, tmp_path: Path, sqlite_store: SqliteStore
    ) -> None:
        bench = Bench(sqlite_store, tmp_path / "volume", {f"{n}": b"" for n in range(200)})
        bench.archive.comes_at = {f"{n}": 20.0 + n for n in range(200)}
        bench.archive.seconds = bench.clock.seconds
        cart = bench.put()
        _, ended = run(bench, cart)
        changes = bench.times_until(lambda: bench.store.cart(cart.id).message, seconds=300)
        assert bench.store.cart(cart.id).message == ""
        assert ended == [None]
        assert len(changes) <= 5
        assert changes == sorted(changes)

        del bench.archive.comes_at["7"]
        bench.archive.on_tape = {"7", "8"}
        waiting = bench.put(["7", "8"], "another")
        result_of(bench.store.removals.mark_deleted(cart.id, 300))
        running, _ = run(bench, waiting)
        message = bench.store.cart(waiting.id).message
        assert message == "Waiting for tape since 1970-01-01 00:05:00 UTC: 2 files"
        running.cancel()

    def test_a_resumed_cart_with_recalled_files_waits_for_no_tape(self, bench: Bench) -> None:
        bench.archive.on_tape = {"1"}
        cart = bench.put()
        running, _ = run(bench, cart)
        running.cancel()
        assert bench.store.cart(cart.id).message != ""
        bench.archive.on_tape = set()
        bench.archive.holds["GET", "1"] = Deferred()
        running, ended = run(bench, cart, resumed=True)
        assert (bench.store.cart(cart.id).message, ended) == ("", [])
        running.cancel()

    def test_what_comes_while_the_disk_is_read_is_fetched_once(
        self, tmp_path: Path, sqlite_store: SqliteStore
    ) -> None:
        """More files precede it than fit into the window."""
        disk = {f"disk{n}": b"" for n in range(300)}
        tape = {f"tape{n}": b"" for n in range(20)}
        bench = Bench(sqlite_store, tmp_path / "volume", disk | tape)
        bench.archive.on_tape = set(tape)
        held: Deferred[None] = Deferred()
        bench.archive.holds |= {("GET", name): held for name in disk}
        cart = claimed(bench, bench.put())
        ended = begin(
            StagingPipeline(bench.context(connections=500), cart, "me", resumed=False).run()
        )
        bench.archive.on_tape = set()
        bench.clock.pump([0.125] * 130)
        assert [bench.archive.times("GET", name) for name in tape] == [1] * len(tape)
        assert bench.archive.times("GET", "disk299") == 0
        held.callback(None)
        bench.clock.pump([1.0] * 5)
        assert ended == [None]
        assert bench.archive.times("GET") == len(disk) + len(tape)

    def test_all_carts_together_ask_no_more_often_than_is_set(
        self, tmp_path: Path, sqlite_store: SqliteStore
    ) -> None:
        files = {f"{n}": b"" for n in range(90)}
        bench = Bench(sqlite_store, tmp_path / "volume", files)
        bench.tape_poll_rate = 10
        bench.archive.on_tape = set(files)
        context, pipelines = bench.context(), list[Deferred[None]]()
        for first in (0, 30, 60):
            cart = claimed(bench, bench.put([f"{n}" for n in range(first, first + 30)], f"{first}"))
            staging = StagingPipeline(context, cart, "me", resumed=False)
            pipelines.append(Deferred.fromCoroutine(staging.run()))
        states = len(files)
        assert bench.archive.times("HEAD") == states
        bench.clock.advance(1)
        bench.clock.pump([0.1] * 30)
        asked = [int(name) // 30 for method, name in bench.archive.asked if method == "HEAD"]
        assert len(asked) - states <= 32
        # Each cart gets its share, although the first has more polls due.
        assert all(asked[states:].count(cart) >= 8 for cart in range(3))
        for running in pipelines:
            outcome(running)
            running.cancel()

    def test_a_recall_can_be_cancelled_while_waiting_for_a_poll(
        self, tmp_path: Path, sqlite_store: SqliteStore
    ) -> None:
        bench = Bench(sqlite_store, tmp_path / "volume", FILES)
        bench.tape_poll_rate = 1
        bench.archive.on_tape = set(FILES)
        running, ended = run(bench, bench.put())
        bench.clock.advance(1)
        running.cancel()
        assert isinstance(failure_of(ended), CancelledError)
        assert not bench.clock.getDelayedCalls()


class TestTakingUp:
    def test_intact_files_on_the_volume_are_not_fetched_again(self, bench: Bench) -> None:
        cart = bench.put()
        bench.store.reserve(cart, 303)
        tree = bench.volume.paths.tree(cart) / "dir"
        tree.mkdir(parents=True)
        (tree / "1").write_bytes(FILES["1"])
        (tree / "2").write_bytes(b"owt" * 100)
        _, ended = run(bench, cart, resumed=True)
        assert ended == [None]
        assert [bench.archive.times("GET", name) for name in FILES] == [0, 1, 1]
        assert content(bench) == FILES

    @pytest.mark.parametrize("measured", [True, False], ids=["of known size", "of unknown size"])
    def test_intact_files_on_the_volume_are_not_recalled(
        self, bench: Bench, measured: bool
    ) -> None:
        cart = bench.put(["1"])
        if measured:
            claimed(bench, cart)
            states = [(0, len(FILES["1"]), MTIME)]
            result_of(bench.store.progress.record_states(cart.id, "me", states))
            bench.store.reserve(cart, len(FILES["1"]))
        else:
            bench.store.from_pacifica(cart)
        place = bench.volume.paths.member(cart, "dir/1")
        place.parent.mkdir(parents=True)
        place.write_bytes(FILES["1"])
        bench.archive.on_tape = {"1"}
        _, ended = run(bench, cart, resumed=True)
        assert ended == [None]
        assert bench.archive.asked == ([] if measured else [("HEAD", "1")])

    def test_an_older_cart_of_a_uid_does_not_replace_its_link(self, bench: Bench) -> None:
        older, newer = bench.put(), bench.put(["1"])
        for cart in (newer, older):
            _, ended = run(bench, cart)
            assert ended == [None]
        link = bench.root / "cartuids" / "mine"
        assert str(link.readlink()) == f"../{newer.id}/mine"
        assert list(bench.root.glob("incoming/*")) == []


class TestEnding:
    def test_a_staging_that_is_cancelled_leaves_nothing_half_done(self, bench: Bench) -> None:
        bench.archive.holds["GET", "2"] = Deferred()
        cart = bench.put()
        running, ended = run(bench, cart)
        running.cancel()
        assert isinstance(failure_of(ended), CancelledError)
        assert sorted(bench.store.staged(cart.id)) == ["1", "3"]
        assert not bench.clock.getDelayedCalls()
        assert list(bench.root.glob("incoming/*/*")) == []

    @pytest.mark.parametrize("method", ["HEAD", "POST", "GET"])
    def test_it_can_be_cancelled_in_every_request(self, bench: Bench, method: str) -> None:
        bench.archive.on_tape = {"2"} if method == "POST" else set()
        held = bench.archive.holds[method, "2"] = Deferred()
        running, ended = run(bench, bench.put())
        assert ended == []
        running.cancel()
        assert held.called
        assert isinstance(failure_of(ended), CancelledError)

    def test_a_cancelled_file_is_not_retried(
        self, tmp_path: Path, sqlite_store: SqliteStore
    ) -> None:
        threads = HeldThreads()
        bench = Bench(sqlite_store, tmp_path / "volume", {"1": b"one"}, threads)
        cart = bench.put()
        bench.archive.files["1"] = b"eno"
        running, ended = run(bench, cart)
        while bench.archive.times("GET") == 0:
            threads.run_one()
        running.cancel()
        threads.run_all()
        assert isinstance(failure_of(ended), CancelledError)
        assert not bench.clock.getDelayedCalls()

    def test_a_lease_that_is_lost_ends_it(self, bench: Bench) -> None:
        held: Deferred[None] = Deferred()
        bench.archive.holds["GET", "2"] = held
        cart = bench.put()
        _, ended = run(bench, cart)
        bench.store.lease_to(cart, "another", until=99.0)
        bench.clock.advance(1.0)
        held.callback(None)
        assert isinstance(failure_of(ended), LeaseLost)
        assert bench.store.cart(cart.id).status is CartStatus.STAGING
