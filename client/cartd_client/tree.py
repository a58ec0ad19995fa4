"""The directory into which a cart is unpacked: no path leads out of it, no link is followed.

Where the system has them, all steps are relative to descriptors of directories, which are opened
one by one without following links (``openat``, ``O_NOFOLLOW``): what another process does to the
tree meanwhile cannot lead elsewhere.  On Windows each component is examined first.
"""

from __future__ import annotations

import ctypes
import os
import stat
import sys
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from cartd_client.errors import ClientError, VerificationFailed, printable
from cartd_client.names import NameRules
from cartd_client.resume import sync_file

HAS_DIR_FD = (
    os.name == "posix"
    and hasattr(os, "O_NOFOLLOW")
    and {os.open, os.mkdir, os.rename, os.stat, os.unlink} <= os.supports_dir_fd
)
MAX_OPEN = 64
"""Directories that are kept open."""
FEW_FILES = 32
"""Up to so many files are synced one by one, more by one call for the file system."""
_DIRECTORY = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)
_FILE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)

Parts = tuple[str, ...]


class Tree:
    """Paths below one directory, each as a tuple of components that were checked.

    Not to be used by several threads at once.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._fd = os.open(root, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)) if HAS_DIR_FD else -1
        self._open: OrderedDict[Parts, int] = OrderedDict()
        self._changed: set[Parts] = set()

    def close(self) -> None:
        """Close all descriptors."""
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def make_directory(self, parts: Parts) -> None:
        """Create the directory and those above it, unless they exist.

        :raises VerificationFailed: a file or a link is in its place.
        """
        self._directory(parts, create=True)

    def status(self, parts: Parts) -> os.stat_result | None:
        """Return the status of a path, of a link itself; None if nothing is there."""
        try:
            fd, name = self._place(parts, create=False)
            return os.stat(name, dir_fd=fd, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def open(self, parts: Parts, flags: int = os.O_RDONLY, mode: int = 0o600) -> int:
        """Return a descriptor of the file; a link is not followed."""
        fd, name = self._place(parts, create=False)
        return os.open(name, flags | _FILE, mode, dir_fd=fd)

    def remove(self, parts: Parts) -> None:
        """Remove a file, if it is there."""
        with suppress(FileNotFoundError):
            fd, name = self._place(parts, create=False)
            os.unlink(name, dir_fd=fd)

    def rename(self, source: Parts, target: Parts) -> None:
        """Give a file its name; one that has this name is replaced.

        :raises VerificationFailed: a directory has this name, or a file that of a directory above.
        """
        # The source last: opening the directories of a deep target may close others.
        to_fd, to_name = self._place(target, create=True)
        from_fd, from_name = self._place(source, create=False)
        try:
            os.replace(from_name, to_name, src_dir_fd=from_fd, dst_dir_fd=to_fd)
        except (IsADirectoryError, PermissionError, NotADirectoryError) as error:
            found = self.status(target)
            if found is not None and stat.S_ISDIR(found.st_mode):
                raise _in_the_way(self.root, target, "a directory") from error
            raise
        self._changed.add(target[:-1])

    def set_mtime(self, parts: Parts, mtime_ns: int) -> None:
        """Set the time of a directory; a failure is ignored."""
        with suppress(OSError, VerificationFailed):
            fd = self._directory(parts, create=False)
            target: Any = self.root.joinpath(*parts) if fd is None else fd
            os.utime(target, ns=(mtime_ns, mtime_ns))

    def sync_files(self, files: list[Parts]) -> None:
        """Have the content of all ``files``, which are all that were written, on the disk."""
        syncfs = _syncfs() if len(files) > FEW_FILES else None
        if syncfs is not None and self._fd >= 0:
            syncfs(self._fd)
            return
        for parts in files:
            # Windows flushes only what may be written.
            fd = self.open(parts, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
            try:
                sync_file(fd)
            finally:
                os.close(fd)

    def sync_names(self) -> None:
        """Have all names that were given since the last call on the disk."""
        changed, self._changed = self._changed, set()
        syncfs = _syncfs() if len(changed) > FEW_FILES else None
        if syncfs is not None and self._fd >= 0:
            syncfs(self._fd)
        elif HAS_DIR_FD:
            for parts in changed:
                fd = self._directory(parts, create=False)
                if fd is not None:
                    os.fsync(fd)

    def _place(self, parts: Parts, *, create: bool) -> tuple[int | None, Any]:
        """Return the descriptor of the directory and the name in it; without descriptors a path."""
        fd = self._directory(parts[:-1], create=create)
        return (None, self.root.joinpath(*parts)) if fd is None else (fd, parts[-1])

    def _directory(self, parts: Parts, *, create: bool) -> int | None:
        if not parts:
            return self._fd if HAS_DIR_FD else None
        fd = self._open.get(parts)
        if fd is not None:
            self._open.move_to_end(parts)
            return fd
        above = self._directory(parts[:-1], create=create)
        name: Any = self.root.joinpath(*parts) if above is None else parts[-1]
        if create:
            try:
                os.mkdir(name, 0o777, dir_fd=above)
                self._changed.add(parts[:-1])
            except FileExistsError:
                pass
        if above is None:
            _check_directory(self.root, parts, os.lstat(name))
            return None
        try:
            fd = os.open(name, _DIRECTORY, dir_fd=above)
        except OSError as error:
            found = os.stat(name, dir_fd=above, follow_symlinks=False)
            _check_directory(self.root, parts, found)
            raise ClientError(f"Cannot open {_path(self.root, parts)}: {error.strerror}") from error
        self._open[parts] = fd
        while len(self._open) > MAX_OPEN:
            os.close(self._open.popitem(last=False)[1])
        return fd


def _check_directory(root: Path, parts: Parts, found: os.stat_result) -> None:
    """Raise VerificationFailed unless it is a directory, and no link or junction."""
    reparse = getattr(stat, "FILE_ATTRIBUTE_REPARSE_POINT", 0x400)
    is_link = stat.S_ISLNK(found.st_mode) or getattr(found, "st_file_attributes", 0) & reparse
    if is_link or not stat.S_ISDIR(found.st_mode):
        raise _in_the_way(root, parts, "a link" if is_link else "a file")


def _in_the_way(root: Path, parts: Parts, what: str) -> VerificationFailed:
    return VerificationFailed(
        f"{_path(root, parts)} is {what}, and the cart has something else of that name: remove it,"
        " or choose another directory"
    )


def _path(root: Path, parts: Parts) -> str:
    return printable(str(root.joinpath(*parts)), 500)


def probe_rules(directory: Path) -> NameRules:
    """Return which names the file system distinguishes, by trying in a directory of our own."""
    name = "Probe-é"
    probe = directory / name
    probe.touch()
    try:
        rules = NameRules(
            ignores_case=(directory / "pROBE-é").exists(),
            normalizes=(directory / "Probe-e\u0301").exists(),
            windows=os.name == "nt",
        )
    finally:
        probe.unlink()
    if sys.platform != "win32":
        with suppress(OSError, ValueError):
            return replace(rules, max_name_bytes=os.pathconf(directory, "PC_NAME_MAX"))
    return rules


@cache
def _syncfs() -> Callable[[int], None] | None:
    """Return syncfs(2), where it reports failed writes: Linux 5.8 and later."""
    if sys.platform != "linux":
        return None
    try:
        major, minor = (int(part) for part in os.uname().release.split(".")[:2])
        function = ctypes.CDLL(None, use_errno=True).syncfs
    except (ValueError, OSError, AttributeError):
        return None
    if (major, minor) < (5, 8):
        return None

    def syncfs(fd: int) -> None:
        if function(fd):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    return syncfs
