"""The state machine of random scenarios: actions of clients, machine and archive."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from hypothesis import assume
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
)
from twisted.internet.defer import Deferred

from tests.simulation.archive import FAULTS, SIZES, WITHOUT_HASH, ArchiveState
from tests.simulation.checks import Checks, all_finished
from tests.simulation.clients import delete, download, post, purge, retry
from tests.simulation.disk import BROKEN, FULL
from tests.simulation.oracle import Oracle, Spec, Wanted
from tests.simulation.process import Machine, SimulatedProcess, files_below

START_TIME = 1_700_000_000.0
RECOVERY_TIMEOUT = 3600.0
"""Seconds within which every cart must finish after all faults are healed."""

UIDS = ("a", "b")
RemovalStep = Callable[[SimulatedProcess, Oracle, str], Coroutine[Any, Any, None]]
REMOVALS: dict[str, RemovalStep] = {"delete": delete, "purge": purge}
uids = st.sampled_from(UIDS)
ids = st.sampled_from(list(SIZES))
shares = st.sampled_from([0.0, 0.1, 0.33, 0.5, 0.9, 1.0])


@st.composite
def wanted(draw: st.DrawFn) -> tuple[Wanted, ...]:
    chosen = draw(st.lists(st.tuples(ids, st.booleans(), st.integers(0, 2)), max_size=5))
    return tuple(
        Wanted(
            archive_id, f"d/{n}" if deep else f"{n}", known > 0 or archive_id not in WITHOUT_HASH
        )
        for n, (archive_id, deep, known) in enumerate(chosen)
    )


lost_files = st.one_of(st.sets(ids, max_size=0), st.sets(ids, min_size=1, max_size=2))
may_fail = st.sampled_from([None, 1, 5, 5])
specs = st.builds(Spec, uids, wanted(), st.sampled_from([False, False, True]), may_fail)


class RandomScenario(RuleBasedStateMachine):
    """Random actions of clients, machine and archive against the service."""

    machine: Machine

    @initialize(
        seed=st.integers(0, 2**32 - 1),
        quota=st.sampled_from([None, None, None, 4000, 16_000]),
        carts=st.lists(specs, min_size=1, max_size=3),
        lost=lost_files,
    )
    def begin(self, seed: int, quota: int | None, carts: list[Spec], lost: set[str]) -> None:
        assume(seed)  # the simplest scenario is the same each time
        self.random = Random(seed)
        self.machine.clean(self.random)
        self.quota = quota
        self.oracle = Oracle()
        self.oracle.evicts = quota is not None
        self.archive_state = ArchiveState(self.random)
        self.archive_state.lost = lost
        self.checks = Checks(self.machine, self.oracle, self.archive_state)
        self.failed = False
        self.power_failing = False
        """Whether the next death of the process is a power failure."""
        self.undetected: list[SimulatedProcess] = []
        """Dead processes whose locks still appear held."""
        self.downloads: list[Deferred[Any]] = []
        self.outcomes: list[str] = []
        self.now = START_TIME
        self._start()
        with self._checked():
            for spec in carts:
                self.process.begin(post(self.process, self.oracle, spec))
                self.process.run_until(self.process.reactor.seconds() + 3.0)

    def _start(self) -> None:
        self.process = SimulatedProcess(self.machine, self.archive_state, self.now, self.quota)
        self.downloads.clear()

    @contextmanager
    def _checked(self) -> Iterator[None]:
        try:
            yield
            self._restart_if_dead()
            self._assert_no_violation()
        except BaseException:
            self.failed = True
            raise

    def _restart_if_dead(self) -> None:
        if self.process.reactor.dead:
            self.now = self.process.reactor.seconds()
            if self.power_failing:
                self._lose_power()
            self.checks.check_always()
            self._start()

    def _lose_power(self) -> None:
        self.power_failing = False
        while self.undetected:
            self.undetected.pop().release_lock()
        self.machine.disk.lose_power()

    def _assert_no_violation(self) -> None:
        wrong = [*self.oracle.violations, *self.machine.logged]
        assert not wrong, "\n".join(wrong)

    # Clients

    @rule(spec=specs, events=st.sampled_from([0, 10, 60, 200]))
    def post(self, spec: Spec, events: int) -> None:
        with self._checked():
            self.process.begin(post(self.process, self.oracle, spec))
            self.process.run_events(events)

    @rule(uid=uids)
    def post_again(self, uid: str) -> None:
        with self._checked():
            if uid in self.oracle.last:
                self.process.begin(post(self.process, self.oracle, self.oracle.last[uid]))

    @rule(uid=uids, bundle=st.booleans(), then=st.sampled_from(["delete", "purge", "damage", ""]))
    def share(self, uid: str, bundle: bool, then: str) -> None:
        """Post another cart of the same files; then remove or damage those of the first."""
        with self._checked():
            if uid not in self.oracle.last:
                return
            [other] = set(UIDS) - {uid}
            spec = Spec(other, self.oracle.last[uid].files, bundle)
            self.process.begin(post(self.process, self.oracle, spec))
            if not self.process.run_until(self.process.reactor.seconds() + 5.0):
                return
            if then in REMOVALS:
                self.process.begin(REMOVALS[then](self.process, self.oracle, uid))
            elif then and (linked := self._files(linked=True)):
                self._damage(self.random.choice(linked), "cut")

    @rule(uid=uids)
    def retry(self, uid: str) -> None:
        with self._checked():
            self.process.begin(retry(self.process, uid))

    @rule(uid=uids)
    def delete(self, uid: str) -> None:
        with self._checked():
            self.process.begin(delete(self.process, self.oracle, uid))

    @rule(
        uid=uids,
        name=st.sampled_from(["x.tar", "y"]),
        part=st.one_of(st.just((0.0, 1.0)), st.tuples(shares, shares)),
        pace=st.sampled_from([0.0, 1.0, 30.0]),
        events=st.sampled_from([0, 20, 60]),
    )
    def download(
        self, uid: str, name: str, part: tuple[float, float], pace: float, events: int
    ) -> None:
        with self._checked():
            coroutine = download(self.process, self.oracle, uid, name, part, pace)
            self.downloads.append(self.process.begin(coroutine))
            self.process.run_events(events)

    @rule(
        uid=uids,
        ending=st.sampled_from([*REMOVALS, "evict"]),
        pace=st.sampled_from([1.0, 5.0]),
        share=st.sampled_from([0.1, 0.6, 1.5]),
    )
    def remove_during_download(self, uid: str, ending: str, pace: float, share: float) -> None:
        """Remove a cart during a slow download, begun at its first byte."""
        with self._checked():
            self.machine.disk.heal()
            self.machine.database.heal()
            self.process.run_until(self.process.reactor.seconds() + 5.0)
            reading = self.process.begin(
                download(self.process, self.oracle, uid, "slow", (0.0, 1.0), pace)
            )
            self.downloads.append(reading)
            if not self.process.run_until(self.process.reactor.seconds() + share * pace):
                return
            if ending in REMOVALS:
                self.process.begin(REMOVALS[ending](self.process, self.oracle, uid))
            else:
                self.process.begin(self.process.components.evictor.enforce_limits())
            self.process.run_until(self.process.reactor.seconds() + 3.0)

    @rule(which=st.integers(0, 9))
    def disconnect_client(self, which: int) -> None:
        with self._checked():
            if self.downloads:
                self.downloads.pop(which % len(self.downloads)).cancel()

    # Time

    @rule(
        length=st.one_of(
            st.tuples(st.just("events"), st.sampled_from([1, 5, 20, 60])),
            st.tuples(st.just("seconds"), st.sampled_from([0.01, 0.5, 3.0, 20.0, 70.0])),
        )
    )
    def keep_running(self, length: tuple[str, float]) -> None:
        with self._checked():
            how, much = length
            if how == "events":
                self.process.run_events(int(much))
            else:
                self.process.run_until(self.process.reactor.seconds() + much)

    # The archive, the disk and the database

    @rule(archive_id=ids, faults=st.lists(st.sampled_from(FAULTS), max_size=4), tape=st.booleans())
    def archive_file_fails(self, archive_id: str, faults: list[str], tape: bool) -> None:
        self.archive_state.next_faults[archive_id].extend(faults)
        if tape:
            self.archive_state.to_tape(archive_id)

    @rule(lost=lost_files)
    def archive_loses(self, lost: set[str]) -> None:
        """Only these files are missing from now on."""
        self.archive_state.lost = lost

    @rule(
        archive=st.sampled_from([0.0, 0.1, 0.5]),
        archive_down=st.sampled_from([0.0, 0.0, 0.5, 10.0]),
        disk=st.sampled_from([0.0, 0.0, 0.05, 0.5, 1.0]),
        errors=st.sampled_from([FULL, BROKEN]),
        database=st.sampled_from([0.0, 0.0, 0.02, 0.2, 1.0]),
    )
    def cause_failures(
        self,
        archive: float,
        archive_down: float,
        disk: float,
        errors: tuple[int, ...],
        database: float,
    ) -> None:
        self.archive_state.chance = archive
        self.archive_state.down_until = self.process.reactor.seconds() + archive_down
        self.machine.disk.failing, self.machine.disk.chance = errors, disk
        self.machine.database.chance = database

    @rule()
    def heal_everything(self) -> None:
        self.archive_state.chance = 0.0
        self.machine.disk.heal()
        self.machine.database.heal()

    @rule(which=st.integers(0, 99), how=st.sampled_from(["cut", "removed"]))
    def damage(self, which: int, how: str) -> None:
        """Damage a file behind the service's back."""
        with self._checked():
            if files := self._files():
                self._damage(files[which % len(files)], how)

    def _files(self, *, linked: bool = False) -> list[Path]:
        """Return non-empty files of carts; with ``linked``, only those with several names."""
        return sorted(
            path
            for cart in self.machine.volume.iterdir()
            if cart.name.isdigit()
            for path in files_below(cart)
            if path.stat().st_size and path.stat().st_nlink > linked
        )

    def _damage(self, path: Path, how: str) -> None:
        same = [one for one in self._files() if one.samefile(path)]
        touched = same if how == "cut" else [path]
        self.oracle.damaged |= {
            int(one.relative_to(self.machine.volume).parts[0]) for one in touched
        }
        if how == "cut":
            os.truncate(path, path.stat().st_size // 2)
        else:
            path.unlink()

    # Kills and stops

    @rule(events=st.integers(0, 60), seen=st.booleans())
    def kill(self, events: int, seen: bool) -> None:
        with self._checked():
            if self.process.run_events(events):
                self.process.kill(seen=seen)
                if not seen:
                    self.undetected.append(self.process)

    @rule(calls=st.integers(0, 40), power=st.booleans())
    def kill_in_a_thread(self, calls: int, power: bool) -> None:
        with self._checked():
            self.machine.disk.kill_after = calls
            self.power_failing = power

    @rule(spec=st.one_of(st.none(), specs), events=st.integers(0, 60))
    def power_failure(self, spec: Spec | None, events: int) -> None:
        """Lose power at any moment, or when a cart may just have become ready."""
        with self._checked():
            if spec is not None:
                self.process.begin(post(self.process, self.oracle, spec))
                self.process.run_until(self.process.reactor.seconds() + 3.0)
            if self.process.run_events(events):
                self.process.kill()
            self.power_failing = True

    @rule()
    def restart(self) -> None:
        with self._checked():
            self._stop()
            self.power_failing = False
            self._start()

    def _stop(self) -> None:
        process = self.process
        self.machine.keep_alive(process)
        if not process.stop():
            self.checks.check_always()
        elif left := process.pending_calls():
            self.oracle.violations.append(f"pending calls after a stop: {left}")
        self.now = process.reactor.seconds()

    def teardown(self) -> None:
        if not hasattr(self, "process"):
            return
        try:
            if not self.failed:
                self._heal_and_check()
        finally:
            self.process.kill()
            for process in self.undetected:
                process.release_lock()

    def _heal_and_check(self) -> None:
        """Heal everything, wait until all carts have finished, and check the final state."""
        self.machine.disk.kill_after = None
        self.machine.disk.heal()
        self.machine.database.heal()
        self.archive_state.heal()
        while self.downloads:
            self.downloads.pop().cancel()
        process = self.process
        self._run_until_idle()
        for uid in UIDS:
            for _ in range(2):  # the first may detect damage
                process.begin(download(process, self.oracle, uid, "final", (0.0, 1.0), 0.0))
                self._run_until_idle()
        self._run_until_idle(least=65.0)
        self._assert_no_violation()
        self.checks.check_idle()
        self._assert_no_violation()
        self._stop()
        self._assert_no_violation()

    def _run_until_idle(self, least: float = 1.0) -> None:
        now = self.process.reactor.seconds()
        self.process.run_until(now + least)
        done = all_finished(self.checks)
        while not done() or self.process.clients:
            self.process.run_until(self.process.reactor.seconds() + 2.0)
            if self.process.reactor.seconds() > now + RECOVERY_TIMEOUT:
                break  # the checks report it
