"""The service under load, killed and restarted, and checked after every start.

::

    with crash_harness(tmp_path, seed="7") as it:
        it.kill_at("after-replace-file", 3)
        it.kill_within(0.5)
        it.stop_cleanly()

The seed decides what is in the archive, what the clients do, and the moment of each kill, but not
the scheduling of threads and processes: it reproduces a failure usually, not always.
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
from tests.crash.model import CORRUPT, GIANT, LARGE_BYTES, Archived, Model, archived_files
from tests.support import faulty_directory_archive
from tests.support.running_cartd import RunningCartd, running_cartd
from tests.support.served_directory import ServedDirectory, served_directory

QUOTA = 3 * LARGE_BYTES + LARGE_BYTES // 2
INI = f"""
[cartd]
volume_quota = {QUOTA}
volume_reserve = 0
lru_interval = 0.5
[staging]
also_hash = sha256
[archiveinterface]
max_attempts = {{tries}}
"""
POINT_TIMEOUT = 20.0
"""Seconds of load within which a point must be reached."""


@dataclass(slots=True)
class Harness:
    """Kills, stops and checks one service; each method raises ``AssertionError`` on a fault."""

    cartd: RunningCartd
    seed: str
    files: dict[str, Archived]
    model: Model
    checks: Checks
    done: Counter[str] = field(default_factory=Counter)
    numbers: count[int] = field(default_factory=count)
    load_runs: count[int] = field(default_factory=count)

    @property
    def kills(self) -> int:
        return sum(number for what, number in self.done.items() if what.startswith("killed "))

    @property
    def order(self) -> Path:
        """The file that names the point at which the process kills itself."""
        return self.cartd.directory / "order"

    def kill_at(self, point: str, passage: int) -> bool:
        """Run load until the process dies at that passage of the point; return whether it did."""
        load = self._start_load()
        self.order.write_text(f"{point}:{passage}")
        fired = self._exits_within(POINT_TIMEOUT)
        if not fired:
            self.cartd.kill()
        self.order.unlink()
        self._recover(load)
        self.done[f"killed {point}" if fired else "killed too early"] += 1
        return fired

    def kill_within(self, seconds: float) -> None:
        """Run load for so many seconds, then kill."""
        load = self._start_load()
        if not self._exits_within(seconds):
            self.cartd.kill()
        self._recover(load)
        self.done["killed at a moment"] += 1

    def kill_at_start(self, point: str) -> None:
        """Run load and kill; then kill the next start at its first passage of the point."""
        load = self._start_load()
        self._exits_within(0.3)
        self.cartd.kill()
        self._stop(load)
        self.order.write_text(f"{point}:1")
        self._start_expecting_kill()
        if self._exits_within(0.3):
            self.done["killed at a start"] += 1
        else:
            self.cartd.kill()
        self.order.unlink()
        self.checks.check_contents()
        self._restart_and_check()

    def work(self, seconds: float) -> None:
        """Run load for so many seconds, without a kill."""
        load = self._start_load()
        if self._exits_within(seconds):
            load.faults.append("the service has ended by itself")
        self._stop(load)
        self.checks.check_idle()

    def stop_cleanly(self) -> None:
        """Stop the service under load; it must leave nothing to clean up."""
        load = self._start_load()
        self._exits_within(0.5)
        assert self.cartd.terminate() == 0
        self._stop(load)
        self.checks.check_contents()
        self.checks.check_stopped()
        self._restart_and_check()

    def _start_load(self) -> Load:
        load = Load(self.cartd, self.model, self.files, self.numbers)
        load.start(f"{self.seed}/{next(self.load_runs)}")
        return load

    def _exits_within(self, seconds: float) -> bool:
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
        self.checks.check_contents()
        self._restart_and_check()

    def _stop(self, load: Load) -> None:
        load.stop()
        self.done += load.done
        assert not load.faults, "\n".join(load.faults)

    def _restart_and_check(self) -> None:
        self.cartd.start()
        self.checks.check_idle()

    def _start_expecting_kill(self) -> None:
        try:
            self.cartd.start()
        except AssertionError:
            assert self.cartd.process is not None
            if self.cartd.process.returncode != -signal.SIGKILL:
                raise


@contextmanager
def crash_harness(
    directory: Path, *, seed: str, database: str = "", fail_rate: float = 0.0
) -> Iterator[Harness]:
    """Start an archive and the service; add the seed to a failure."""
    files = archived_files(seed)
    ini = INI.format(tries=4 if fail_rate else 2)
    program = faulty_directory_archive.command(fail_rate, Random(seed).randrange(10**6))
    with served_directory(directory / "archive", program=program) as archive:
        _fill(archive, files)
        with running_cartd(
            directory / "cartd", archive=archive.url, database=database, ini=ini, started=False
        ) as cartd:
            it = _new_harness(cartd, seed, files)
            cartd.start()
            try:
                yield it
            except AssertionError as error:
                error.add_note(f"seed {seed!r}; done so far: {dict(it.done)}")
                raise


def _new_harness(cartd: RunningCartd, seed: str, files: dict[str, Archived]) -> Harness:
    model = Model()
    it = Harness(cartd, seed, files, model, Checks(cartd, model))
    cartd.program = (
        *(sys.executable, kill_points.__file__, str(it.order)),
        *("-n", "--pidfile=", "cartd", "--port", str(cartd.port)),
    )
    return it


def _fill(archive: ServedDirectory, files: dict[str, Archived]) -> None:
    for name, archived in files.items():
        archive.put(name, archived.data)
        os.utime(archive.root / name, (archived.mtime, archived.mtime))
    archive.put(CORRUPT, bytes(3000))
    with (archive.root / GIANT).open("wb") as giant:
        giant.truncate(2**40)
