"""Atomic replacement of files, their owner, mode and ACL, and locks on them (flock).

All functions block.

A rename replaces a file atomically, by a new one with its own owner, group, mode and ACL, so they
are copied.

The kernel releases a lock (flock) when its process ends, however it ends.  Only such locks prove
that a process of this machine is alive: a pid may have been reused, or belong to another container.
"""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from stat import S_IMODE
from typing import Final

_ACL: Final = "system.posix_acl_access"
_NO_ATTRIBUTE: Final = frozenset(
    {getattr(errno, name) for name in ("ENODATA", "ENOTSUP", "EOPNOTSUPP") if hasattr(errno, name)}
)
_HELD_ERRNOS: Final = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK})
"""Errors of flock(2) and of Windows for a lock that is held already."""
_PROC_LOCKS: Final = Path("/proc/locks")


def replace_file(path: Path, data: bytes) -> None:
    """Write ``data`` to a new file and rename it to ``path``: readers see the old or the new one.

    An existing file keeps its owner, group and mode and, on Linux, its ACL and other extended
    attributes; if that is not permitted, it is not replaced.  A new one has mode 0600 or, in a
    directory of another group than the caller's, that group and 0640, for a service that runs in
    it.  ``path`` must not be a symbolic link: its target would stay unchanged.

    :raises OSError: nothing has changed.
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
        """A new file inherits its permissions from its directory."""

    def _copy_metadata(_fd: int, _path: Path, _before: os.stat_result) -> None:
        """The same: permissions of the old file are lost."""

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
            # The new file has an ACL from the directory's default ACL; the old one had none.
            try:
                os.removexattr(fd, _ACL)
            except OSError as error:
                if error.errno not in _NO_ATTRIBUTE:
                    raise
        for name in names:
            try:
                os.setxattr(fd, name, os.getxattr(path, name))
            except OSError:
                if name == _ACL:  # other attributes, as a label, do not affect permissions
                    raise

else:

    def _copy_attributes(_path: Path, _fd: int) -> None:
        """Python has no such calls on other systems."""


def copy_ownership(path: Path, before: Path) -> None:
    """Copy owner, group, mode and ACL of ``before``, if it exists, to the file at ``path``.

    If that is not permitted, owner and group stay those of the caller, and the group gets only the
    permissions that ``before`` grants to others.
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
    """Sync the directory, so that the new name survives a power failure, where it can be opened."""
    with suppress(OSError):
        fd = os.open(directory, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


if sys.platform == "win32":

    def user_name(uid: int) -> str:
        return str(uid)

    def group_name(uid: int) -> str:
        """Return the name of the primary group of a user."""
        return str(uid)

    def this_user() -> str:
        """Return the name of the user of this process."""
        return os.environ.get("USERNAME", "this user")

    def describe_permissions(path: Path) -> str:
        """Return owner, group and mode of a file: ``root:cartd 0640``; '' if unknown."""
        return ""

    def unreadable_by(uid: int, path: Path) -> Path | None:
        """Return the file or the parent directory that a user may not read; else None."""
        return None

else:
    import grp
    import pwd

    def user_name(uid: int) -> str:
        try:
            return pwd.getpwuid(uid).pw_name
        except KeyError:
            return str(uid)

    def group_name(uid: int) -> str:
        """Return the name of the primary group of a user."""
        try:
            return grp.getgrgid(pwd.getpwuid(uid).pw_gid).gr_name
        except KeyError:
            return str(uid)

    def this_user() -> str:
        """Return the name of the user of this process."""
        return user_name(os.geteuid())

    def describe_permissions(path: Path) -> str:
        """Return owner, group and mode of a file: ``root:cartd 0640``; '' if unknown."""
        try:
            state = path.stat()
        except OSError:
            return ""
        try:
            group = grp.getgrgid(state.st_gid).gr_name
        except KeyError:
            group = str(state.st_gid)
        return f"{user_name(state.st_uid)}:{group} {S_IMODE(state.st_mode):04o}"

    def unreadable_by(uid: int, path: Path) -> Path | None:
        """Return the file or the parent directory that a user may not read, judged by its mode.

        None if all is readable, if an ACL may change the result, or if the user has no name.
        """
        try:
            user = pwd.getpwuid(uid)
            groups = set(os.getgrouplist(user.pw_name, user.pw_gid))
        except (KeyError, OSError):
            return None
        if uid == 0:
            return None
        path = path.resolve()
        for place, needed in [*((above, 0o1) for above in reversed(path.parents)), (path, 0o4)]:
            try:
                state = place.stat()
                if _ACL in getattr(os, "listxattr", lambda _: [])(place):
                    continue
            except OSError:
                return None
            mode = S_IMODE(state.st_mode)
            if state.st_uid == uid:
                mode >>= 6
            elif state.st_gid in groups:
                mode >>= 3
            if not mode & needed:
                return place
        return None


class LocksUnsupported(OSError):
    """The file system or the operating system does not support such locks."""


if sys.platform == "win32":
    import msvcrt

    def _lock(fd: int, *, shared: bool) -> None:
        if shared:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        os.lseek(fd, 0, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(fd: int, *, shared: bool) -> None:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)


def try_lock(fd: int, *, shared: bool = False) -> bool:
    """Lock an open file, on Unix also a directory, until ``fd`` is closed; return whether locked.

    It never waits: false if a conflicting lock is held, by another process or by another descriptor
    in this one.

    :raises LocksUnsupported: for any other reason: ENOSYS on Lustre without ``-o flock``, ENOLCK or
        EBADF on NFS, EOPNOTSUPP on some FUSE file systems.
    """
    try:
        _lock(fd, shared=shared)
    except OSError as error:
        if error.errno in _HELD_ERRNOS:
            return False
        raise LocksUnsupported(error.errno, error.strerror) from error
    return True


def lock_holder(fd: int) -> str:
    """Return which process holds a lock on the file, for messages only; '' if unknown."""
    if sys.platform == "win32":
        return ""
    try:
        state = os.fstat(fd)
        device = f"{os.major(state.st_dev):02x}:{os.minor(state.st_dev):02x}:{state.st_ino}"
        for line in _PROC_LOCKS.read_text().splitlines():
            fields = line.split()
            if len(fields) >= 6 and fields[1] == "FLOCK" and fields[5] == device:
                return f"process {fields[4]}"
    except OSError:
        pass  # the file exists on Linux only
    return ""
