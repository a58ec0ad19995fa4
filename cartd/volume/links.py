"""Symbolic links to carts, and hard links to staged files of other carts.

The symbolic links ``ROOT/cartuids/UID`` are for sites that export the volume.
The functions block: for threads.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from twisted.logger import Logger

from cartd.deferreds.tasks import uncancellable
from cartd.deferreds.threads import ThreadRunner
from cartd.errors import DiskUnavailable, NoSpace
from cartd.model import Cart, DuplicateFile
from cartd.volume.incoming import replace
from cartd.volume.paths import VolumePaths
from cartd.volume.remove import DiskThreads, remove_link
from cartd.volume.rooted_fs import (
    HAS_DIR_FD,
    MkdirFS,
    MkdirFSCache,
    NameAt,
    RootedFS,
    translate_disk_errors,
)

BATCH = 1000
"""Files that are linked in one call in a thread."""

_NOT_ALLOWED = frozenset({errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})
_CART_TARGET = re.compile(r"\.\./[1-9][0-9]*/(?P<name>[^/]+)")
_PRIVILEGE_NOT_HELD = 1314  # Windows, where links are for administrators and developers

log = Logger()


class LinksNotAllowedError(Exception):
    """The system, the file system or its permissions do not allow symbolic links."""


class LinkOccupiedError(Exception):
    """The path of the link is a file, a directory, or the link of another uid."""


class Links:
    """The links of the volume: changed in threads, each change ends before its coroutine does."""

    def __init__(
        self,
        paths: VolumePaths,
        threads: ThreadRunner,
        disk: DiskThreads,
        fs_cache: MkdirFSCache,
    ) -> None:
        self._paths = paths
        self._threads = threads
        self._disk = disk
        self._fs_cache = fs_cache
        self._allowed = True

    async def place(self, cart: Cart) -> None:
        """Point ``cartuids/UID`` at this cart; a failure is only logged."""
        try:
            fs = self._fs_cache.get(cart.id)
            await self._disk.run(self._paths.link(cart), place_link, self._paths, cart, fs)
        except LinkOccupiedError as error:
            log.warn(
                "{link} is not a symbolic link, or belongs to another uid; it is left unchanged",
                link=error,
            )
        except LinksNotAllowedError as error:
            if self._allowed:
                log.warn("Links to carts cannot be created: {reason}", reason=error)
            self._allowed = False
        self._fs_cache.close(cart.id)

    async def remove(self, cart: Cart) -> None:
        """Remove the link of the cart's uid, if it points to this cart."""
        await self._disk.run(self._paths.link(cart), remove_link, self._paths, cart)

    async def link_duplicates(
        self, cart: Cart, duplicates: Sequence[DuplicateFile]
    ) -> tuple[list[DuplicateFile], str]:
        """Create files of the cart as hard links to their duplicates.

        Return those that exist now, and the error for the first of the others, if any.
        """
        linked: list[DuplicateFile] = []
        reason = ""
        fs = self._fs_cache.get(cart.id)
        for first in range(0, len(duplicates), BATCH):
            batch = duplicates[first : first + BATCH]
            more, why = await uncancellable(
                self._threads.run(link_duplicates, self._paths, cart, batch, fs)
            )
            linked += more
            reason = reason or why
        return linked, reason


def place_link(paths: VolumePaths, cart: Cart, fs: MkdirFS) -> None:
    """Point the link of the cart's uid at this cart, atomically.

    Nothing is written if it does so already: a cart on a disk that has become read-only can be
    verified and is ready again.
    """
    link = paths.link(cart)
    temporary = paths.temporary(cart.id, "link")
    with translate_disk_errors(link, paths.root), fs.retained():
        if fs.exists(link) and not _is_replaceable(fs, link, cart.uid):
            raise LinkOccupiedError(str(link))
        try:
            if _target(fs, link) == paths.link_target(cart).replace(os.sep, "/"):
                return
            with fs.entry(temporary) as (name, dir_fd):
                os.symlink(paths.link_target(cart), name, dir_fd=dir_fd)
            fs.replace(temporary, link)
        except (OSError, NotImplementedError) as error:
            with suppress(OSError):
                fs.unlink(temporary)
            if _refused(error):
                raise LinksNotAllowedError(str(error)) from error
            raise
        finally:
            with suppress(OSError):
                fs.rmdir(temporary.parent)


def _is_replaceable(fs: RootedFS, link: Path, uid: str) -> bool:
    """Whether it is a link, and not that of another uid whose name folds to this one's."""
    target = _target(fs, link)
    carts = None if target is None else _CART_TARGET.fullmatch(target)
    return target is not None and (carts is None or carts["name"] in (uid, f"{uid}.tar"))


def _target(fs: RootedFS, link: Path) -> str | None:
    """Return the target of a link; None if it is not a link or does not exist."""
    if not fs.exists(link) or not stat.S_ISLNK(fs.lstat(link).st_mode):
        return None
    with fs.entry(link) as (name, dir_fd):
        return os.readlink(name, dir_fd=dir_fd).replace(os.sep, "/")


def _refused(error: Exception) -> bool:
    if isinstance(error, OSError):
        windows = getattr(error, "winerror", None)
        return error.errno in _NOT_ALLOWED or windows == _PRIVILEGE_NOT_HELD
    return True


def link_duplicates(
    paths: VolumePaths,
    cart: Cart,
    duplicates: Sequence[DuplicateFile],
    fs: MkdirFS,
) -> tuple[list[DuplicateFile], str]:
    """Link ``duplicates`` into ``cart``; return those that are linked, and the first error.

    No error is fatal: a file that is not linked can be fetched.
    """
    linked: list[DuplicateFile] = []
    reason = ""
    with fs.retained(), RootedFS(paths.root) as source_fs:
        for duplicate in duplicates:
            try:
                staged = paths.staged(
                    duplicate.staged_cart, duplicate.staged_uid, duplicate.staged_path
                )
                final = paths.member(cart, duplicate.path)
                temporary = paths.temporary(cart.id, "duplicate")
                with translate_disk_errors(final, paths.root), source_fs.entry(staged) as there:
                    _link(there, duplicate.size, temporary, final, fs)
            except (OSError, NoSpace, DiskUnavailable, ValueError, NotImplementedError) as error:
                reason = reason or str(error)
            else:
                linked.append(duplicate)
    return linked, reason


def _link(staged: NameAt, size: int, temporary: Path, final: Path, fs: MkdirFS) -> None:
    """Make ``final`` a hard link to ``staged``, which must be a regular file of ``size`` bytes.

    An existing ``final`` is replaced; a symbolic link is not followed.
    """
    try:
        name, dir_fd = staged
        there = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        if not stat.S_ISREG(there.st_mode) or there.st_size != size:
            raise _not_recorded()
        try:
            with fs.entry(temporary) as (new, new_dir_fd):
                os.link(
                    name,
                    new,
                    src_dir_fd=dir_fd,
                    dst_dir_fd=new_dir_fd,
                    follow_symlinks=not HAS_DIR_FD,
                )
            if _identity(fs.lstat(temporary)) != _identity(there):
                raise _not_recorded()
            replace(temporary, final, fs)
        finally:
            # On success, too: rename(2) between two names of the same file leaves both.
            fs.unlink(temporary)
    except FileNotFoundError:
        fs.close()
        raise


def _identity(status: os.stat_result) -> tuple[int, ...]:
    """Return what identifies a file; a replacement may well get the same inode number."""
    return status.st_dev, status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns


def _not_recorded() -> OSError:
    return OSError(errno.EINVAL, "the file to link to differs from its record")
