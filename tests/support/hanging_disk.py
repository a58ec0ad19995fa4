"""Runs ``twistd`` with a service whose volume can be made to hang, like a lost file server.

::

    cartd.program = hanging_disk(cartd.twistd, waits=0.2)
    cartd.start()
    hang(cartd)

Every system call on the volume then blocks its thread for ever, in the reactor's thread, too.
``waits`` replaces the timeout of each step of a stop, ``limit`` that of the whole stop.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.support.running_cartd import RunningCartd

FLAG = "hang"
HUNG = "hung"
CALLS = ("open", "stat", "lstat", "scandir", "listdir", "unlink", "rmdir", "mkdir", "rename",
         "replace", "link", "symlink", "readlink", "statvfs", "fsync", "utime")  # fmt: skip


def hanging_disk(
    command: Sequence[str], *, waits: float = 5.0, limit: float = 30.0
) -> tuple[str, ...]:
    """Return a command line that runs ``command``, a script, with a volume that can hang."""
    return sys.executable, __file__, str(waits), str(limit), *command


def hang(cartd: RunningCartd) -> None:
    """From now on, calls on the volume block."""
    (cartd.directory / FLAG).touch()


def hangs(cartd: RunningCartd) -> bool:
    """Whether a thread is blocked."""
    return (cartd.directory / HUNG).exists()


def _prepare(volume: str, waits: float, limit: float) -> None:
    import cartd.components
    import cartd.deferreds.threads
    import cartd.integrity.recovery
    import cartd.service
    import cartd.staging.stager

    for module in (cartd.staging.stager, cartd.components, cartd.service):
        vars(module)["STOP_STEP_TIMEOUT"] = waits
    vars(cartd.integrity.recovery)["FINAL_SYNC_TIMEOUT"] = waits
    vars(cartd.deferreds.threads)["STOP_WAIT"] = waits
    vars(cartd.service)["STOP_TIMEOUT"] = limit
    opened, exists = os.open, os.path.exists
    nothing_comes, _ = os.pipe()
    main = threading.main_thread()

    def held(call: Callable[..., Any]) -> Callable[..., Any]:
        def may_hang(*args: Any, **kwargs: Any) -> Any:
            below = any(value is not None for name, value in kwargs.items() if "dir_fd" in name)
            on_volume = below or (args and str(args[0]).startswith(volume))
            if on_volume and exists(FLAG):
                if threading.current_thread() is not main:
                    os.close(opened(HUNG, os.O_CREAT | os.O_WRONLY))
                os.read(nothing_comes, 1)
            return call(*args, **kwargs)

        return may_hang

    for name in CALLS:
        setattr(os, name, held(getattr(os, name)))


if __name__ == "__main__":
    waits, limit = map(float, sys.argv[1:3])
    sys.argv = sys.argv[3:]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    _prepare(os.environ["VOLUME_PATH"], waits, limit)
    runpy.run_path(sys.argv[0], run_name="__main__")
