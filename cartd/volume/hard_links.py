"""Hard links to staged files of other carts.  Blocks: for threads."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from cartd.errors import DiskUnavailable, NoSpace
from cartd.model import Cart, DuplicateFile
from cartd.volume.mkdir_fs import MkdirFS
from cartd.volume.partial import replace, translate_disk_errors
from cartd.volume.paths import VolumePaths
from cartd.volume.rooted_fs import HAS_DIR_FD, NameAt, RootedFS


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
