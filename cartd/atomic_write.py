"""Files that are replaced as a whole, and stay whose they were.

A file that is replaced by a rename is another file: owner, group, mode and ACL are those of the new
one, unless they are carried over.  Blocks.
"""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

_ACL: Final = "system.posix_acl_access"
_NO_ATTRIBUTE: Final = frozenset(
    {getattr(errno, name) for name in ("ENODATA", "ENOTSUP", "EOPNOTSUPP") if hasattr(errno, name)}
)


def replace_file(path: Path, data: bytes) -> None:
    """Write ``data`` to the disk, then give it the name ``path``: readers see the old or the new.

    A file that is there keeps its owner, group and mode and, on Linux, its ACL and its other
    extended attributes; where that is not permitted it is not replaced.  A new one has mode 0600
    or, in a directory of another group than the caller's, that group and 0640, for a service that
    runs in it.  ``path`` is not to be a symbolic link: what it leads to would stay as it is.

    :raises OSError: nothing has changed then.
    """
    try:
        before = path.lstat()
    except FileNotFoundError:
        before = None
    fd, written = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # its mode is 0600
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            if before is None:
                _inherit_group(fd, path.parent)
            else:
                _copy_metadata(fd, path, before)
            os.fsync(fd)
        Path(written).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(written).unlink()
        raise
    _sync_directory(path.parent)


if sys.platform == "win32":

    def _inherit_group(_fd: int, _directory: Path) -> None:
        """A new file inherits who may read it from its directory."""

    def _copy_metadata(_fd: int, _path: Path, _before: os.stat_result) -> None:
        """The same: what is set for the file alone is lost."""

else:

    def _inherit_group(fd: int, directory: Path) -> None:
        group = directory.stat().st_gid
        if (group, group) != (os.getegid(), os.fstat(fd).st_gid):
            with suppress(OSError):  # the caller need not be a member
                os.chown(fd, -1, group)
                os.chmod(fd, 0o640)

    def _copy_metadata(fd: int, path: Path, before: os.stat_result) -> None:
        new = os.fstat(fd)
        if (new.st_uid, new.st_gid) != (before.st_uid, before.st_gid):
            os.chown(fd, before.st_uid, before.st_gid)
        os.chmod(fd, before.st_mode & 0o7777)
        _copy_attributes(path, fd)


if sys.platform == "linux":

    def _copy_attributes(path: Path, fd: int) -> None:
        try:
            names = os.listxattr(path)
        except OSError as error:
            if error.errno in _NO_ATTRIBUTE:
                return
            raise
        if _ACL not in names:
            # The directory's default ACL has made one, in which the old file had no part.
            try:
                os.removexattr(fd, _ACL)
            except OSError as error:
                if error.errno not in _NO_ATTRIBUTE:
                    raise
        for name in names:
            try:
                os.setxattr(fd, name, os.getxattr(path, name))
            except OSError:
                if name == _ACL:  # all else, as a label, says nothing of who may read it
                    raise

else:

    def _copy_attributes(_path: Path, _fd: int) -> None:
        """Python knows no such calls of other systems."""


def copy_ownership(path: Path, before: Path) -> None:
    """Give the file at ``path`` the owner, group, mode and ACL of ``before``, if that is there.

    Where that is not permitted its owner and group stay those of the caller, and its mode is that
    of ``before`` without what the other group must not have from it.
    """
    with suppress(FileNotFoundError):
        state = before.lstat()
        fd = os.open(path, os.O_RDONLY)
        try:
            try:
                _copy_metadata(fd, before, state)
            except PermissionError:
                others = state.st_mode & 0o007
                path.chmod(state.st_mode & 0o700 | others << 3 | others)
        finally:
            os.close(fd)


def _sync_directory(directory: Path) -> None:
    """Have the new name outlast a power failure, where a directory can be opened for that."""
    with suppress(OSError):
        fd = os.open(directory, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
