"""Files that measurements leave on the disk; removed when all measurements are done.

ext4 does not reuse the inode of a removed file for some minutes, and skips each of them whenever it
searches a free one (``recently_deleted`` in the kernel's ``fs/ext4/ialloc.c``).  After removing
10,000 files, creating 10,000 others takes up to five times as long, which would distort the next
measurement.  Large files are few but occupy space, so they are removed at once.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

LARGE = 2**20


class Trash:
    """A directory to which unused trees are moved."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def move(self, tree: Path) -> None:
        """Move ``tree`` away, if it exists, without its large files."""
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
        """Remove all of them."""
        shutil.rmtree(self._directory, ignore_errors=True)
