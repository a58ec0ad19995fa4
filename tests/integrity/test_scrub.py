"""The scrub: which carts it verifies, how fast, and what it does about damage."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from cartd.deferreds.tasks import Periodic
from cartd.errors import VolumeNotWritable
from cartd.integrity.repair import Repair
from cartd.integrity.scrub import (
    INITIAL_PAUSE,
    MAX_DAMAGED_IN_A_ROW,
    MAX_PAUSE,
    CartVerifier,
    Damage,
    Scrub,
)
from cartd.model import Cart, CartStatus
from cartd.store import Store
from cartd.store.tables import time_of
from tests.support.cart_site import CartSite, cart_site
from tests.support.running_cartd import wait_for
from tests.support.sqlite_store import SqliteStore
from tests.support.stored_carts import found, staged, with_status
from tests.support.volume_parts import begin, in_the_loop, logged, result_of

pytest_plugins = ("tests.support.database_fixtures",)

INTERVAL = 1000.0


class ScriptedVerifier(CartVerifier):
    """Reads each cart in ``trips`` of one second, and then returns preset damage."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.trips = 1
        self.read: list[tuple[int, float]] = []
        self.found: dict[int, list[Damage]] = {}

    async def damages(self, cart: Cart, read: Callable[[int], Awaitable[None]]) -> list[Damage]:
        for _ in range(self.trips):
            self.read.append((cart.id, self.clock.seconds()))
            self.clock.rightNow += 1.0
            await read(100)
        return self.found.get(cart.id, [])


class GivesBack(Repair):
    def __init__(self) -> None:
        self.given_back: list[tuple[int, list[int]]] = []
        self.refused = 0
        self.refuses = False

    async def restage(self, cart: Cart, damaged: object = (), **_: object) -> None:
        if self.refuses:
            self.refused += 1
            raise VolumeNotWritable("Read-only file system")
        assert isinstance(damaged, list)
        self.given_back.append((cart.id, damaged))


class Bench:
    def __init__(self, store: SqliteStore, carts: int = 2) -> None:
        """So many ready carts of one file, staged at the time 0."""
        self.clock = Clock()
        self.clock.rightNow = 10_000.0
        self.set_ahead = 0.0
        """Seconds by which the wall clock was set ahead of the monotonic clock."""
        self.store = store
        self.verification = ScriptedVerifier(self.clock)
        self.repair = GivesBack()
        self.scrub = Scrub(
            self.store, self.verification, self.repair, self.clock, self.now, INTERVAL
        )
        self.carts = [self.store.post(f"u{number}", {"1": b"one"}) for number in range(carts)]
        for cart in self.carts:
            self.store.reserve(cart, 3)
            self._record_ready(cart, 0.0)

    def now(self) -> float:
        return self.clock.seconds() + self.set_ahead

    def stage_anew(self, cart: Cart, now: float) -> None:
        """Restage the cart, which is ready again at the time ``now``."""
        self.store.restage(cart, [])
        self.store.lease_to(cart, "me", until=60.0)
        self._record_ready(cart, now)

    def _record_ready(self, cart: Cart, now: float) -> None:
        result_of(self.store.progress.record_ready(cart.id, "me", volume_bytes=3, now=now))

    def read(self) -> list[int]:
        return [cart_id for cart_id, _ in self.verification.read]

    def verified(self) -> dict[int, float]:
        """Return when carts were last verified."""
        rows = self.store.query("SELECT id, verified_date FROM cart WHERE verified_date != ''")
        return {cart_id: time_of(datetime.fromisoformat(date)) for cart_id, date in rows}


class TestOrder:
    def test_each_cart_is_scrubbed_once_per_interval_oldest_first(
        self, sqlite_store: SqliteStore
    ) -> None:
        bench = Bench(sqlite_store, 3)
        for cart_id, now in ((1, 500.0), (3, 100.0)):
            result_of(bench.store.durability.record_verified(cart_id, now))
        ended = begin(bench.scrub.scrub())
        for _ in range(3):
            bench.clock.advance(9)
        assert ended == [None]
        assert bench.read() == [2, 3, 1]
        assert begin(bench.scrub.scrub()) == [None]
        assert bench.read() == [2, 3, 1]

    def test_carts_staged_within_the_interval_are_not_scrubbed(
        self, sqlite_store: SqliteStore
    ) -> None:
        bench = Bench(sqlite_store, 2)
        bench.stage_anew(bench.carts[0], 9_500.0)
        begin(bench.scrub.scrub())
        bench.clock.advance(9)
        assert bench.read() == [2]

    def test_the_dates_are_the_machines(self, sqlite_store: SqliteStore) -> None:
        bench = Bench(sqlite_store, 1)
        bench.stage_anew(bench.carts[0], 9_500.0)
        bench.set_ahead = 600.0
        begin(bench.scrub.scrub())
        bench.clock.advance(9)
        assert bench.verified() == {1: 10_600.0}


class TestPace:
    def test_it_rests_nine_times_as_long_as_it_reads(self, sqlite_store: SqliteStore) -> None:
        bench = Bench(sqlite_store, 2)
        bench.verification.trips = 3
        ended = begin(bench.scrub.scrub())
        while not ended:
            [call] = bench.clock.getDelayedCalls()
            bench.clock.advance(call.getTime() - bench.clock.seconds())
        times = [time for _, time in bench.verification.read]
        assert [later - time for time, later in pairwise(times)] == [10.0] * 5

    def test_a_stop_ends_it_at_once(self, sqlite_store: SqliteStore) -> None:
        bench = Bench(sqlite_store, 1)
        periodic = Periodic(bench.clock, 60, bench.scrub.scrub)
        periodic.start()
        assert bench.read() == [1]
        result_of(periodic.stop())
        assert not bench.clock.getDelayedCalls()
        assert bench.verified() == {}


class TestDamage:
    def test_a_damaged_cart_is_restaged_and_a_few_files_are_logged(
        self, sqlite_store: SqliteStore
    ) -> None:
        bench = Bench(sqlite_store, 1)
        bench.verification.found[1] = [Damage(n, f"f{n}", "is missing") for n in (1, 2, 4, 5)]
        with logged() as events:
            scrubbing = Deferred.fromCoroutine(bench.scrub.scrub())
            bench.clock.advance(9)
        assert bench.repair.given_back[0] == (1, [1, 2, 4, 5])
        assert bench.verified() == {}
        [event, *_] = events
        assert "'f1' is missing; 'f2' is missing; 'f4' is missing; ..." in str(event["named"])
        scrubbing.addErrback(lambda failure: failure.trap(CancelledError) and None)
        scrubbing.cancel()

    @staticmethod
    def scrub_minute_by_minute(bench: Bench, seconds: float) -> None:
        end = bench.clock.seconds() + seconds
        while bench.clock.seconds() < end:
            ended = begin(bench.scrub.scrub())
            while not ended:
                bench.clock.advance(9)
            assert ended == [None]
            bench.clock.advance(60)

    def test_scrub_pauses_after_several_damaged_carts_in_a_row(
        self, sqlite_store: SqliteStore
    ) -> None:
        bench = Bench(sqlite_store, 20 * MAX_DAMAGED_IN_A_ROW)
        for cart in bench.carts:
            bench.verification.found[cart.id] = [Damage(0, "f", "cannot be read")]
        restaged = bench.repair.given_back
        real = bench.repair.restage

        async def restage(cart: Cart, damaged: object = (), **_: object) -> None:
            await real(cart, damaged)
            bench.store.restage(cart, [0])

        bench.repair.restage = restage  # type: ignore[method-assign]
        with logged() as events:
            self.scrub_minute_by_minute(bench, INITIAL_PAUSE - 120)
            assert len(restaged) == MAX_DAMAGED_IN_A_ROW
            self.scrub_minute_by_minute(bench, 7 * MAX_PAUSE)
        assert len(restaged) < 20 * MAX_DAMAGED_IN_A_ROW
        assert sum(event["log_level"].name == "error" for event in events) < 20

    def test_what_is_right_in_between_goes_on(self, sqlite_store: SqliteStore) -> None:
        bench = Bench(sqlite_store, 20)
        for cart in bench.carts[::2]:
            bench.verification.found[cart.id] = [Damage(0, "f", "is missing")]

        async def restage(cart: Cart, damaged: object = (), **_: object) -> None:
            bench.store.restage(cart, [0])

        bench.repair.restage = restage  # type: ignore[method-assign]
        for number, cart in enumerate(bench.carts):
            bench.stage_anew(cart, float(number))
        self.scrub_minute_by_minute(bench, 300)
        assert sorted(bench.verified()) == [cart.id for cart in bench.carts[1::2]]
        assert sorted(bench.read()) == [cart.id for cart in bench.carts]

    def test_scrub_backs_off_while_the_volume_is_not_writable(
        self, sqlite_store: SqliteStore
    ) -> None:
        bench = Bench(sqlite_store, 5)
        bench.verification.found[1] = [Damage(0, "f", "is missing")]
        bench.repair.refuses = True
        with logged() as events:
            self.scrub_minute_by_minute(bench, MAX_PAUSE)
        assert 1 < bench.repair.refused < 12
        assert (bench.repair.given_back, events) == ([], [])
        bench.repair.refuses = False
        bench.verification.found.clear()
        self.scrub_minute_by_minute(bench, MAX_PAUSE)
        assert set(bench.read()) == {1, 2, 3, 4, 5}

    @pytest.mark.parametrize(
        "change",
        [
            lambda bench, cart: result_of(bench.store.removals.mark_deleted(cart.id, 9_999.0)),
            lambda bench, cart: bench.store.restage(cart, []),
            lambda bench, cart: bench.stage_anew(cart, 9_999.0),
        ],
        ids=["deleted", "in staging", "staged anew"],
    )
    def test_a_cart_that_went_while_it_was_read_is_given_up(
        self, sqlite_store: SqliteStore, change: Callable[[Bench, Cart], object]
    ) -> None:
        bench = Bench(sqlite_store, 1)
        bench.verification.found[1] = [Damage(0, "f", "is missing")]
        ended = begin(bench.scrub.scrub())
        change(bench, bench.carts[0])
        bench.clock.advance(9)
        assert ended == [None]
        assert bench.repair.given_back == []


class TestStore:
    @in_the_loop
    async def test_it_knows_which_ready_cart_was_verified_longest_ago(self, store: Store) -> None:
        for status in CartStatus.ERROR, CartStatus.DELETED, CartStatus.STAGING:
            await with_status(store, status, status)
        first, second = [await staged(store, uid) for uid in "ab"]
        assert first.updated == 12
        assert await store.durability.least_recently_verified(12) is None
        assert await store.durability.least_recently_verified(12.5) == first
        await store.durability.record_verified(first.id, 20)
        assert await store.durability.least_recently_verified(100) == second
        await store.durability.record_verified(second.id, 30)
        assert await store.durability.least_recently_verified(100) == first
        assert await store.durability.least_recently_verified(20) is None
        await store.removals.mark_deleted(first.id, 40)
        await store.durability.record_verified(first.id, 50)
        assert await store.durability.least_recently_verified(100) == second
        assert (await found(store, second)).used == second.used


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    ini = "[cartd]\nscrub_interval = 0.2\n"
    with cart_site(tmp_path_factory.mktemp("site"), ini=ini) as running:
        yield running


def dates(site: CartSite, uid: str) -> tuple[str, str, str]:
    """Return the times of the cart: last use, last change of status, last verification."""
    query = "SELECT used_date, updated_date, verified_date FROM cart WHERE cart_uid = ?"
    [row] = site.query(query, uid)
    return row[0], row[1], row[2]


def spoil(path: Path) -> None:
    """Replace the content by other bytes, keeping size and mtime."""
    status = path.stat()
    path.write_bytes(bytes(status.st_size))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("bundle", [False, True], ids=["a tree", "a bundle"])
def test_same_size_damage_is_repaired_before_a_download(site: CartSite, bundle: bool) -> None:
    uid = f"spoilt-{bundle}".lower()
    files = {"bad": os.urandom(5000), "good": os.urandom(5000)}
    site.stage(uid, files, bundle=bundle)
    used, updated, _ = dates(site, uid)
    wait_for(lambda: dates(site, uid)[2])
    [place] = site.on_volume(uid)
    spoil(place if bundle else place / "bad")
    wait_for(lambda: dates(site, uid)[1] > updated)
    site.cartd.wait_until(uid, "ready")
    assert dates(site, uid)[0] == used
    assert site.cartd.download(uid) == files
    assert f"({uid}) is damaged, {2 if bundle else 1} of its 2 files: 'bad' " in site.cartd.log
