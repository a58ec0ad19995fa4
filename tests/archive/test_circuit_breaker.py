"""Circuit breaker: probes, waiting files, false trips, the outage limit and the status."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import inf
from pathlib import Path

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import LogEvent

from cartd.archive import ArchiveError
from cartd.archive.circuit_breaker import ProbeTargets
from cartd.archive.outage_status import RETRY_SECONDS
from cartd.archive.retry import FileFailed
from cartd.deferreds.fair_semaphore import INITIAL_SLOTS, RAMP_UP_SECONDS
from cartd.errors import Unavailable
from cartd.model import Cart, CartFile, CartStatus
from cartd.staging.stager import Stager
from cartd.volume.locks import ProcessLocks
from tests.support.sqlite_store import SqliteStore
from tests.support.staging_parts import Bench, outage, passing, unavailable
from tests.support.volume_parts import InThisThread, begin, failure_of, logged, outcome, result_of

pytest_plugins = ("tests.support.database_fixtures",)

FILES = {str(number): b"data %d" % number for number in range(1, 9)}
LINES = (
    "The archive is unavailable",
    "The archive is available again",
    "No cart waits for the archive any more",
)


class OutageScenario(Bench):
    """A stager, an archive with outages, and what was recorded of them in the store."""

    def __init__(self, store: SqliteStore, root: Path) -> None:
        super().__init__(store, root, FILES)
        self.recorded: list[str] = []
        self.failing_writes: float = 0
        """So many writes of the status fail."""
        self._begun, self._ended = (
            self.store.progress.begin_waiting,
            self.store.progress.end_waiting,
        )
        self.store.progress.begin_waiting = self._begin_waiting  # type: ignore[method-assign]
        self.store.progress.end_waiting = self._end_waiting  # type: ignore[method-assign]

    async def _begin_waiting(self, holder: str, since: float, cause: str) -> None:
        self.recorded.append(cause)
        self._fail_write()
        await self._begun(holder, since, cause)

    async def _end_waiting(self, holder: str) -> None:
        self.recorded.append("")
        self._fail_write()
        await self._ended(holder)

    def _fail_write(self) -> None:
        if self.failing_writes:
            self.failing_writes -= 1
            raise Unavailable("The database is unavailable")

    def start(self) -> None:
        """As a new process, on the same store and volume."""
        process_locks = ProcessLocks(self.root / "holders")
        self.holder = process_locks.name
        self.stager = Stager(
            self.store, process_locks, self.recovery(), InThisThread(), self.clock, self.now
        )
        process_locks.start()
        self.stager.start(self.context(), claim_unfinished=True)

    def stop(self) -> None:
        result_of(self.stager.stop())
        result_of(self.outage_status.stop())

    def begin(self, *names: str) -> int:
        cart = self.put(names, uid=f"cart {names}")
        self.stager.begin(cart.id, resumed=False)
        return cart.id

    def run(self, seconds: float) -> None:
        self.clock.pump([0.125] * int(seconds * 8))

    def status(self, cart_id: int) -> CartStatus:
        return self.store.cart(cart_id).status

    def heads(self) -> list[str]:
        return [name for method, name in self.archive.asked if method == "HEAD"]

    def cart(self, cart_id: int) -> Cart:
        return self.store.cart(cart_id)


@pytest.fixture
def scene(tmp_path: Path, sqlite_store: SqliteStore) -> Iterator[OutageScenario]:
    scene = OutageScenario(sqlite_store, tmp_path / "volume")
    scene.start()
    yield scene
    scene.stop()
    assert not scene.clock.getDelayedCalls()


def in_log(events: list[LogEvent]) -> list[str]:
    """The lines about outages, without their numbers."""
    lines = [event for event in events if str(event.get("log_format")).startswith(LINES)]
    return [str(line["log_format"]).partition(" {")[0] for line in lines]


class Files:
    """Files that are requested without a stager, as many as a test needs."""

    def __init__(self, store: SqliteStore, root: Path, number: int, *, connections: int) -> None:
        self.scene = OutageScenario(store, root)
        self.scene.archive.files = {str(n): b"x" for n in range(number)}
        self.context = self.scene.context(connections=connections)
        self.cart = self.scene.put()
        self.rows = self.scene.store.files(self.cart.id)

    async def _state(self, file: CartFile) -> None:
        async def state() -> object:
            return await self.context.archive.status(file.archive_id)

        await self.context.retry_policy.call(self.cart, file, state)

    def ask(self, rows: Iterable[CartFile]) -> list[list[object]]:
        """Begin a request for each; the outcomes come into the lists."""
        return [begin(self._state(file)) for file in rows]


class TestWaiting:
    def test_one_probe_at_a_time_is_sent_and_no_tries_are_used_up(
        self, scene: OutageScenario
    ) -> None:
        scene.archive.failure = outage()
        carts = [scene.begin("1", "2", "3"), scene.begin("4", "5")]
        assert scene.heads() == ["1"]
        times = scene.times_until(lambda: len(scene.heads()), seconds=200)
        assert times == [
            0.125,
            0.625,
            1.625,
            3.625,
            7.625,
            15.625,
            31.625,
            63.625,
            123.625,
            183.625,
        ]
        assert scene.archive.most_running == 1
        assert {scene.status(cart) for cart in carts} == {CartStatus.STAGING}
        scene.archive.failure = None
        scene.run(65)
        assert {scene.status(cart) for cart in carts} == {CartStatus.READY}

    def test_probes_rotate_among_the_waiting_files(self, scene: OutageScenario) -> None:
        scene.archive.failure = outage()
        scene.begin("1", "2")
        scene.begin("3", "4")
        scene.run(20)
        first, *probed = scene.heads()
        assert first == "1"
        assert sorted(probed[:4]) == ["1", "2", "3", "4"]
        assert probed[3] == "1"

    def test_retry_after_delays_probes_up_to_a_limit(self, scene: OutageScenario) -> None:
        scene.archive.failure = outage("503", retry_after=20)
        scene.begin("1", "2")
        assert scene.times_until(lambda: len(scene.heads()), seconds=45) == [0.125, 20.125, 40.125]
        scene.archive.failure = outage("503", retry_after=86_400)
        assert scene.times_until(lambda: len(scene.heads()), seconds=340) == [15.125, 315.125]

    def test_a_new_cart_sends_no_requests_while_the_breaker_is_open(
        self, scene: OutageScenario
    ) -> None:
        scene.archive.failure = outage()
        scene.begin("1", "2")
        scene.run(20)
        before = len(scene.heads())
        late = scene.begin("5", "6")
        assert len(scene.heads()) == before
        scene.archive.failure = None
        scene.run(20)
        assert scene.status(late) is CartStatus.READY

    def test_a_request_queued_for_the_semaphore_waits_too(
        self, tmp_path: Path, sqlite_store: SqliteStore
    ) -> None:
        files = Files(sqlite_store, tmp_path / "volume", 5, connections=1)
        archive, clock = files.scene.archive, files.scene.clock
        held = archive.holds["HEAD", "0"] = Deferred()
        outcomes = files.ask(files.rows)
        archive.failure = outage()
        held.callback(None)
        assert files.scene.heads() == ["0"]
        archive.failure = None
        del archive.holds["HEAD", "0"]
        clock.advance(0)
        assert files.scene.heads()[:2] == ["0", "4"]
        clock.pump([0.5] * 2)
        assert outcomes == [[None]] * 5

    def test_a_probe_acquires_the_semaphore_like_any_request(
        self, tmp_path: Path, sqlite_store: SqliteStore
    ) -> None:
        files = Files(sqlite_store, tmp_path / "volume", 3, connections=2)
        archive, clock = files.scene.archive, files.scene.clock
        held = archive.holds["HEAD", "0"] = Deferred()
        archive.bad["1"] = outage()
        files.ask(files.rows)
        while files.scene.slots() > 1:
            # Every file that is requested in parallel is corrupt.
            files.context.concurrency_limit.record_corrupt_file()
        clock.advance(0)
        assert files.scene.heads() == ["0", "1"]
        held.callback(None)
        assert files.scene.heads()[2:3] == ["2"]

    def test_a_released_waiter_may_cancel_others(
        self, tmp_path: Path, sqlite_store: SqliteStore
    ) -> None:
        files = Files(sqlite_store, tmp_path / "volume", 4, connections=4)
        files.scene.archive.failure = outage()
        files.ask(files.rows[:1])
        files.scene.archive.failure = None
        wait = files.context.breaker.wait
        waiting = [Deferred.fromCoroutine(wait(1, str(number))) for number in (1, 2, 3)]
        # The last one is probed, and so released last; before it come 2 and 1.
        waiting[1].addCallback(lambda _: waiting[0].cancel())
        waiting[0].addErrback(lambda failure: failure.trap(CancelledError))
        outcomes = [outcome(deferred) for deferred in waiting]
        files.scene.clock.advance(0)
        assert outcomes == [[CancelledError], [None], [False]]

    def test_two_thousand_waiters_are_released_in_a_loop(
        self, tmp_path: Path, sqlite_store: SqliteStore
    ) -> None:
        files = Files(sqlite_store, tmp_path / "volume", 2000, connections=500)
        archive = files.scene.archive
        archive.failure = outage()
        outcomes = files.ask(files.rows)
        files.scene.run(20)
        assert len(files.scene.heads()) == 7
        assert archive.most_running == 1
        assert outcomes == [[]] * 2000
        archive.failure = None
        files.scene.run(20)
        assert outcomes == [[None]] * 2000

    def test_requests_ramp_up_after_an_outage(
        self, tmp_path: Path, sqlite_store: SqliteStore
    ) -> None:
        files = Files(sqlite_store, tmp_path / "volume", 4000, connections=500)
        archive, clock = files.scene.archive, files.scene.clock
        archive.holds["HEAD", "0"] = Deferred()
        burst = archive.holds["HEAD", "*"] = Deferred()
        files.ask(files.rows[:2000])
        del archive.holds["HEAD", "*"]
        burst.callback(None)
        assert archive.running == 1  # so many were answered that the semaphore has all its slots
        archive.failure = outage()
        files.ask(files.rows[2000:])
        assert archive.running == 1
        archive.failure = None
        back = archive.holds["HEAD", "*"] = Deferred()
        clock.advance(0)
        assert archive.running == 2  # the probe
        del archive.holds["HEAD", "*"]
        archive.holds["HEAD", "*"] = Deferred()
        back.callback(None)
        assert archive.running == INITIAL_SLOTS
        clock.advance(RAMP_UP_SECONDS)
        assert archive.running == 2 * INITIAL_SLOTS

    def test_an_outage_is_logged_once_at_its_begin_and_end(self, scene: OutageScenario) -> None:
        with logged() as events:
            scene.archive.failure = outage()
            scene.begin(*FILES)
            scene.run(10)
            assert in_log(events) == ["The archive is unavailable, carts wait for it:"]
            scene.archive.failure = None
            scene.run(20)
            assert in_log(events)[1:] == ["The archive is available again after"]
            urls = {event["url"] for event in events if "url" in event}
            assert urls == {"http://archive.example:8080/"}
            assert [event["length"] for event in events if "length" in event] == [15.625]


class TestCause:
    def test_a_file_that_fails_alone_fails_its_cart_after_its_tries(
        self, scene: OutageScenario
    ) -> None:
        good = scene.begin("1")
        scene.archive.bad["2"] = outage("503")
        with logged() as events:
            bad = scene.begin("2")
            others = [scene.begin("3"), scene.begin("4")]
            scene.run(2)
        assert {scene.status(cart) for cart in (good, *others)} == {CartStatus.READY}
        assert scene.status(bad) is CartStatus.ERROR
        assert scene.cart(bad).error == "Failed to stage dir/2 (archive id 2): 503"
        assert scene.heads().count("2") == 3
        assert scene.recorded == in_log(events) == []

    def test_one_unavailable_file_does_not_trip_the_breaker(self, scene: OutageScenario) -> None:
        """It causes no probe, and is retried after its Retry-After."""
        scene.archive.bad["2"] = unavailable(retry_after=20)
        bad = scene.begin("2")
        good = [scene.begin("1"), *(scene.begin(name) for name in "345")]
        assert {scene.status(cart) for cart in good} == {CartStatus.READY}
        assert scene.heads() == ["2", "1", "3", "4", "5"]
        scene.run(21)
        assert scene.heads() == ["2", "1", "3", "4", "5", "2"]
        assert scene.status(bad) is CartStatus.STAGING
        scene.run(20)
        assert scene.status(bad) is CartStatus.ERROR
        assert scene.cart(bad).error == "Failed to stage dir/2 (archive id 2): 503"
        assert scene.heads().count("2") == 3
        assert scene.recorded == []

    def test_many_unavailable_files_cost_few_probes(
        self, tmp_path: Path, sqlite_store: SqliteStore
    ) -> None:
        files = Files(sqlite_store, tmp_path / "volume", 201, connections=4)
        scene = files.scene
        files.ask(files.rows[:1])
        for row in files.rows[1:]:
            scene.archive.bad[row.archive_id] = unavailable()
        outcomes = files.ask(files.rows[1:])
        scene.run(10)
        assert all(isinstance(failure_of(one), FileFailed) for one in outcomes)
        assert scene.heads().count("0") < 8
        assert len(scene.heads()) - scene.heads().count("0") == 600
        assert scene.recorded == []

    def test_two_unavailable_files_in_a_row_trip_the_breaker(self, scene: OutageScenario) -> None:
        scene.begin("1")
        scene.archive.failure = unavailable()
        carts = [scene.begin("2"), scene.begin("3", "4"), scene.begin("5")]
        scene.run(20)
        assert set(scene.recorded) == {"503"}
        assert scene.archive.most_running == 1
        assert len(scene.heads()) < 12
        scene.archive.failure = None
        scene.run(60)
        assert {scene.status(cart) for cart in carts} == {CartStatus.READY}

    def test_the_only_file_being_unavailable_is_an_outage(self, scene: OutageScenario) -> None:
        scene.archive.failure = unavailable()
        cart = scene.begin("1")
        scene.run(100)
        assert scene.status(cart) is CartStatus.STAGING
        assert scene.recorded == ["503"]
        scene.archive.failure = None
        scene.run(60)
        assert scene.status(cart) is CartStatus.READY

    def test_an_outage_right_after_a_false_trip_is_detected(self, scene: OutageScenario) -> None:
        scene.begin("1")
        scene.archive.bad |= {"2": unavailable(), "3": unavailable()}
        bad = [scene.begin("2"), scene.begin("3")]
        scene.run(0.25)
        scene.archive.failure = unavailable("503 for all")
        cart = scene.begin("4", "5")
        scene.run(20)
        assert set(scene.recorded) == {"503 for all"}
        scene.archive.failure = None
        scene.archive.bad.clear()
        scene.run(60)
        assert {scene.status(one) for one in (cart, *bad)} == {CartStatus.READY}

    def test_a_new_file_is_probed_when_the_only_known_one_fails(
        self, scene: OutageScenario
    ) -> None:
        scene.archive.bad["2"] = outage("503", retry_after=300)
        bad = scene.begin("2")
        scene.run(301)
        assert scene.recorded == ["503"]
        good = scene.begin("3")
        scene.run(0.25)
        assert scene.status(good) is CartStatus.READY
        assert scene.recorded[-1] == ""
        scene.run(1000)
        assert scene.status(bad) is CartStatus.ERROR

    def test_after_an_outage_a_file_has_all_its_tries(self, scene: OutageScenario) -> None:
        scene.begin("1")
        scene.archive.fails["GET", "2"] = [passing("first"), passing("second"), outage()]
        cart = scene.begin("2")
        scene.run(1.375)
        scene.archive.failure = outage()
        scene.run(3)
        assert scene.recorded == ["the archive refuses the connection"]
        scene.archive.failure = None
        scene.archive.fails["GET", "2"] = [passing("third"), passing("fourth")]
        scene.run(10)
        assert scene.status(cart) is CartStatus.READY

    def test_a_file_that_fails_alone_is_the_cause(self, scene: OutageScenario) -> None:
        scene.archive.bad["1"] = passing("500")
        cart = scene.begin("1", "2")
        scene.run(2)
        assert scene.status(cart) is CartStatus.ERROR
        assert scene.heads() == ["1", "2", "1", "1"]

    def test_a_file_staged_earlier_is_probed_before_a_file_fails(
        self, scene: OutageScenario
    ) -> None:
        scene.begin("1")
        scene.stop()
        scene.start()
        scene.archive.bad["2"] = passing("500")
        cart = scene.begin("2")
        scene.run(2)
        assert scene.status(cart) is CartStatus.ERROR
        assert scene.heads() == ["1", "2", "2", "2", "1"]
        assert scene.recorded == []

    @pytest.mark.parametrize("missing", [False, True])
    def test_an_archive_that_answers_only_errors_is_an_outage(
        self, scene: OutageScenario, missing: bool
    ) -> None:
        scene.begin("1")
        scene.archive.failure = passing("500")
        if missing:
            scene.archive.fails["GET", "2"] = [missing_file()]
            scene.archive.failure = None
        cart = scene.begin("2")
        scene.archive.failure = passing("500")
        scene.run(8)
        assert scene.recorded == ["500"]
        assert scene.status(cart) is CartStatus.STAGING
        scene.archive.failure = None
        scene.run(8)
        assert scene.status(cart) is CartStatus.READY

    def test_a_missing_file_fails_its_cart_at_once(self, scene: OutageScenario) -> None:
        scene.begin("1")
        scene.archive.bad["2"] = missing_file()
        cart = scene.begin("2")
        scene.clock.advance(0)
        assert scene.cart(cart).error == "Failed to stage dir/2 (archive id 2): it is not there"
        assert scene.heads() == ["1", "2", "1"]

    def test_a_missing_file_fails_where_no_other_file_is_known(self, scene: OutageScenario) -> None:
        scene.archive.bad["2"] = missing_file()
        cart = scene.begin("2")
        assert scene.status(cart) is CartStatus.ERROR

    def test_with_one_try_a_body_broken_by_an_outage_is_retried(
        self, tmp_path: Path, sqlite_store: SqliteStore
    ) -> None:
        scene = OutageScenario(sqlite_store, tmp_path / "volume")
        scene.tries = 1
        scene.start()
        scene.begin("1")
        held = scene.archive.holds["GET", "2"] = Deferred()
        cart = scene.begin("2")
        scene.archive.fails["GET", "2"] = [passing("broken in the middle")]
        scene.archive.bad["1"] = outage()
        held.callback(None)
        scene.run(1)
        assert scene.status(cart) is CartStatus.READY
        scene.stop()

    def test_a_file_that_joins_during_a_probe_is_probed_next(self, scene: OutageScenario) -> None:
        scene.archive.bad["2"] = outage("503", retry_after=300)
        scene.begin("2")
        held = scene.archive.holds["HEAD", "2"] = Deferred()
        scene.run(301)
        good = scene.begin("3")
        scene.run(1)
        assert scene.heads() == ["2", "2"]
        held.callback(None)
        scene.run(0.25)
        assert scene.status(good) is CartStatus.READY

    def test_a_file_is_no_probe_target_for_itself(self, sqlite_store: SqliteStore) -> None:
        target = ProbeTargets(sqlite_store.carts)
        target.record_success("1")
        assert not target.succeeded_since(0, other_than="1")
        assert target.succeeded_since(0, other_than="2")
        assert not target.succeeded_since(1, other_than="2")


class TestOutageLimit:
    def test_a_cart_fails_at_the_outage_limit_and_others_wait_on(
        self, tmp_path: Path, sqlite_store: SqliteStore
    ) -> None:
        scene = OutageScenario(sqlite_store, tmp_path / "volume")
        scene.outage_limit = 10
        scene.start()
        scene.archive.failure = outage()
        first = scene.begin("1", "2")
        scene.run(5)
        second = scene.begin("3")
        scene.run(5)
        assert scene.cart(first).error == (
            "The archive has been unavailable since 1970-01-01 00:00:00 UTC, longer than the"
            " outage_limit of 10 seconds: the archive refuses the connection"
        )
        assert not any(file.error for file in scene.store.files(first))
        assert scene.status(second) is CartStatus.STAGING
        scene.run(4.875)
        assert scene.status(second) is CartStatus.STAGING
        scene.run(0.125)
        assert "since 1970-01-01 00:00:05 UTC" in scene.cart(second).error
        assert scene.cart(second).message == scene.cart(second).error
        scene.stop()
        assert not scene.clock.getDelayedCalls()

    def test_the_outage_limit_counts_across_a_restart(
        self, tmp_path: Path, sqlite_store: SqliteStore
    ) -> None:
        scene = OutageScenario(sqlite_store, tmp_path / "volume")
        scene.outage_limit = 100
        scene.start()
        scene.archive.failure = outage()
        cart = scene.begin("1")
        scene.run(60)
        scene.stop()
        assert scene.cart(cart).waits_since == 0
        scene.clock.advance(30)
        scene.start()
        scene.run(9.875)
        assert scene.cart(cart).waits_since == 0
        assert scene.status(cart) is CartStatus.STAGING
        scene.run(0.125)
        assert "since 1970-01-01 00:00:00 UTC" in scene.cart(cart).error
        scene.stop()

    def test_setting_the_clock_does_not_change_the_outage_limit(
        self, tmp_path: Path, sqlite_store: SqliteStore
    ) -> None:
        scene = OutageScenario(sqlite_store, tmp_path / "volume")
        scene.outage_limit = 100
        scene.start()
        scene.archive.failure = outage()
        cart = scene.begin("1")
        scene.run(60)
        scene.set_ahead = 3600.0
        scene.run(39.875)
        assert scene.status(cart) is CartStatus.STAGING
        scene.run(0.125)
        assert "since 1970-01-01 01:00:00 UTC" in scene.cart(cart).error
        scene.stop()


class TestOutageStatus:
    def test_an_outage_is_recorded_for_all_carts_and_later_ones(
        self, scene: OutageScenario
    ) -> None:
        scene.archive.failure = outage()
        carts = [scene.begin("1", "2"), scene.begin("3")]
        scene.run(5)
        assert scene.recorded == ["the archive refuses the connection"]
        carts.append(scene.begin("4"))
        scene.run(5)
        assert scene.recorded == ["the archive refuses the connection"] * 2
        assert [scene.cart(cart).waits_since for cart in carts] == [0, 0, 5]
        assert scene.cart(carts[0]).message == (
            "Waiting for the archive since 1970-01-01 00:00:00 UTC:"
            " the archive refuses the connection"
        )
        scene.archive.failure = None
        held = scene.archive.holds["GET", "*"] = Deferred()
        scene.run(10)
        assert scene.recorded[2:] == [""]
        assert [scene.cart(cart).message for cart in carts] == ["", "", ""]
        held.callback(None)

    def test_a_failed_record_of_an_outage_is_retried(self, scene: OutageScenario) -> None:
        scene.archive.failure = outage()
        cart = scene.begin("1")
        scene.failing_writes = 3
        scene.run(RETRY_SECONDS * 3 + 1)
        assert scene.recorded == ["the archive refuses the connection"] * 4
        assert scene.cart(cart).waits_since == 0
        assert len(scene.heads()) > 4
        scene.archive.failure = None
        held = scene.archive.holds["GET", "1"] = Deferred()
        scene.failing_writes = inf
        scene.run(20)
        assert scene.cart(cart).waits_since == 0
        scene.failing_writes = 0
        scene.run(RETRY_SECONDS)
        assert scene.cart(cart).waits_since is None
        held.callback(None)
        scene.run(RETRY_SECONDS)
        assert scene.status(cart) is CartStatus.READY

    def test_a_restart_with_the_archive_available_clears_the_status(
        self, scene: OutageScenario
    ) -> None:
        scene.archive.failure = outage()
        cart = scene.begin("1", "2")
        scene.run(5)
        scene.stop()
        scene.archive.failure = None
        scene.archive.holds["HEAD", "2"] = Deferred()
        scene.start()
        assert scene.status(cart) is CartStatus.STAGING
        assert scene.cart(cart).message == ""


class TestEnding:
    def test_probing_ends_when_the_last_cart_is_deleted(self, scene: OutageScenario) -> None:
        scene.archive.failure = outage()
        carts = [scene.begin("1", "2"), scene.begin("3")]
        scene.run(5)
        with logged() as events:
            result_of(scene.stager.abort(carts[0]))
            assert in_log(events) == []
            result_of(scene.stager.abort(carts[1]))
            assert in_log(events) == [
                "No cart waits for the archive any more, which was unavailable for"
            ]
        for cart in carts:
            result_of(scene.store.removals.mark_deleted(cart, 0))
        asked = len(scene.heads())
        scene.run(100)
        assert len(scene.heads()) == asked
        before = list(scene.recorded)
        scene.archive.failure = None
        scene.archive.fails["HEAD", "5"] = [outage()]
        one_failure = scene.begin("5")
        assert scene.recorded == before  # the new outage is not known yet
        scene.run(2)
        assert scene.status(one_failure) is CartStatus.READY
        assert scene.status(scene.begin("4")) is CartStatus.READY

    def test_a_stop_cancels_a_running_probe(self, scene: OutageScenario) -> None:
        scene.archive.failure = outage()
        cart = scene.begin("1", "2")
        held = scene.archive.holds["HEAD", "*"] = Deferred()
        scene.run(1)
        assert scene.archive.running == 1
        scene.stop()
        assert held.called
        assert scene.archive.running == 0
        assert scene.status(cart) is CartStatus.STAGING

    def test_a_stop_cancels_the_record_of_an_outage(self, scene: OutageScenario) -> None:
        scene.archive.failure = outage()
        scene.failing_writes = inf
        scene.begin("1")
        scene.run(1)
        assert scene.recorded
        scene.stop()
        assert not scene.clock.getDelayedCalls()

    def test_an_internal_error_of_a_probe_releases_all_files(self, scene: OutageScenario) -> None:
        scene.archive.failure = outage()
        cart = scene.begin("1")
        scene.archive.failure = ZeroDivisionError("a fault of the service itself")
        scene.run(2)
        assert "ZeroDivisionError" in scene.cart(cart).error


def missing_file() -> ArchiveError:
    return ArchiveError("it is not there", retryable=False, missing=True)
