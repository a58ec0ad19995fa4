"""A machine whose clocks a test sets while the service runs.

::

    clocks = Clocks(tmp_path / "clocks")
    with running_cartd(tmp_path / "cartd", archive=url, started=False, fresh=True) as cartd:
        cartd.program = clocks.command(cartd.twistd)
        cartd.start()
        clocks.set(date=-3600)

As a program, this module replaces Python's clocks, then runs a command.
"""

from __future__ import annotations

import os
import runpy
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path


class Clocks:
    """A file with the offsets of the clocks from the true ones."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.touch()
        self.set()

    def set(self, *, date: float = 0, passed: float = 0) -> None:
        """Set the machine's date ahead or back, by so many seconds.

        ``passed`` are seconds by which all clocks, monotonic ones too, are set ahead.
        """
        with self._path.open("r+") as file:
            file.write(f"{date + passed:20} {passed:20}")

    def command(self, command: Sequence[str]) -> tuple[str, ...]:
        """Return the command line that runs ``command``, a Python script, with these clocks."""
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
