"""The fair semaphore serves users in rotation, and the carts of each user in rotation."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock, deferLater

from cartd.deferreds.fair_semaphore import INITIAL_SLOTS, FairSemaphore
from cartd.deferreds.tasks import for_each
from cartd.model import Cart
from cartd.staging.fetch import WINDOW
from cartd.staging.stager import FairShare, Stager
from cartd.volume.locks import ProcessLocks
from tests.support.sqlite_store import SqliteStore
from tests.support.staging_parts import Bench
from tests.support.volume_parts import InThisThread, result_of

pytest_plugins = ("tests.support.database_fixtures",)

SLOTS = 32


class StagingSimulation:
    """Carts whose files take a second each, staged with a real semaphore and windows."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.semaphore = FairSemaphore(lambda: SLOTS, self.clock)
        self.fair_share = FairShare()
        self.fetched: list[str] = []
        """The user of each file, in the order in which they came."""
        self.staged: list[tuple[int, str]] = []
        self.carts = 0

    def post(self, owner: str, *, carts: int, files: int) -> None:
        for _ in range(carts):
            self.carts += 1
            Deferred.fromCoroutine(self._stage(self.carts, owner, files))

    async def _stage(self, cart_id: int, owner: str, files: int) -> None:
        async def numbers() -> AsyncIterator[int]:
            for number in range(files):
                yield number

        async def fetch(_: int) -> None:
            async with self.semaphore.slot(cart_id, owner):
                await deferLater(self.clock, 1.0)
            self.fetched.append(owner)

        self.fair_share.add(cart_id, owner)
        await for_each(numbers(), fetch, lambda: max(WINDOW // self.fair_share.divisor(owner), 2))
        self.fair_share.remove(cart_id)
        self.staged.append((cart_id, owner))

    def until(self, files: int) -> None:
        while len(self.fetched) < files:
            self.clock.advance(0.25)


@pytest.mark.parametrize("before", [0, 1500], ids=["at once", "in the middle"])
def test_one_cart_does_not_wait_behind_100_of_another_user(before: int) -> None:
    simulation = StagingSimulation()
    simulation.post("ada", carts=100, files=50)
    simulation.until(before)
    already = len(simulation.fetched)
    simulation.post("bob", carts=1, files=50)
    simulation.until(101 * 50)
    last = len(simulation.fetched) - simulation.fetched[::-1].index("bob") - already
    # Every other file is bob's; fetches that had begun go on.
    assert 99 <= last <= 100 + 2 * SLOTS
    assert Counter(simulation.fetched) == {"ada": 5000, "bob": 50}
    # And ada's carts are staged in parallel, as without bob.
    ready = [cart_id for cart_id, owner in simulation.staged if owner == "ada"]
    assert ready == sorted(ready)


async def _hold(semaphore: FairSemaphore, key: str, owner: str | None, log: list[str]) -> None:
    async with semaphore.slot(key, owner):
        log.append(key)
        await Deferred()


def _waiting(*keys: str) -> tuple[FairSemaphore, list[str]]:
    """All slots are held; a key belongs to the user that it begins with."""
    semaphore, log = FairSemaphore(lambda: INITIAL_SLOTS, Clock()), list[str]()
    for _ in range(INITIAL_SLOTS):
        Deferred.fromCoroutine(semaphore.acquire("first"))
    for key in keys:
        Deferred.fromCoroutine(_hold(semaphore, key, key[0], log))
    return semaphore, log


def test_slots_rotate_among_users_and_among_carts_of_each() -> None:
    semaphore, log = _waiting("a1", "a1", "a1", "a2", "a3", "b1", "b1", "c1")
    for _ in range(8):
        semaphore.release()
    assert log == ["a1", "b1", "c1", "a2", "b1", "a3", "a1", "a1"]


def test_a_user_without_waiters_is_skipped() -> None:
    semaphore, log = FairSemaphore(lambda: INITIAL_SLOTS, Clock()), list[str]()
    for _ in range(INITIAL_SLOTS):
        Deferred.fromCoroutine(semaphore.acquire("first"))
    gone = [
        Deferred.fromCoroutine(_hold(semaphore, key, key[0], log)) for key in ("a1", "a1", "a2")
    ]
    Deferred.fromCoroutine(_hold(semaphore, "b1", "b", log))
    for waiting in gone:
        waiting.addErrback(lambda failure: failure.trap(CancelledError))
        waiting.cancel()
    semaphore.release()
    semaphore.release()
    assert log == ["b1"]
    Deferred.fromCoroutine(_hold(semaphore, "a3", "a", log))
    assert log == ["b1", "a3"]


def test_the_stager_divides_shares_by_owner(tmp_path: Path, sqlite_store: SqliteStore) -> None:
    bench = Bench(sqlite_store, tmp_path / "volume", {"ada": b"one", "bob": b"two"})
    stager = Stager(
        bench.store,
        ProcessLocks(tmp_path),
        bench.recovery(),
        InThisThread(),
        bench.clock,
        bench.now,
    )
    stager.start(bench.context(), claim_unfinished=False)
    bench.archive.holds["HEAD", "ada"] = Deferred()
    bench.archive.holds["HEAD", "bob"] = Deferred()
    carts = [_owned(bench, owner) for owner in ("ada", "ada", "bob")]
    for cart in carts:
        stager.begin(cart.id)
    assert [stager.share_divisor(owner) for owner in ("ada", "bob")] == [4, 2]
    result_of(stager.abort(carts[2].id))
    assert stager.share_divisor("ada") == 2
    result_of(stager.stop())
    assert stager.share_divisor("ada") == 1


def test_a_cart_has_its_owners_share(tmp_path: Path, sqlite_store: SqliteStore) -> None:
    bench = Bench(sqlite_store, tmp_path / "volume", {"ada": b"one", "bob": b"two"})
    context = bench.context(divisors={"ada": 4, "bob": 2})
    assert [context.share(_owned(bench, owner), 12) for owner in ("ada", "bob")] == [3, 6]
    assert context.share(_owned(bench, "ada"), 4) == 2


def _owned(bench: Bench, owner: str) -> Cart:
    """A cart of one file, which is named after its owner."""
    return bench.put([owner], owner=owner)
