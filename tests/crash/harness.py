"""The service under load, killed and started again, and looked at after every start.

::

    with ordeal(tmp_path, seed="7") as it:
        it.kill_at("after-replace-file", 3)
        it.kill_within(0.5)
        it.stop_cleanly()

The seed decides what is in the archive, what the clients do, and the moment of each kill.  In what
order threads and processes come it cannot decide: it repeats a failure as a rule, not always.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random
from subprocess import TimeoutExpired

from tests.crash import kill_points
from tests.crash.checks import Checks
from tests.crash.load import Load
from tests.crash.model import GIANT, LARGE_BYTES, SPOILT, Archived, Model, archived_files
from tests.running_cartd import RunningCartd, running_cartd
from tests.served_directory import ServedDirectory, served_directory

QUOTA = 3 * LARGE_BYTES + LARGE_BYTES // 2
INI = f"""
[cartd]
volume_quota = {QUOTA}
volume_reserve = 0
lru_interval = 0.5
[archiveinterface]
max_attempts = {{tries}}
"""
LONGEST_WAIT_FOR_A_POINT = 20.0
"""Seconds of load in which a point must be passed."""


@dataclass(slots=True)
class Ordeal:
    """What is done to one service; what it should have done otherwise raises."""

    cartd: RunningCartd
    seed: str
    files: dict[str, Archived]
    model: Model
    checks: Checks
    done: Counter[str] = field(default_factory=Counter)
    numbers: count[int] = field(default_factory=count)
    stretches: count[int] = field(default_factory=count)

    @property
    def kills(self) -> int:
        return sum(number for what, number in self.done.items() if what.startswith("killed "))

    @property
    def order(self) -> Path:
        """Where the process is told at which point to end."""
        return self.cartd.directory / "order"

    def kill_at(self, point: str, passage: int) -> bool:
        """Load, until the process ends at that passage of the point; whether it came there."""
        load = self._loaded()
        self.order.write_text(f"{point}:{passage}")
        fired = self._ends(LONGEST_WAIT_FOR_A_POINT)
        if not fired:
            self.cartd.kill()
        self.order.unlink()
        self._recover(load)
        self.done[f"killed {point}" if fired else "killed too early"] += 1
        return fired

    def kill_within(self, seconds: float) -> None:
        """Load for so long, then kill."""
        load = self._loaded()
        if not self._ends(seconds):
            self.cartd.kill()
        self._recover(load)
        self.done["killed at a moment"] += 1

    def kill_at_start(self, point: str) -> None:
        """Load and kill, and then kill the next start where it first passes the point."""
        load = self._loaded()
        self._ends(0.3)
        self.cartd.kill()
        self._stop(load)
        self.order.write_text(f"{point}:1")
        self._start_doomed()
        if self._ends(0.3):
            self.done["killed at a start"] += 1
        else:
            self.cartd.kill()
        self.order.unlink()
        self.checks.names()
        self._settle()

    def work(self, seconds: float) -> None:
        """Load for so long, and no kill."""
        load = self._loaded()
        if self._ends(seconds):
            load.faults.append("the service has ended by itself")
        self._stop(load)
        self.checks.settle()

    def stop_cleanly(self) -> None:
        """Stop the service in the middle of its work; it must leave nothing to be cleared up."""
        load = self._loaded()
        self._ends(0.5)
        assert self.cartd.terminate() == 0
        self._stop(load)
        self.checks.names()
        self.checks.stopped()
        self._settle()

    def _loaded(self) -> Load:
        load = Load(self.cartd, self.model, self.files, self.numbers)
        load.start(f"{self.seed}/{next(self.stretches)}")
        return load

    def _ends(self, seconds: float) -> bool:
        """Whether the process ends within that time."""
        assert self.cartd.process is not None
        try:
            self.cartd.process.wait(seconds)
        except TimeoutExpired:
            return False
        return True

    def _recover(self, load: Load) -> None:
        self._stop(load)
        assert self.cartd.process is not None
        assert self.cartd.process.returncode == -signal.SIGKILL, self.cartd.log
        self.checks.names()
        self._settle()

    def _stop(self, load: Load) -> None:
        load.stop()
        self.done += load.done
        assert not load.faults, "\n".join(load.faults)

    def _settle(self) -> None:
        self.cartd.start()
        self.checks.settle()

    def _start_doomed(self) -> None:
        try:
            self.cartd.start()
        except AssertionError:
            assert self.cartd.process is not None
            if self.cartd.process.returncode != -signal.SIGKILL:
                raise


@contextmanager
def ordeal(
    directory: Path, *, seed: str, database: str = "", fail_rate: float = 0.0
) -> Iterator[Ordeal]:
    """Start an archive and the service; what fails says how it is run again."""
    files = archived_files(seed)
    ini = INI.format(tries=4 if fail_rate else 2)
    failing = ("--fail-rate", str(fail_rate), "--fail-seed", str(Random(seed).randrange(10**6)))
    with served_directory(directory / "archive", *failing) as archive:
        _fill(archive, files)
        with running_cartd(
            directory / "cartd", archive=archive.url, database=database, ini=ini, started=False
        ) as cartd:
            it = _ordeal(cartd, seed, files)
            cartd.start()
            try:
                yield it
            except AssertionError as error:
                error.add_note(f"seed {seed!r}; done so far: {dict(it.done)}")
                raise


def _ordeal(cartd: RunningCartd, seed: str, files: dict[str, Archived]) -> Ordeal:
    model = Model()
    it = Ordeal(cartd, seed, files, model, Checks(cartd, model))
    cartd.program = (
        *(sys.executable, kill_points.__file__, str(it.order)),
        *("-n", "--pidfile=", "cartd", "--port", str(cartd.port)),
    )
    return it


def _fill(archive: ServedDirectory, files: dict[str, Archived]) -> None:
    for name, archived in files.items():
        archive.put(name, archived.data)
        os.utime(archive.root / name, (archived.mtime, archived.mtime))
    archive.put(SPOILT, bytes(3000))
    with (archive.root / GIANT).open("wb") as giant:
        giant.truncate(2**40)
