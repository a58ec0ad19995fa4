"""Whether a directory can be the volume, tried out before the service starts.  Blocks."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from cartd.errors import ConfigError, NoSpace, VolumeNotWritable
from cartd.rooted_fs import CREATE_FLAGS, RootedFS
from cartd.volume.mkdir_fs import MkdirFS
from cartd.volume.name_collisions import detect_folding, trial_directory
from cartd.volume.partial import DISK_FULL, PartialFile
from cartd.volume.paths import NAME_MAX, VolumePaths
from cartd.volume.trial_files import TRIAL, remove_leftovers, trial_file

_REFUSED_ERRNOS = frozenset({errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM})
"""Read-only, as after errors of the disk; broken; not ours any more, or immutable."""


def prepare(paths: VolumePaths) -> list[str]:
    """Make the fixed directories and try what staging does: write, sync, rename over a name.

    What a site should know of the volume that is no reason not to use it, a line each.
    Raises :class:`ConfigError` that names the path and the reason.  The volume's own parent is not
    made: where a disk is not mounted, nothing must be written in its place.
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
        # A full volume is no reason not to start: eviction will make room on it.
        return []
    except OSError as error:
        if error.errno in DISK_FULL:
            return []
        raise unusable(paths.root, error.strerror or str(error)) from None


def check_reserve(root: Path, reserve: int) -> None:
    """Raises :class:`ConfigError` if no cart could ever be staged on this volume."""
    total = shutil.disk_usage(root).total
    if reserve >= total:
        raise ConfigError(
            f"volume_reserve: {reserve:,} bytes are to stay free on the file system of"
            f" {str(root)!r}, which has {total:,} in all: no cart could be staged; set it lower"
        )


def check_writable(paths: VolumePaths) -> None:
    """Raises :class:`VolumeNotWritable` if the file system or its disk lets nobody write.

    That it is full, or that this process cannot try now, does not say so.
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
                raise OSError(errno.EIO, "a file is not what was renamed over it")
    finally:
        with RootedFS(paths.root) as fs:
            fs.unlink(final)


def _limitations(paths: VolumePaths) -> Iterator[str]:
    if folding := detect_folding(paths):
        yield (
            f"The volume does not tell {folding} apart: a cart with two paths that are one there"
            " ends in error, and of two such uids one has no link in cartuids/"
        )
    with trial_directory(paths) as (fs, directory):
        first = directory / "file"
        os.close(fs.open(first, CREATE_FLAGS))
        try:
            with fs.entry(first) as (name, dir_fd):
                os.link(name, "link", src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        except (OSError, NotImplementedError) as error:
            yield (
                f"The volume makes no hard links ({error}): a file of several carts is fetched and"
                " kept for each of them"
            )
        if (longest := _longest_name(fs, directory)) < NAME_MAX:
            yield (
                f"The volume takes names of up to {longest} bytes: a cart with a longer one"
                " ends in error"
            )


def _longest_name(fs: RootedFS, directory: Path) -> int:
    """Bytes of the longest name that can be had, by halves."""
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
    """What is to be raised for a path that cannot be used as part of the volume."""
    return ConfigError(f"volume_path: {str(path)!r} cannot be used: {reason}")
