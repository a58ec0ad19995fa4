"""Staged files under one more name, in another cart: hard links.  Blocks: for threads."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from cartd.errors import NoSpace
from cartd.model import Cart, Twin
from cartd.volume.partial import Directories, told_of
from cartd.volume.paths import VolumePaths


def share(
    paths: VolumePaths,
    cart: Cart,
    twins: Sequence[Twin],
    directories: Directories,
) -> tuple[list[Twin], str]:
    """Link the files of ``twins`` into ``cart``; which of them are, and why the first other is not.

    There are many reasons, and none of them matters: what is not linked can be fetched.
    """
    shared: list[Twin] = []
    reason = ""
    for twin in twins:
        try:
            staged = paths.staged(twin.staged_cart, twin.staged_uid, twin.staged_path)
            final = paths.member(cart, twin.path)
            with told_of(final, paths.root):
                _link(staged, twin.size, paths.temporary(cart.id, "twin"), final, directories)
        except (OSError, NoSpace, ValueError, NotImplementedError) as error:
            reason = reason or str(error)
        else:
            shared.append(twin)
    return shared, reason


def part(paths: VolumePaths, cart: Cart, members: Sequence[str]) -> None:
    """Take away those of the cart's files at the paths ``members`` that have another name."""
    for member in members:
        path = paths.member(cart, member)
        with told_of(path, paths.root), suppress(FileNotFoundError, NotADirectoryError):
            there = path.lstat()
            if stat.S_ISREG(there.st_mode) and there.st_nlink > 1:
                path.unlink()


def _link(staged: Path, size: int, temporary: Path, final: Path, directories: Directories) -> None:
    """Make ``final`` another name of ``staged``, which must be a regular file of ``size`` bytes.

    What is at ``final`` is replaced, a symbolic link not followed.
    """
    try:
        there = staged.lstat()
        if not stat.S_ISREG(there.st_mode) or there.st_size != size:
            raise _not_recorded()
        directories.make(temporary.parent)
        try:
            temporary.hardlink_to(staged)
            if _identity(temporary.lstat()) != _identity(there):
                raise _not_recorded()
            directories.make(final.parent)
            temporary.replace(final)
        finally:
            # Also when all is well: of two names of one file, rename(2) leaves both.
            temporary.unlink(missing_ok=True)
    except FileNotFoundError:
        directories.forget()
        raise


def _identity(status: os.stat_result) -> tuple[int, ...]:
    """What tells a file from one that took its place: that may well get the same number."""
    return status.st_dev, status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns


def _not_recorded() -> OSError:
    return OSError(errno.ESTALE, "what it would link to is not what was recorded")
