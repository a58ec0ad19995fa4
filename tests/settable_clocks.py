"""A machine whose clocks a test sets while the service runs on it.

::

    clocks = Clocks(tmp_path / "clocks")
    with running_cartd(tmp_path / "cartd", archive=url, started=False, fresh=True) as cartd:
        cartd.program = clocks.command(cartd.twistd)
        cartd.start()
        clocks.set(date=-3600)

Run as a program, this module puts the clocks in the place of Python's, then runs a command.
"""

from __future__ import annotations

import os
import runpy
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path


class Clocks:
    """A file that says how far the clocks of those who run with it are from the true ones."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.touch()
        self.set()

    def set(self, *, date: float = 0, passed: float = 0) -> None:
        """Set the machine's date ahead of the true one, or back, by so many seconds.

        ``passed`` are seconds that seem to have passed for all clocks.
        """
        with self._path.open("r+") as file:
            file.write(f"{date + passed:20} {passed:20}")

    def command(self, command: Sequence[str]) -> tuple[str, ...]:
        """The command line of ``command``, a Python script, under these clocks."""
        return sys.executable, __file__, str(self._path), *command


def _run(path: str, *command: str) -> None:
    offsets = os.open(path, os.O_RDONLY)

    def shifted(clock: Callable[[], float], column: int) -> Callable[[], float]:
        return lambda: clock() + float(os.pread(offsets, 50, 0).split()[column])

    time.time = shifted(time.time, 0)
    time.monotonic = shifted(time.monotonic, 1)
    sys.argv = list(command)
    sys.path[0] = str(Path(command[0]).parent)
    runpy.run_path(command[0], run_name="__main__")


if __name__ == "__main__":
    _run(*sys.argv[1:])
