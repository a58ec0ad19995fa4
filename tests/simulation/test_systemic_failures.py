"""Many carts during one systemic failure, and one cart that waits for a long time.

:mod:`tests.simulation.test_random_scenarios` tests a few carts at random; here one cause makes
many carts fail for a long time, and then is healed.
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
from tests.simulation.archive import SIZES, ArchiveState
from tests.simulation.checks import Checks, all_finished
from tests.simulation.clients import download, post
from tests.simulation.disk import BROKEN, FULL
from tests.simulation.oracle import Oracle, Spec, Wanted
from tests.simulation.process import Machine, SimulatedProcess
from tests.simulation.scenario import RECOVERY_TIMEOUT, START_TIME

CARTS = 8
OUTAGE = 150.0
"""Seconds for which everything of one kind fails."""


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    shared = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(prefix="cartd-systemic-", dir=shared if shared.is_dir() else None))
    machine = Machine(root)
    with machine.simulated():
        yield machine
    shutil.rmtree(root)


class Scenario:
    """Ready carts, and as many others that are posted during a failure."""

    def __init__(self, machine: Machine, quota: int | None) -> None:
        self.machine = machine
        random = Random(7)
        machine.clean(random)
        self.oracle = Oracle()
        self.oracle.evicts = quota is not None
        self.archive_state = ArchiveState(random)
        self.checks = Checks(machine, self.oracle, self.archive_state)
        self.process = SimulatedProcess(machine, self.archive_state, START_TIME, quota)

    def post(self, *uids: str) -> None:
        """Post a cart of all files per uid: with a quota a bundled one, which shares no bytes."""
        for uid in uids:
            files = tuple(Wanted(name, f"{uid}/{name}", True) for name in SIZES)
            self.process.begin(
                post(self.process, self.oracle, Spec(uid, files, self.oracle.evicts))
            )
        self.run(5.0)

    def run(self, seconds: float) -> None:
        assert self.process.run_until(self.process.reactor.seconds() + seconds)

    def ready(self) -> set[str]:
        query = "SELECT cart_uid FROM cart WHERE status = 'ready' AND deleted_date IS NULL"
        return {row["cart_uid"] for row in self.checks.rows(query)}

    def run_until_idle(self) -> None:
        begun = self.process.reactor.seconds()
        done = all_finished(self.checks)
        while not done() and self.process.reactor.seconds() < begun + RECOVERY_TIMEOUT:
            self.run(5.0)
        self.run(65.0)

    def end(self) -> None:
        self.checks.check_idle()
        self.machine.keep_alive(self.process)
        assert self.process.stop()
        wrong = [*self.oracle.violations, *self.machine.logged]
        assert not wrong, "\n".join(wrong)
        self.process.kill()


def archive_down(scenario: Scenario) -> None:
    scenario.archive_state.down_until = scenario.process.reactor.seconds() + OUTAGE


def disk_read_only(scenario: Scenario) -> None:
    scenario.machine.disk.failing, scenario.machine.disk.chance = BROKEN[1:], 1.0


def disk_full(scenario: Scenario) -> None:
    scenario.machine.disk.failing, scenario.machine.disk.chance = FULL, 1.0


def database_down(scenario: Scenario) -> None:
    scenario.machine.database.chance = 1.0


@pytest.mark.parametrize(
    ("fail", "quota"),
    [
        (archive_down, None),
        (disk_read_only, 205_000),  # not enough for all: a ready cart would have to be evicted
        (disk_full, None),
        (database_down, 205_000),
    ],
)
def test_no_ready_cart_is_lost_in_a_systemic_failure(
    machine: Machine, fail: Callable[[Scenario], None], quota: int | None
) -> None:
    scenario = Scenario(machine, quota)
    before = [f"before-{number}" for number in range(CARTS)]
    scenario.post(*before)
    scenario.run_until_idle()
    assert scenario.ready() == set(before)
    fail(scenario)
    during = [f"during-{number}" for number in range(CARTS)]
    scenario.post(*during)
    scenario.run(OUTAGE)
    assert scenario.ready() >= set(before)
    scenario.archive_state.heal()
    scenario.machine.disk.heal()
    scenario.machine.database.heal()
    scenario.run_until_idle()
    scenario.post(*during)  # rejected or failed carts may be posted again
    scenario.run_until_idle()
    assert scenario.ready() >= set(during)
    how: list[object] = []
    for uid in during:
        reading = download(scenario.process, scenario.oracle, uid, "x", (0.0, 1.0), 0.0)
        scenario.process.begin(reading).addCallback(how.append)
    scenario.run_until_idle()
    assert how == ["read"] * CARTS
    scenario.end()


def test_a_cart_that_waits_for_tape_has_a_constant_cost(
    machine: Machine,
) -> None:
    scenario = Scenario(machine, None)
    for name in SIZES:
        scenario.archive_state.to_tape(name)
        scenario.archive_state.recalled[name] = float("inf")
    scenario.post("slow")
    stager: Stager = scenario.process.components.stager

    def some_time() -> tuple[int, int, int]:
        """Run 20 minutes; return the requests in them, and the numbers of callbacks and objects.

        There are at most two polls per file, as polls are ten minutes apart by then.
        """
        before = scenario.archive_state.requests
        scenario.run(1200.0)
        gc.collect()
        [job] = stager._running.values()
        return scenario.archive_state.requests - before, len(job._callbacks), len(gc.get_objects())

    some_time()
    (_, callbacks, objects), last = some_time(), some_time()
    assert last[0] <= 3 * len(SIZES)
    assert last[1] == callbacks
    assert last[2] - objects < 200
    scenario.archive_state.heal()
    scenario.run_until_idle()
    assert scenario.ready() == {"slow"}
    scenario.end()
