"""Trial files: temporary files in ``incoming/`` that belong to no cart, and their leftovers.

Strategy: a process that writes one holds a shared lock on ``incoming/``, as on a cart that is being
sent.  Under an exclusive lock, all trial files are leftovers of processes that have ended.
"""

from __future__ import annotations

import errno
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cartd.errors import VolumeDamaged
from cartd.volume.files import list_entries
from cartd.volume.locks import SharedLock, exclusive_lock
from cartd.volume.paths import VolumePaths
from cartd.volume.remove import remove_tree
from cartd.volume.rooted_fs import RootedFS

TRIAL = ".trial"
_LEFTOVER = re.compile(r"\.(?:trial|cartd-volume)-[0-9a-f]{16}")
"""Trial files, and directories in which names are tested."""


@contextmanager
def trial_file(paths: VolumePaths, hint: str) -> Iterator[Path]:
    """Yield a unique path in ``incoming/``; :func:`remove_leftovers` does not remove it meanwhile.

    Raises ``OSError`` if another process holds the exclusive lock.
    """
    lock = SharedLock(paths.all_incoming)
    try:
        lock.acquire()
    except VolumeDamaged:
        reason = "another process that is starting has locked incoming/: stop it, or wait for it"
        raise OSError(errno.EBUSY, reason, str(paths.all_incoming)) from None
    try:
        yield paths.all_incoming / f"{hint}-{secrets.token_hex(8)}"
    finally:
        lock.release()


def remove_leftovers(paths: VolumePaths) -> None:
    """Remove leftovers of killed starts, unless another process is writing trial files."""
    with exclusive_lock(paths.all_incoming) as acquired:
        if acquired:
            with RootedFS(paths.root) as fs:
                for directory in (paths.root, paths.all_incoming):
                    for name, _ in list_entries(fs, directory):
                        if _LEFTOVER.fullmatch(name):
                            remove_tree(fs, directory / name)
