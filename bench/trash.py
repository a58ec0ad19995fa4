"""What measurements leave on the disk: removed when all of them are over.

Strategy: ext4 does not give the inode of a removed file to another for some minutes, and passes
over each of them again and again while it looks for a free one (``recently_deleted`` in the
kernel's ``fs/ext4/ialloc.c``).  To remove 10,000 files makes the next 10,000 cost up to five times
as much: whoever is measured next would pay.  Great files are few, and take room: they go at once.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

LARGE = 2**20


class Trash:
    """A directory to which trees are moved that nobody needs any more."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def move(self, tree: Path) -> None:
        """Move ``tree`` out of the way, if it is there, without its great files."""
        if not tree.exists():
            return
        for folder, _, names in os.walk(tree):
            for name in names:
                file = Path(folder, name)
                if not file.is_symlink() and file.stat().st_size >= LARGE:
                    file.unlink()
        self._directory.mkdir(parents=True, exist_ok=True)
        tree.rename(self._directory / f"{time.time_ns()}")

    def empty(self) -> None:
        """Remove all of it."""
        shutil.rmtree(self._directory, ignore_errors=True)
