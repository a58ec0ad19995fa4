"""Looking at what is staged, without changing it.  Everything here blocks: for threads."""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from cartd.disk_errors import passing_raised, raise_if_passing
from cartd.rooted_fs import Beneath


def measure(root: Path, paths: Sequence[Path | None]) -> list[tuple[int, int] | None]:
    """Size and whole Unix seconds of the modification time of each regular file, links apart."""
    with Beneath(root) as below:
        return [None if path is None else _measured(below, path) for path in paths]


def measure_tar(
    root: Path, path: Path, wanted: Mapping[str, int]
) -> list[tuple[int, int, int]] | None:
    """(position, size, mtime) of the members of a tar that ``wanted`` names, in that order.

    None if the tar cannot be read from its first header to its last, or lacks one of them.
    """
    found: dict[int, tuple[int, int]] = {}
    try:
        with (
            Beneath(root) as below,
            os.fdopen(below.open_file(path), "rb") as opened,
            tarfile.open(fileobj=opened, mode="r:") as tar,
        ):
            while (member := tar.next()) is not None:
                if member.isreg() and (position := wanted.get(member.name)) is not None:
                    found[position] = member.size, int(member.mtime // 1)
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
    except (OSError, ValueError, tarfile.TarError) as error:
        raise_if_passing(error)
        return None
    if len(found) < len(wanted):
        return None
    return [(position, *found[position]) for position in wanted.values()]


def measure_one(root: Path, path: Path) -> tuple[int, int] | None:
    with Beneath(root) as below:
        return _measured(below, path)


def _measured(below: Beneath, path: Path) -> tuple[int, int] | None:
    try:
        status = below.lstat(path)
    except (OSError, ValueError) as error:
        raise_if_passing(error)
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return status.st_size, int(status.st_mtime // 1)


def arriving(root: Path, incoming: Path) -> int:
    """Bytes of the files in ``incoming/ID``, and of the bundle of each such cart in ``root/ID``.

    A file of two names is one of another cart on its way into this one, and takes no room.
    """
    with Beneath(root) as below:
        return sum(
            status.st_size
            for of_cart, _ in entries(below, incoming)
            for directory in (incoming / of_cart, root / of_cart)
            for _, status in entries(below, directory)
            if stat.S_ISREG(status.st_mode) and status.st_nlink == 1
        )


def entries(below: Beneath, directory: Path) -> list[tuple[str, os.stat_result]]:
    """What is in a directory, links not followed; nothing if it is none, or is gone.

    Raises :class:`~cartd.errors.DiskUnavailable`, as all that looks at files here does.
    """
    found = []
    with (
        suppress(OSError),
        passing_raised(),
        below.directory(directory) as opened,
        os.scandir(opened) as scanned,
    ):
        for entry in scanned:
            with suppress(FileNotFoundError):
                found.append((entry.name, entry.stat(follow_symlinks=False)))
    return found
