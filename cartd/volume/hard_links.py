"""Staged files under one more name, in another cart: hard links.  Blocks: for threads."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from cartd.errors import DiskUnavailable, NoSpace
from cartd.model import Cart, DuplicateFile
from cartd.rooted_fs import AT, Beneath, Name
from cartd.volume.mkdir_fs import Directories
from cartd.volume.partial import replace, told_of
from cartd.volume.paths import VolumePaths


def share(
    paths: VolumePaths,
    cart: Cart,
    twins: Sequence[DuplicateFile],
    directories: Directories,
) -> tuple[list[DuplicateFile], str]:
    """Link the files of ``twins`` into ``cart``; which of them are, and why the first other is not.

    There are many reasons, and none of them matters: what is not linked can be fetched.
    """
    shared: list[DuplicateFile] = []
    reason = ""
    with directories.needed(), Beneath(paths.root) as others:
        for twin in twins:
            try:
                staged = paths.staged(twin.staged_cart, twin.staged_uid, twin.staged_path)
                final = paths.member(cart, twin.path)
                temporary = paths.temporary(cart.id, "twin")
                with told_of(final, paths.root), others.entry(staged) as there:
                    _link(there, twin.size, temporary, final, directories)
            except (OSError, NoSpace, DiskUnavailable, ValueError, NotImplementedError) as error:
                reason = reason or str(error)
            else:
                shared.append(twin)
    return shared, reason


def _link(staged: Name, size: int, temporary: Path, final: Path, directories: Directories) -> None:
    """Make ``final`` another name of ``staged``, which must be a regular file of ``size`` bytes.

    What is at ``final`` is replaced, a symbolic link not followed.
    """
    try:
        name, at = staged
        there = os.stat(name, dir_fd=at, follow_symlinks=False)
        if not stat.S_ISREG(there.st_mode) or there.st_size != size:
            raise _not_recorded()
        try:
            with directories.entry(temporary) as (new, new_at):
                os.link(name, new, src_dir_fd=at, dst_dir_fd=new_at, follow_symlinks=not AT)
            if _identity(directories.lstat(temporary)) != _identity(there):
                raise _not_recorded()
            replace(temporary, final, directories)
        finally:
            # Also when all is well: of two names of one file, rename(2) leaves both.
            directories.unlink(temporary)
    except FileNotFoundError:
        directories.close()
        raise


def _identity(status: os.stat_result) -> tuple[int, ...]:
    """What tells a file from one that took its place: that may well get the same number."""
    return status.st_dev, status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns


def _not_recorded() -> OSError:
    return OSError(errno.EINVAL, "what it would link to is not what was recorded")
