"""Sizes, times and names of files on the volume.  Everything here blocks: for threads."""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from cartd.errors import raise_if_transient, transient_raised
from cartd.volume.rooted_fs import RootedFS


def stat_files(root: Path, paths: Sequence[Path | None]) -> list[tuple[int, int] | None]:
    """Return size and mtime (whole Unix seconds) of each file; None if it is not a regular one."""
    with RootedFS(root) as fs:
        return [None if path is None else _stat_file(fs, path) for path in paths]


def stat_tar_members(
    root: Path, path: Path, wanted: Mapping[str, int]
) -> list[tuple[int, int, int]] | None:
    """Return (position, size, mtime) of the members of a tar in ``wanted``, in that order.

    None if the tar cannot be read from its first header to its last, or a member is missing.
    """
    found: dict[int, tuple[int, int]] = {}
    try:
        with (
            RootedFS(root) as fs,
            os.fdopen(fs.open_file(path), "rb") as opened,
            tarfile.open(fileobj=opened, mode="r:") as tar,
        ):
            while (member := tar.next()) is not None:
                if member.isreg() and (position := wanted.get(member.name)) is not None:
                    found[position] = member.size, int(member.mtime // 1)
                tar.members.clear()  # type: ignore[attr-defined]  # else it keeps all of them
    except (OSError, ValueError, tarfile.TarError) as error:
        raise_if_transient(error)
        return None
    if len(found) < len(wanted):
        return None
    return [(position, *found[position]) for position in wanted.values()]


def stat_file(root: Path, path: Path) -> tuple[int, int] | None:
    with RootedFS(root) as fs:
        return _stat_file(fs, path)


def _stat_file(fs: RootedFS, path: Path) -> tuple[int, int] | None:
    try:
        status = fs.lstat(path)
    except (OSError, ValueError) as error:
        raise_if_transient(error)
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return status.st_size, int(status.st_mtime // 1)


def incoming_bytes(root: Path, incoming: Path) -> int:
    """Return the bytes of the files in ``incoming/ID`` and of the bundles of these carts.

    A file with two names is being linked from another cart, and takes no space of its own.
    """
    with RootedFS(root) as fs:
        return sum(
            status.st_size
            for of_cart, _ in list_entries(fs, incoming)
            for directory in (incoming / of_cart, root / of_cart)
            for _, status in list_entries(fs, directory)
            if stat.S_ISREG(status.st_mode) and status.st_nlink == 1
        )


def list_entries(fs: RootedFS, directory: Path) -> list[tuple[str, os.stat_result]]:
    """Return the entries of a directory, links not followed; none if it is not a directory.

    Raises :class:`~cartd.errors.DiskUnavailable`, as all functions here do.
    """
    found = []
    with (
        suppress(OSError),
        transient_raised(),
        fs.directory(directory) as opened,
        os.scandir(opened) as scanned,
    ):
        for entry in scanned:
            with suppress(FileNotFoundError):
                found.append((entry.name, entry.stat(follow_symlinks=False)))
    return found
