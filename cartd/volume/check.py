"""Checks that a directory can be used as the volume, before the service starts.  Blocks."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from cartd.errors import ConfigError, NoSpace, VolumeNotWritable
from cartd.volume.mkdir_fs import MkdirFS
from cartd.volume.name_collisions import detect_folding, trial_directory
from cartd.volume.partial import DISK_FULL, PartialFile
from cartd.volume.paths import NAME_MAX, VolumePaths
from cartd.volume.rooted_fs import CREATE_FLAGS, RootedFS
from cartd.volume.trial_files import TRIAL, remove_leftovers, trial_file

_REFUSED_ERRNOS = frozenset({errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM})
"""Read-only, as after disk errors; I/O error; permissions lost, or immutable."""


def prepare(paths: VolumePaths) -> list[str]:
    """Create the fixed directories and test what staging does: write, sync, rename over a name.

    Return the limitations of the volume that do not prevent its use, one line each.  Raise
    :class:`ConfigError` with the path and the reason.  The parent of the volume is not created:
    where a disk is not mounted, nothing must be written to its mount point.
    """
    for directory, mode in ((paths.root, 0o777), (paths.links, 0o777), (paths.all_incoming, 0o700)):
        try:
            directory.mkdir(mode, exist_ok=True)
            if directory != paths.root and directory.is_symlink():
                raise unusable(directory, "it is a symbolic link")
        except FileExistsError:
            raise unusable(directory, "it is not a directory") from None
        except FileNotFoundError:
            raise unusable(directory, "the directory above it does not exist") from None
        except OSError as error:
            raise unusable(directory, error.strerror or str(error)) from None
    try:
        remove_leftovers(paths)
        _test_write(paths)
        return [*_limitations(paths)]
    except NoSpace:
        # A full volume does not prevent the start: eviction will free space.
        return []
    except OSError as error:
        if error.errno in DISK_FULL:
            return []
        raise unusable(paths.root, error.strerror or str(error)) from None


def check_reserve(root: Path, reserve: int) -> None:
    """Raise :class:`ConfigError` if no cart could ever be staged on this volume."""
    total = shutil.disk_usage(root).total
    if reserve >= total:
        raise ConfigError(
            f"volume_reserve: {reserve:,} bytes are to stay free on the file system of"
            f" {str(root)!r}, which has {total:,} in all: no cart could be staged; set it lower"
        )


def check_writable(paths: VolumePaths) -> None:
    """Raise :class:`VolumeNotWritable` if the file system or its disk rejects writes.

    A full disk and errors of this process alone do not count.
    """
    try:
        _test_write(paths)
    except NoSpace:
        pass
    except OSError as error:
        if error.errno in _REFUSED_ERRNOS:
            raise VolumeNotWritable(error.strerror or str(error)) from error


def _test_write(paths: VolumePaths) -> None:
    with trial_file(paths, TRIAL) as temporary:
        _replace_a_file(paths, temporary)


def _replace_a_file(paths: VolumePaths, temporary: Path) -> None:
    final = paths.root / temporary.name
    try:
        for content in (b"cartd", b"another"):
            trial = PartialFile(temporary, final, MkdirFS(paths.root))
            try:
                trial.append(content)
                trial.sync()
                trial.commit()
            finally:
                trial.discard()
        with RootedFS(paths.root) as fs:
            if fs.lstat(final).st_size != len(b"another"):
                raise OSError(errno.EIO, "a rename did not replace the file at its target")
    finally:
        with RootedFS(paths.root) as fs:
            fs.unlink(final)


def _limitations(paths: VolumePaths) -> Iterator[str]:
    if folding := detect_folding(paths):
        yield (
            f"The volume does not distinguish {folding}: a cart with two paths that are the same"
            " there ends in error, and only one of two such uids has a link in cartuids/"
        )
    with trial_directory(paths) as (fs, directory):
        first = directory / "file"
        os.close(fs.open(first, CREATE_FLAGS))
        try:
            with fs.entry(first) as (name, dir_fd):
                os.link(name, "link", src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        except (OSError, NotImplementedError) as error:
            yield (
                f"The volume has no hard links ({error}): a file of several carts is fetched and"
                " stored once for each of them"
            )
        if (longest := _longest_name(fs, directory)) < NAME_MAX:
            yield (
                f"The volume allows names of up to {longest} bytes: a cart with a longer one"
                " ends in error"
            )


def _longest_name(fs: RootedFS, directory: Path) -> int:
    """Return the length in bytes of the longest possible name, by binary search."""
    fits, fails = 1, NAME_MAX + 1
    length = NAME_MAX
    while fails - fits > 1:
        path = directory / ("n" * length)
        try:
            os.close(fs.open(path, CREATE_FLAGS))
        except OSError as error:
            if error.errno in DISK_FULL:
                raise NoSpace from error
            fails = length
        else:
            fs.unlink(path)
            fits = length
        length = (fits + fails) // 2
    return fits


def unusable(path: Path, reason: str) -> ConfigError:
    """Return the error for a path that cannot be used as part of the volume."""
    return ConfigError(f"volume_path: {str(path)!r} cannot be used: {reason}")
