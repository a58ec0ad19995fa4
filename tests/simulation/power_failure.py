"""What a power failure takes: all that the system was told to write, and the disk has not got."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from tests.system_calls import path_of

Inode = tuple[int, int]
NAMES_AT = {
    "open": 0,
    "mkdir": 0,
    "rename": 1,
    "replace": 1,
    "link": 1,
    "symlink": 1,
}
"""Which argument of a call is a name that it makes."""
NAME_LOSS_CHANCE = 0.1
"""How often a name is lost; what is removed stays removed."""
OUTCOMES = ("whole", "whole", "cut", "zeros", "zeros")
"""What may be found of a file whose bytes were still in memory."""


class UnsyncedWrites:
    """The bytes and the names that only the system's memory has.

    They come by every call that changes the volume, and go with a sync of the file system, or of
    the file or directory.
    """

    def __init__(self) -> None:
        self._data: set[Inode] = set()
        self._names: set[str] = set()
        self._unwritten: set[Inode] = set()
        """Files that a sync has failed to write; the system takes them for written."""
        self.corrupt_inodes: set[Inode] = set()
        """Files whose bytes are not what was written any more."""

    def record(self, name: str, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        """A system call has done its work."""
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
        """A sync has failed, and those after it will not tell."""
        self._unwritten |= self._data if random.random() < 0.5 else set()
        self.sync_succeeded()

    def page_cache_dropped(self, fd: int) -> None:
        """What the system's memory has of a file is to be read from the disk again."""
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
    """In an order that is the same each time."""
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
