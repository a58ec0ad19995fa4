"""The rules of a day: what clients, the machine and the archive do to the service."""

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

from tests.simulation.archive import FAULTS, SIZES, UNKNOWN, Library
from tests.simulation.checks import Checks, settled
from tests.simulation.clients import delete, download, post, purge
from tests.simulation.disk import BROKEN, FULL
from tests.simulation.oracle import Ledger, Spec, Wanted
from tests.simulation.process import Place, World, files_below

MORNING = 1_700_000_000.0
LONG_ENOUGH = 3600.0
"""Seconds after which every cart must have ended, when all is healed."""

UIDS = ("a", "b")
Ending = Callable[[World, Ledger, str], Coroutine[Any, Any, None]]
OF_CARTS: dict[str, Ending] = {"delete": delete, "purge": purge}
uids = st.sampled_from(UIDS)
ids = st.sampled_from(list(SIZES))
shares = st.sampled_from([0.0, 0.1, 0.33, 0.5, 0.9, 1.0])


@st.composite
def wanted(draw: st.DrawFn) -> tuple[Wanted, ...]:
    chosen = draw(st.lists(st.tuples(ids, st.booleans(), st.integers(0, 2)), max_size=5))
    return tuple(
        Wanted(archive_id, f"d/{n}" if deep else f"{n}", known > 0 or archive_id not in UNKNOWN)
        for n, (archive_id, deep, known) in enumerate(chosen)
    )


specs = st.builds(Spec, uids, wanted(), st.sampled_from([False, False, True]))


class SimulatedDay(RuleBasedStateMachine):
    """What clients, the machine and the archive do to the service."""

    place: Place

    @initialize(
        seed=st.integers(0, 2**32 - 1),
        quota=st.sampled_from([None, None, None, 4000, 16_000]),
        carts=st.lists(specs, min_size=1, max_size=3),
    )
    def begin(self, seed: int, quota: int | None, carts: list[Spec]) -> None:
        assume(seed)  # the simplest day of all is the same each time
        self.random = Random(seed)
        self.place.clean(self.random)
        self.quota = quota
        self.ledger = Ledger()
        self.ledger.evicts = quota is not None
        self.library = Library(self.random)
        self.checks = Checks(self.place, self.ledger, self.library)
        self.broken = False
        self.power_goes = False
        """Whether the process that dies next is ended by a power failure."""
        self.unseen: list[World] = []
        """The dead whose locks look held."""
        self.running: list[Deferred[Any]] = []
        self.outcomes: list[str] = []
        self.now = MORNING
        self._start()
        with self._watched():
            for spec in carts:
                self.world.begin(post(self.world, self.ledger, spec))
                self.world.run_until(self.world.reactor.seconds() + 3.0)

    def _start(self) -> None:
        self.world = World(self.place, self.library, self.now, self.quota)
        self.running.clear()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
            self._after_death()
            self._nothing_is_wrong()
        except BaseException:
            self.broken = True
            raise

    def _after_death(self) -> None:
        if self.world.reactor.dead:
            self.now = self.world.reactor.seconds()
            if self.power_goes:
                self._lose_power()
            self.checks.of_every_moment()
            self._start()

    def _lose_power(self) -> None:
        self.power_goes = False
        while self.unseen:
            self.unseen.pop().let_go()
        self.place.disk.lose_power()

    def _nothing_is_wrong(self) -> None:
        wrong = [*self.ledger.broken(), *self.place.logged]
        assert not wrong, "\n".join(wrong)

    # Clients

    @rule(spec=specs, events=st.sampled_from([0, 10, 60, 200]))
    def post(self, spec: Spec, events: int) -> None:
        with self._watched():
            self.world.begin(post(self.world, self.ledger, spec))
            self.world.run_events(events)

    @rule(uid=uids)
    def post_again(self, uid: str) -> None:
        with self._watched():
            if uid in self.ledger.last:
                self.world.begin(post(self.world, self.ledger, self.ledger.last[uid]))

    @rule(uid=uids, bundle=st.booleans(), then=st.sampled_from(["delete", "purge", "damage", ""]))
    def share(self, uid: str, bundle: bool, then: str) -> None:
        """Another cart wants the same files; then something happens to those of the first."""
        with self._watched():
            if uid not in self.ledger.last:
                return
            [other] = set(UIDS) - {uid}
            spec = Spec(other, self.ledger.last[uid].files, bundle)
            self.world.begin(post(self.world, self.ledger, spec))
            if not self.world.run_until(self.world.reactor.seconds() + 5.0):
                return
            if then in OF_CARTS:
                self.world.begin(OF_CARTS[then](self.world, self.ledger, uid))
            elif then and (linked := self._files(linked=True)):
                self._damage(self.random.choice(linked), "cut")

    @rule(uid=uids)
    def delete(self, uid: str) -> None:
        with self._watched():
            self.world.begin(delete(self.world, self.ledger, uid))

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
        with self._watched():
            coroutine = download(self.world, self.ledger, uid, name, part, pace)
            self.running.append(self.world.begin(coroutine))
            self.world.run_events(events)

    @rule(
        uid=uids,
        ending=st.sampled_from([*OF_CARTS, "evict"]),
        pace=st.sampled_from([1.0, 5.0]),
        share=st.sampled_from([0.1, 0.6, 1.5]),
    )
    def a_cart_goes_while_it_is_read(
        self, uid: str, ending: str, pace: float, share: float
    ) -> None:
        """Slowly, from its first byte on."""
        with self._watched():
            self.place.disk.heal()
            self.place.database.heal()
            self.world.run_until(self.world.reactor.seconds() + 5.0)
            reading = self.world.begin(
                download(self.world, self.ledger, uid, "slow", (0.0, 1.0), pace)
            )
            self.running.append(reading)
            if not self.world.run_until(self.world.reactor.seconds() + share * pace):
                return
            if ending in OF_CARTS:
                self.world.begin(OF_CARTS[ending](self.world, self.ledger, uid))
            else:
                self.world.begin(self.world.services.evictor.enforce_limits())
            self.world.run_until(self.world.reactor.seconds() + 3.0)

    @rule(which=st.integers(0, 9))
    def leave(self, which: int) -> None:
        with self._watched():
            if self.running:
                self.running.pop(which % len(self.running)).cancel()

    # Time

    @rule(
        length=st.one_of(
            st.tuples(st.just("events"), st.sampled_from([1, 5, 20, 60])),
            st.tuples(st.just("seconds"), st.sampled_from([0.01, 0.5, 3.0, 20.0, 70.0])),
        )
    )
    def go_on(self, length: tuple[str, float]) -> None:
        with self._watched():
            how, much = length
            if how == "events":
                self.world.run_events(int(much))
            else:
                self.world.run_until(self.world.reactor.seconds() + much)

    # The archive, the disk and the database

    @rule(archive_id=ids, faults=st.lists(st.sampled_from(FAULTS), max_size=4), tape=st.booleans())
    def a_file_fails(self, archive_id: str, faults: list[str], tape: bool) -> None:
        self.library.coming[archive_id].extend(faults)
        if tape:
            self.library.to_tape(archive_id)

    @rule(
        archive=st.sampled_from([0.0, 0.1, 0.5]),
        away=st.sampled_from([0.0, 0.0, 0.5, 10.0]),
        disk=st.sampled_from([0.0, 0.0, 0.05, 0.5, 1.0]),
        errors=st.sampled_from([FULL, BROKEN]),
        database=st.sampled_from([0.0, 0.0, 0.02, 0.2, 1.0]),
    )
    def all_fail(
        self, archive: float, away: float, disk: float, errors: tuple[int, ...], database: float
    ) -> None:
        self.library.chance = archive
        self.library.away_until = self.world.reactor.seconds() + away
        self.place.disk.failing, self.place.disk.chance = errors, disk
        self.place.database.chance = database

    @rule()
    def all_heals(self) -> None:
        self.library.chance = 0.0
        self.place.disk.heal()
        self.place.database.heal()

    @rule(which=st.integers(0, 99), how=st.sampled_from(["cut", "removed"]))
    def damage(self, which: int, how: str) -> None:
        """Somebody else has his hands on the volume."""
        with self._watched():
            if files := self._files():
                self._damage(files[which % len(files)], how)

    def _files(self, *, linked: bool = False) -> list[Path]:
        """Those of carts that have bytes, or of these those with several names."""
        return sorted(
            path
            for cart in self.place.volume.iterdir()
            if cart.name.isdigit()
            for path in files_below(cart)
            if path.stat().st_size and path.stat().st_nlink > linked
        )

    def _damage(self, path: Path, how: str) -> None:
        same = [one for one in self._files() if one.samefile(path)]
        touched = same if how == "cut" else [path]
        self.ledger.damaged |= {int(one.relative_to(self.place.volume).parts[0]) for one in touched}
        if how == "cut":
            os.truncate(path, path.stat().st_size // 2)
        else:
            path.unlink()

    # Ends

    @rule(events=st.integers(0, 60), seen=st.booleans())
    def kill(self, events: int, seen: bool) -> None:
        with self._watched():
            if self.world.run_events(events):
                self.world.kill(seen=seen)
                if not seen:
                    self.unseen.append(self.world)

    @rule(calls=st.integers(0, 40), power=st.booleans())
    def kill_in_a_thread(self, calls: int, power: bool) -> None:
        with self._watched():
            self.place.disk.kill_after = calls
            self.power_goes = power

    @rule(spec=st.one_of(st.none(), specs), events=st.integers(0, 60))
    def power_failure(self, spec: Spec | None, events: int) -> None:
        """At any moment, or when a cart may have become ready just now."""
        with self._watched():
            if spec is not None:
                self.world.begin(post(self.world, self.ledger, spec))
                self.world.run_until(self.world.reactor.seconds() + 3.0)
            if self.world.run_events(events):
                self.world.kill()
            self.power_goes = True

    @rule()
    def restart(self) -> None:
        with self._watched():
            self._stop()
            self.power_goes = False
            self._start()

    def _stop(self) -> None:
        world = self.world
        self.place.ended(world)
        if not world.stop():
            self.checks.of_every_moment()
        elif left := world.left_behind():
            self.ledger.wrong.append(f"left behind by a stop: {left}")
        self.now = world.reactor.seconds()

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            if not self.broken:
                self._evening()
        finally:
            self.world.kill()
            for world in self.unseen:
                world.let_go()

    def _evening(self) -> None:
        """Heal everything, wait until all carts have ended, and look at what there is."""
        self.place.disk.kill_after = None
        self.place.disk.heal()
        self.place.database.heal()
        self.library.heal()
        while self.running:
            self.running.pop().cancel()
        world = self.world
        self._settle()
        for uid in UIDS:
            for _ in range(2):  # the first may find damage
                world.begin(download(world, self.ledger, uid, "evening", (0.0, 1.0), 0.0))
                self._settle()
        self._settle(least=65.0)
        self._nothing_is_wrong()
        self.checks.of_a_quiet_volume()
        self._nothing_is_wrong()
        self._stop()
        self._nothing_is_wrong()

    def _settle(self, least: float = 1.0) -> None:
        now = self.world.reactor.seconds()
        self.world.run_until(now + least)
        done = settled(self.checks)
        while not done() or self.world.clients:
            self.world.run_until(self.world.reactor.seconds() + 2.0)
            if self.world.reactor.seconds() > now + LONG_ENOUGH:
                break  # the checks tell
