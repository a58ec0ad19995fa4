"""Many carts and one failure that meets them all; one cart that waits for long.

What :mod:`tests.simulation.test_random_scenarios` does by chance, to few carts, is done here on
purpose to many: one cause fails for everybody, for long, and then is healed.
"""

from __future__ import annotations

import gc
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from cartd.staging.stager import Stager
from tests.simulation.archive import SIZES, Library
from tests.simulation.checks import Checks, settled
from tests.simulation.clients import download, post
from tests.simulation.disk import BROKEN, FULL
from tests.simulation.oracle import Ledger, Spec, Wanted
from tests.simulation.process import Place, World
from tests.simulation.scenario import LONG_ENOUGH, MORNING

CARTS = 8
OUTAGE = 150.0
"""Seconds for which everything of one kind fails."""


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    shared = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(prefix="cartd-systemic-", dir=shared if shared.is_dir() else None))
    place = Place(root)
    with place.simulated():
        yield place
    shutil.rmtree(root)


class Scene:
    """Carts that are ready, and what as many others meet."""

    def __init__(self, place: Place, quota: int | None) -> None:
        self.place = place
        random = Random(7)
        place.clean(random)
        self.ledger = Ledger()
        self.ledger.evicts = quota is not None
        self.library = Library(random)
        self.checks = Checks(place, self.ledger, self.library)
        self.world = World(place, self.library, MORNING, quota)

    def post(self, *uids: str) -> None:
        """A cart of all files for each: with a quota a bundled one, which shares no bytes."""
        for uid in uids:
            files = tuple(Wanted(name, f"{uid}/{name}", True) for name in SIZES)
            self.world.begin(post(self.world, self.ledger, Spec(uid, files, self.ledger.evicts)))
        self.run(5.0)

    def run(self, seconds: float) -> None:
        assert self.world.run_until(self.world.reactor.seconds() + seconds)

    def ready(self) -> set[str]:
        query = "SELECT cart_uid FROM cart WHERE status = 'ready' AND deleted_date IS NULL"
        return {row["cart_uid"] for row in self.checks.rows(query)}

    def settle(self) -> None:
        begun = self.world.reactor.seconds()
        done = settled(self.checks)
        while not done() and self.world.reactor.seconds() < begun + LONG_ENOUGH:
            self.run(5.0)
        self.run(65.0)

    def end(self) -> None:
        self.checks.of_a_quiet_volume()
        self.place.ended(self.world)
        assert self.world.stop()
        wrong = [*self.ledger.broken(), *self.place.logged]
        assert not wrong, "\n".join(wrong)
        self.world.kill()


def archive_away(scene: Scene) -> None:
    scene.library.away_until = scene.world.reactor.seconds() + OUTAGE


def disk_read_only(scene: Scene) -> None:
    scene.place.disk.failing, scene.place.disk.chance = BROKEN[1:], 1.0


def disk_full(scene: Scene) -> None:
    scene.place.disk.failing, scene.place.disk.chance = FULL, 1.0


def database_away(scene: Scene) -> None:
    scene.place.database.chance = 1.0


@pytest.mark.parametrize(
    ("fail", "quota"),
    [
        (archive_away, None),
        (disk_read_only, 205_000),  # not enough for all: something would have to go
        (disk_full, None),
        (database_away, 205_000),
    ],
)
def test_nothing_that_is_ready_is_lost_when_one_thing_fails_for_all(
    place: Place, fail: Callable[[Scene], None], quota: int | None
) -> None:
    scene = Scene(place, quota)
    before = [f"before-{number}" for number in range(CARTS)]
    scene.post(*before)
    scene.settle()
    assert scene.ready() == set(before)
    fail(scene)
    during = [f"during-{number}" for number in range(CARTS)]
    scene.post(*during)
    scene.run(OUTAGE)
    assert scene.ready() >= set(before)
    scene.library.heal()
    scene.place.disk.heal()
    scene.place.database.heal()
    scene.settle()
    scene.post(*during)  # what was refused or has failed may be asked for again
    scene.settle()
    assert scene.ready() >= set(during)
    how: list[object] = []
    for uid in during:
        reading = download(scene.world, scene.ledger, uid, "x", (0.0, 1.0), 0.0)
        scene.world.begin(reading).addCallback(how.append)
    scene.settle()
    assert how == ["read"] * CARTS
    scene.end()


def test_a_cart_that_waits_for_tape_costs_few_requests_and_no_more_memory_with_time(
    place: Place,
) -> None:
    scene = Scene(place, None)
    for name in SIZES:
        scene.library.to_tape(name)
        scene.library.recalled[name] = float("inf")
    scene.post("slow")
    stager: Stager = scene.world.services.stager

    def some_time() -> tuple[int, int, int]:
        """Twenty minutes; then the requests in them, and how many callbacks and objects there are.

        Of each file, two polls at most: they are ten minutes apart by then.
        """
        before = scene.library.asked
        scene.run(1200.0)
        gc.collect()
        [job] = stager._running.values()
        return scene.library.asked - before, len(job._callbacks), len(gc.get_objects())

    some_time()
    (_, callbacks, objects), last = some_time(), some_time()
    assert last[0] <= 3 * len(SIZES)
    assert last[1] == callbacks
    assert last[2] - objects < 200
    scene.library.heal()
    scene.settle()
    assert scene.ready() == {"slow"}
    scene.end()
