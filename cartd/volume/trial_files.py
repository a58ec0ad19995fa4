"""Files of no cart, in ``incoming/`` for a moment of a start; and those that a kill has left there.

Strategy: who writes one has the directory of them all in use meanwhile, as one has that of a cart
that is sent.  Who gets it alone knows that whoever wrote what is there has ended.
"""

from __future__ import annotations

import errno
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cartd.errors import VolumeDamaged
from cartd.rooted_fs import RootedFS
from cartd.volume.files import list_entries
from cartd.volume.locks import SharedLock, exclusive_lock
from cartd.volume.paths import VolumePaths
from cartd.volume.remove import remove_tree

TRIAL = ".trial"
_LEFTOVER = re.compile(r"\.(?:trial|cartd-volume)-[0-9a-f]{16}")
"""Files, and directories in which names are tried out."""


@contextmanager
def trial_file(paths: VolumePaths, hint: str) -> Iterator[Path]:
    """A name in ``incoming/`` that nobody else has; what is written there is not swept away.

    Raises ``OSError`` if the directory is being swept, which takes no time.
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
    """Remove what starts that were killed have left, unless another one is at work just now."""
    with exclusive_lock(paths.all_incoming) as acquired:
        if acquired:
            with RootedFS(paths.root) as fs:
                for directory in (paths.root, paths.all_incoming):
                    for name, _ in list_entries(fs, directory):
                        if _LEFTOVER.fullmatch(name):
                            remove_tree(fs, directory / name)
