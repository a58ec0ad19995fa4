"""The stager: carts are started, resumed and aborted, each under a lease."""

from __future__ import annotations

import errno
import gc
import socket
from collections.abc import Iterator
from math import inf
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, ensureDeferred

from cartd.errors import Unavailable
from cartd.model import CartFile, CartStatus, FileStatus, TarFacts
from cartd.staging.stager import CLAIM_INTERVAL, LEASE_SECONDS, STALL_TIMEOUT, Stager
from cartd.volume.locks import ProcessLocks
from tests.support.sqlite_store import SqliteStore
from tests.support.staging_parts import Bench, outage, passing
from tests.support.volume_parts import InThisThread, begin, logged, result_of

pytest_plugins = ("tests.support.database_fixtures",)

FILES = {"1": b"one", "2": b"two"}


class Staged(Bench):
    """A bench with a stager."""

    def __init__(
        self, store: SqliteStore, root: Path, stall_timeout: float = STALL_TIMEOUT
    ) -> None:
        super().__init__(store, root, FILES)
        self.divisors: dict[str, int] = {}
        self.process_locks = ProcessLocks(root / "holders")
        self.holder = self.process_locks.name
        self.stager = Stager(
            self.store,
            self.process_locks,
            self.recovery(),
            InThisThread(),
            self.clock,
            self.now,
            stall_timeout=stall_timeout,
        )

    def start(self, *, claim_unfinished: bool = True) -> None:
        self.process_locks.start()
        self.stager.start(self.context(divisors=self.divisors), claim_unfinished=claim_unfinished)

    def status(self, cart_id: int) -> CartStatus:
        return self.store.cart(cart_id).status

    def hold(self, method: str = "GET", name: str = "1") -> Deferred[None]:
        held: Deferred[None] = Deferred()
        self.archive.holds[method, name] = held
        return held


@pytest.fixture
def bench(tmp_path: Path, sqlite_store: SqliteStore) -> Iterator[Staged]:
    bench = Staged(sqlite_store, tmp_path / "volume")
    yield bench
    result_of(bench.stager.stop())
    bench.process_locks.stop()
    assert not bench.clock.getDelayedCalls()
    assert bench.stager.count() == 0


class TestBeginning:
    def test_a_cart_that_is_begun_becomes_ready(self, bench: Staged) -> None:
        bench.start()
        cart = bench.put()
        bench.stager.begin(cart.id, resumed=False)
        assert bench.stager.count() == 0
        assert bench.status(cart.id) is CartStatus.READY
        assert bench.store.held() == {}

    def test_to_begin_a_cart_again_changes_nothing_about_its_staging(self, bench: Staged) -> None:
        bench.start()
        cart, held = bench.put(), bench.hold()
        for _ in range(2):
            bench.stager.begin(cart.id)
        assert bench.stager.count() == 1
        held.callback(None)
        assert bench.status(cart.id) is CartStatus.READY
        assert bench.archive.times("GET") == len(FILES)

    def test_nothing_is_begun_before_the_start_or_after_the_stop(self, bench: Staged) -> None:
        cart = bench.put()
        bench.stager.begin(cart.id)
        bench.start(claim_unfinished=False)
        result_of(bench.stager.stop())
        bench.stager.begin(cart.id)
        assert bench.archive.asked == []

    def test_a_cart_that_another_holds_is_left_to_it(self, bench: Staged) -> None:
        cart = bench.put()
        with_lock = ProcessLocks(bench.root / "holders")
        with_lock.start()
        bench.store.lease_to(cart, with_lock.name, until=LEASE_SECONDS)
        claims: list[object] = []
        bench.store.leases.claim = claims.append  # type: ignore[method-assign,assignment]
        bench.start()
        bench.clock.advance(CLAIM_INTERVAL)
        assert bench.archive.asked == []
        assert claims == []
        with_lock.stop()


class TestErrors:
    def test_a_failed_file_is_recorded_with_its_cause(self, bench: Staged) -> None:
        bench.archive.fails["GET", "2"] = [OSError(5, "broken disk")]
        bench.start()
        cart = bench.put()
        bench.stager.begin(cart.id)
        assert bench.status(cart.id) is CartStatus.ERROR
        message = "Failed to stage dir/2 (archive id 2): [Errno 5] broken disk"
        assert bench.store.cart(cart.id).error == message
        failed = bench.store.files(cart.id)[1]
        assert (failed.status, failed.error) == (FileStatus.ERROR, "[Errno 5] broken disk")

    def test_a_cart_in_error_keeps_what_is_recorded_and_nothing_else(self, bench: Staged) -> None:
        """Otherwise files left by a crash would take space that is not counted."""
        cart = bench.put()
        unrecorded = bench.volume.paths.member(cart, "dir/2")
        unrecorded.parent.mkdir(parents=True)
        unrecorded.write_bytes(b"damaged")
        bench.archive.fails["GET", "2"] = [OSError(5, "broken disk")]
        bench.start()
        bench.stager.begin(cart.id)
        assert bench.status(cart.id) is CartStatus.ERROR
        there = {path.name for path in unrecorded.parent.iterdir()}
        assert there == set(bench.store.staged(cart.id)) != set()
        assert list((bench.root / "incoming").iterdir()) == []

    def test_a_cart_fails_only_after_its_files_are_recorded(self, bench: Staged) -> None:
        """Otherwise unrecorded files on the volume would take space that is not counted."""
        bench.start()
        cart, held = bench.put(), bench.hold("GET", "2")
        bench.stager.begin(cart.id)
        bench.clock.advance(1)
        assert bench.store.staged(cart.id) == ["1"]
        bench.archive.fails["GET", "2"] = [OSError(5, "broken disk")]
        with bench.store.unavailable():
            held.callback(None)
        assert bench.stager.count() == 0
        assert bench.status(cart.id) is CartStatus.STAGING
        bench.archive.fails["GET", "2"] = [OSError(5, "broken disk")]
        bench.clock.advance(CLAIM_INTERVAL)
        assert bench.status(cart.id) is CartStatus.ERROR

    def test_a_failed_cart_stays_reserved_if_its_files_are_unknown(
        self, bench: Staged, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A failed disk cannot be read: otherwise its files would not be counted."""

        async def hidden(_: int, *, include_staged: bool = False) -> None:
            raise OSError(errno.EIO, "Input/output error")

        bench.start()
        cart, held = bench.put(), bench.hold("GET", "2")
        bench.stager.begin(cart.id)
        monkeypatch.setattr(bench.volume.incoming, "clear", hidden)
        bench.archive.fails["GET", "2"] = [OSError(errno.EIO, "broken disk")]
        held.callback(None)
        assert bench.status(cart.id) is CartStatus.ERROR
        promised = sum(map(len, FILES.values()))
        assert bench.store.cart(cart.id).volume_bytes == promised

        again = bench.put(uid="again")  # fails before anything of it is known
        bench.stager.begin(again.id)
        assert bench.status(again.id) is CartStatus.ERROR
        assert bench.store.cart(again.id).volume_bytes == 0

    def test_a_cart_that_fails_while_bundling_counts_its_tar(
        self, bench: Staged, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def fail(_: object) -> None:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(bench.volume.links, "place", fail)
        bench.start()
        cart = bench.put(bundle=True)
        bench.stager.begin(cart.id, resumed=False)
        assert bench.status(cart.id) is CartStatus.ERROR
        tar = bench.volume.paths.tar(cart).stat().st_size
        assert bench.store.cart(cart.id).volume_bytes == tar

    def test_files_removed_before_bundling_are_refetched_once(self, bench: Staged) -> None:
        bench.start()
        cart = bench.put(bundle=True)
        begin_bundling = bench.store.progress.begin_bundling
        times = 0

        async def remove_before_bundling(
            cart_id: int,
            holder: str,
            now: float,
            tar: TarFacts | None = None,
            bag: str | None = None,
        ) -> None:
            nonlocal times
            times += 1
            if times != 2:
                (bench.volume.paths.tree(cart) / "dir" / "2").unlink()
            await begin_bundling(cart_id, holder, now, tar, bag)

        bench.store.progress.begin_bundling = remove_before_bundling  # type: ignore[method-assign]
        bench.stager.begin(cart.id, resumed=False)
        assert bench.status(cart.id) is CartStatus.READY
        assert [bench.archive.asked.count(("GET", name)) for name in FILES] == [1, 2]
        assert bench.volume.paths.tar(cart).exists()

        cart = again = bench.put(uid="again", bundle=True)
        times = 2
        bench.stager.begin(again.id, resumed=False)
        assert bench.status(again.id) is CartStatus.ERROR
        assert bench.store.cart(again.id).error == "dir/2 is missing on the volume"

    def test_an_internal_error_fails_one_cart_only(self, bench: Staged) -> None:
        bench.archive.fails["HEAD", "1"] = [ZeroDivisionError("bug")]
        bench.start()
        first = bench.put()
        bench.stager.begin(first.id)
        assert bench.store.cart(first.id).error == "Internal error: ZeroDivisionError: bug"
        second = bench.put()
        bench.stager.begin(second.id)
        assert bench.status(second.id) is CartStatus.READY


class TestTakingUp:
    def test_unfinished_carts_are_resumed_at_the_start(self, bench: Staged) -> None:
        cart = bench.put()
        bench.start()
        assert bench.status(cart.id) is CartStatus.READY

    def test_a_command_takes_up_nothing_by_itself(self, bench: Staged) -> None:
        cart = bench.put()
        bench.start(claim_unfinished=False)
        bench.clock.advance(CLAIM_INTERVAL)
        assert bench.status(cart.id) is CartStatus.STAGING

    def test_the_cart_of_a_dead_process_is_taken_over_at_once(self, bench: Staged) -> None:
        cart = bench.put()
        dead = f"{socket.gethostname()}-0-1-0badcafe"
        bench.store.lease_to(cart, dead, until=LEASE_SECONDS)
        bench.start()
        assert bench.status(cart.id) is CartStatus.READY

    def test_a_cart_of_another_machine_is_taken_over_after_its_lease(self, bench: Staged) -> None:
        cart = bench.put()
        bench.store.lease_to(cart, "elsewhere-0-1-0badcafe", until=12.0)
        bench.start()
        bench.clock.pump([CLAIM_INTERVAL] * 2)
        assert bench.status(cart.id) is CartStatus.STAGING
        bench.clock.advance(CLAIM_INTERVAL)
        assert bench.status(cart.id) is CartStatus.READY

    def test_a_clock_set_back_does_not_extend_a_dead_lease(self, bench: Staged) -> None:
        cart = bench.put()
        bench.store.lease_to(cart, "elsewhere-1-0badcafe", until=LEASE_SECONDS)
        bench.set_ahead = -3600.0
        bench.start()
        bench.clock.pump([CLAIM_INTERVAL] * 11)
        assert bench.status(cart.id) is CartStatus.STAGING
        bench.clock.advance(CLAIM_INTERVAL)
        assert bench.status(cart.id) is CartStatus.READY

    def test_a_renewed_lease_is_kept_although_its_clock_is_ahead(self, bench: Staged) -> None:
        cart = bench.put()
        ahead = 3600.0
        bench.store.lease_to(cart, "elsewhere-1-0badcafe", until=ahead)
        bench.start()
        for _ in range(30):
            ahead += CLAIM_INTERVAL
            result_of(bench.store.leases.renew("elsewhere-1-0badcafe", ahead))
            bench.clock.advance(CLAIM_INTERVAL)
        assert bench.archive.asked == []
        result_of(bench.store.leases.release("elsewhere-1-0badcafe", cart.id))
        bench.clock.advance(CLAIM_INTERVAL)
        assert bench.status(cart.id) is CartStatus.READY

    def test_a_cart_is_resumed_when_the_store_is_available_again(self, bench: Staged) -> None:
        bench.start()
        cart, held = bench.put(), bench.hold("GET", "2")
        bench.stager.begin(cart.id, resumed=False)
        with bench.store.unavailable():
            bench.clock.advance(1)
            held.callback(None)
            assert bench.stager.count() == 0
            bench.clock.advance(CLAIM_INTERVAL)
        bench.clock.advance(CLAIM_INTERVAL)
        assert bench.status(cart.id) is CartStatus.READY
        assert bench.store.staged(cart.id) == ["1", "2"]
        # Both files are on the volume: nothing is fetched again.
        assert bench.archive.times("GET") == 2

    def test_a_short_store_outage_does_not_fail_the_cart(self, bench: Staged) -> None:
        bench.start()
        cart, held = bench.put(), bench.hold("GET", "2")
        bench.stager.begin(cart.id, resumed=False)
        with bench.store.unavailable():
            held.callback(None)
        assert bench.stager.count() == 0
        assert bench.status(cart.id) is CartStatus.STAGING
        bench.clock.advance(CLAIM_INTERVAL)
        assert bench.status(cart.id) is CartStatus.READY


class TestLeases:
    def test_they_are_kept_for_as_long_as_the_staging_lasts(self, bench: Staged) -> None:
        bench.start()
        cart, held = bench.put(), bench.hold()
        bench.stager.begin(cart.id)
        bench.clock.pump([CLAIM_INTERVAL] * 30)
        until = bench.clock.seconds() + LEASE_SECONDS
        assert bench.store.held() == {cart.id: (bench.process_locks.name, until)}
        held.callback(None)
        assert bench.status(cart.id) is CartStatus.READY

    @pytest.mark.parametrize("seconds", [1.0, CLAIM_INTERVAL], ids=["at a flush", "at a renewal"])
    def test_a_lost_lease_aborts_the_staging(self, bench: Staged, seconds: float) -> None:
        bench.start()
        cart, held = bench.put(), bench.hold("GET", "2" if seconds == 1.0 else "1")
        if seconds != 1.0:
            bench.hold("GET", "2")  # nothing is staged that a flush would record
        bench.stager.begin(cart.id)
        bench.store.lease_to(cart, "elsewhere-1-0badcafe", until=1000.0)
        bench.clock.advance(seconds)
        assert held.called
        assert bench.stager.count() == 0
        assert bench.status(cart.id) is CartStatus.STAGING
        assert bench.store.held() == {cart.id: ("elsewhere-1-0badcafe", 1000.0)}

    def test_staged_files_are_recorded_within_a_second(self, bench: Staged) -> None:
        bench.start()
        cart = bench.put()
        bench.hold("GET", "2")
        bench.stager.begin(cart.id)
        assert bench.store.staged(cart.id) == []
        bench.clock.advance(1)
        assert bench.store.staged(cart.id) == ["1"]


class TestStandingStill:
    def test_a_stalled_cart_is_restarted_and_logged(
        self, bench: Staged, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As if a bug had lost the Deferred that the staging waits for."""
        lost: list[Deferred[list[CartFile]]] = [Deferred()]
        files = bench.store.carts.files

        async def forgotten(*args: Any, **kwargs: Any) -> list[CartFile]:
            return await (lost.pop() if lost else ensureDeferred(files(*args, **kwargs)))

        monkeypatch.setattr(bench.store.carts, "files", forgotten)
        bench.start()
        cart = bench.put()
        bench.stager.begin(cart.id, resumed=False)
        with logged() as events:
            bench.clock.pump([60.0] * int(STALL_TIMEOUT / 60 - 1))
            assert bench.status(cart.id) is CartStatus.STAGING
            bench.clock.pump([60.0] * 2)
        assert bench.status(cart.id) is CartStatus.READY
        assert sum("no progress for" in str(event.get("log_format")) for event in events) == 1

    @pytest.mark.parametrize("what", ["tape", "archive", "transfer", "pause"])
    def test_a_cart_that_waits_for_something_does_not_stand_still(
        self, bench: Staged, what: str
    ) -> None:
        bench.outage_limit = inf
        if what == "tape":
            bench.archive.on_tape = {"1"}
        elif what == "archive":
            bench.archive.failure = outage()
        elif what == "pause":
            bench.archive.fails["HEAD", "1"] = [passing(retry_after=1e6)] * 2
        else:
            bench.hold("GET", "1")
        bench.start()
        cart = bench.put(["1"])
        bench.stager.begin(cart.id, resumed=False)
        with logged() as events:
            bench.clock.pump([60.0] * (8 if what == "pause" else 60))
        assert bench.status(cart.id) is CartStatus.STAGING
        assert not any("no progress for" in str(event.get("log_format")) for event in events)

    def test_a_stall_timeout_above_the_default_is_waited_for(
        self, tmp_path: Path, sqlite_store: SqliteStore
    ) -> None:
        bench = Staged(sqlite_store, tmp_path / "volume", stall_timeout=2 * STALL_TIMEOUT)
        bench.start()
        cart = bench.put(["1"])
        held = bench.hold("HEAD", "1")
        bench.stager.begin(cart.id, resumed=False)
        bench.clock.pump([60.0] * int(2 * STALL_TIMEOUT / 60 - 1))
        assert (bench.archive.times("HEAD"), held.called) == (1, False)
        bench.clock.pump([60.0] * 2)
        assert held.called
        result_of(bench.stager.stop())

    def test_a_cart_that_waits_for_a_slot_is_not_stalled(self, bench: Staged) -> None:
        bench.archive.files = {f"{n}": b"x" for n in range(5)}
        bench.start()
        for name in bench.archive.files:
            if name != "4":
                bench.hold("GET", name)
            bench.stager.begin(bench.put([name], uid=name).id, resumed=False)
        with logged() as events:
            bench.clock.pump([60.0] * 60)
        assert bench.archive.times("HEAD", "4") == 0
        result_of(bench.stager.stop())
        bench.clock.advance(1)  # for timers that find no waiter any more
        assert not any("no progress for" in str(event.get("log_format")) for event in events)


class TestWaitingForLong:
    @pytest.mark.parametrize(("what", "carts"), [("archive", 400), ("tape", 150)])
    def test_carts_that_wait_for_a_week_leak_no_memory(
        self, bench: Staged, what: str, carts: int
    ) -> None:
        bench.archive.files = {f"{n}": b"" for n in range(carts)}
        bench.outage_limit = inf
        bench.tape_poll_rate = 1_000_000  # however long a step of the clock is
        bench.divisors = {"": carts}
        if what == "archive":
            bench.archive.failure = outage()
        else:
            bench.archive.on_tape = set(bench.archive.files)
        for name in bench.archive.files:
            bench.put([name], uid=name)
        bench.start()

        def wait(days: int) -> tuple[int, int]:
            """Advance the clock; return the numbers of callbacks and objects."""
            bench.clock.pump([86_400.0] * days)
            assert bench.stager.count() == carts
            bench.archive.asked.clear()
            gc.collect()
            jobs = bench.stager._running.values()
            return sum(len(job._callbacks) for job in jobs), len(gc.get_objects())

        first, last = wait(1), wait(6)
        assert last[0] == first[0] <= 2 * carts
        assert last[1] - first[1] < 500


class TestLettingGo:
    def test_a_cart_that_is_dropped_is_let_go_of_in_the_middle(self, bench: Staged) -> None:
        bench.start()
        cart, held = bench.put(), bench.hold()
        bench.stager.begin(cart.id)
        result_of(bench.store.removals.mark_deleted(cart.id, 0))
        assert begin(bench.stager.abort(cart.id)) == [None]
        assert held.called
        assert bench.stager.count() == 0
        assert list(bench.root.glob("incoming/*/*")) == []

    def test_aborting_a_cart_that_is_not_staged_does_nothing(self, bench: Staged) -> None:
        bench.start()
        assert begin(bench.stager.abort(99)) == [None]

    def test_the_stop_ends_all_and_gives_the_leases_back(self, bench: Staged) -> None:
        bench.start()
        bench.archive.files["3"] = b"three"
        carts = [bench.put(["1", "2"]), bench.put(["3"])]
        held = [bench.hold("GET", "1"), bench.hold("GET", "3")]
        for cart in carts:
            bench.stager.begin(cart.id)
        assert set(bench.store.held()) == {1, 2}
        result_of(bench.stager.stop())
        assert all(one.called for one in held)
        assert bench.store.held() == {}
        assert [bench.status(cart.id) for cart in carts] == [CartStatus.STAGING] * 2
        assert [bench.store.staged(cart.id) for cart in carts] == [["2"], []]

    def test_stop_ends_although_the_store_is_down(self, bench: Staged) -> None:
        bench.start()
        bench.hold()
        bench.stager.begin(bench.put().id)
        with bench.store.unavailable():
            result_of(bench.stager.stop())
            assert bench.stager.count() == 0
            with pytest.raises(Unavailable):
                result_of(bench.store.leases.holders())
