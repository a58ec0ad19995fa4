"""Runs a script where the system has no flock(2), as on Lustre that is mounted without it.

::

    cartd.program = without_flock(cartd.twistd)
"""

from __future__ import annotations

import errno
import fcntl
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path


def without_flock(command: Sequence[str]) -> tuple[str, ...]:
    """Return a command line that runs ``command``, a script, without file locks."""
    return sys.executable, __file__, *command


def refuse(_fd: object, _how: int) -> None:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    fcntl.flock = refuse
    runpy.run_path(sys.argv[0], run_name="__main__")
