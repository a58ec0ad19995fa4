"""Power failures: writes that the disk has not received yet are lost."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from tests.support.system_calls import path_of

Inode = tuple[int, int]
NAMES_AT = {
    "open": 0,
    "mkdir": 0,
    "rename": 1,
    "replace": 1,
    "link": 1,
    "symlink": 1,
}
"""By call, the index of the argument that is the created name."""
NAME_LOSS_CHANCE = 0.1
"""Probability that a name is lost; removals are never lost."""
OUTCOMES = ("whole", "whole", "cut", "zeros", "zeros")
"""States of a file after a power failure whose bytes were not synced."""


class UnsyncedWrites:
    """Bytes and names that are in the system's memory only.

    Every call that changes the volume adds to them; a sync of the file system, file or directory
    removes them.
    """

    def __init__(self) -> None:
        self._data: set[Inode] = set()
        self._names: set[str] = set()
        self._unwritten: set[Inode] = set()
        """Files that a failed sync did not write; the system treats them as written."""
        self.corrupt_inodes: set[Inode] = set()
        """Files whose bytes were lost."""

    def record(self, name: str, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        """Record a system call that was done."""
        if name == "write":
            self._data.add(_inode(os.fstat(args[0])))
        elif name == "fsync":
            self._has_synced(args[0])
        elif name in NAMES_AT and (name != "open" or args[1] & os.O_CREAT):
            self._names.add(path_of(args, options, NAMES_AT[name]))

    def _has_synced(self, fd: int) -> None:
        status = os.fstat(fd)
        self._data.discard(_inode(status))
        if stat.S_ISDIR(status.st_mode):
            directory = _path(fd)
            self._names = {one for one in self._names if Path(one).parent != directory}

    def sync_succeeded(self) -> None:
        self._data.clear()
        self._names.clear()

    def sync_failed(self, random: Random) -> None:
        """A sync has failed; later syncs will not report it."""
        self._unwritten |= self._data if random.random() < 0.5 else set()
        self.sync_succeeded()

    def page_cache_dropped(self, fd: int) -> None:
        """The page cache of a file was dropped: it is read from the disk again."""
        inode = _inode(os.fstat(fd))
        if inode in self._unwritten:
            self._unwritten.discard(inode)
            self._corrupt(_path(fd), "zeros")

    def power_fails(self, root: Path, random: Random) -> None:
        for name in sorted(self._names):
            if os.path.lexists(name) and random.random() < NAME_LOSS_CHANCE:
                _remove(Path(name))
        for path in list(_files(root)):
            inode = _inode(path.lstat())
            if inode in self._data | self._unwritten:
                self._data.discard(inode)
                unwritten = inode in self._unwritten
                self._unwritten.discard(inode)
                self._corrupt(path, "zeros" if unwritten else random.choice(OUTCOMES))
        self._data.clear()
        self._names.clear()
        self._unwritten.clear()

    def is_corrupt(self, path: Path) -> bool:
        return _inode(path.lstat()) in self.corrupt_inodes

    def _corrupt(self, path: Path, how: str) -> None:
        size = path.stat().st_size
        if how == "whole" or not size:
            return
        self.corrupt_inodes.add(_inode(path.stat()))
        os.truncate(path, size // 2 if how == "cut" else 0)
        if how == "zeros":
            os.truncate(path, size)


def _inode(status: os.stat_result) -> Inode:
    return status.st_dev, status.st_ino


def _path(fd: int) -> Path:
    return Path(f"/proc/self/fd/{fd}").readlink()


def _files(root: Path) -> Iterator[Path]:
    """In a deterministic order."""
    for found, directories, names in os.walk(root):
        directories.sort()
        for name in sorted(names):
            if stat.S_ISREG(os.lstat(Path(found, name)).st_mode):
                yield Path(found, name)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
