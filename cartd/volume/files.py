"""Looking at what is staged, without changing it.  Everything here blocks: for threads."""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

READ_FILE = (
    os.O_RDONLY
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)  # a FIFO that somebody left there must not hold the thread
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)


def open_to_read(path: str, _flags: int) -> int:
    """An opener for :func:`open`."""
    return os.open(path, READ_FILE)


def measure(paths: Sequence[Path | None]) -> list[tuple[int, int] | None]:
    """Size and whole Unix seconds of the modification time of each regular file, links apart."""
    return [None if path is None else measure_one(path) for path in paths]


def measure_tar(path: Path, wanted: Mapping[str, int]) -> list[tuple[int, int, int]] | None:
    """(position, size, mtime) of the members of a tar that ``wanted`` names, in that order.

    None if the tar cannot be read from its first header to its last, or lacks one of them.
    """
    found: dict[int, tuple[int, int]] = {}
    try:
        with (
            open(path, "rb", opener=open_to_read) as opened,
            tarfile.open(fileobj=opened, mode="r:") as tar,
        ):
            while (member := tar.next()) is not None:
                if member.isreg() and (position := wanted.get(member.name)) is not None:
                    found[position] = member.size, int(member.mtime // 1)
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
    except (OSError, ValueError, tarfile.TarError):
        return None
    if len(found) < len(wanted):
        return None
    return [(position, *found[position]) for position in wanted.values()]


def measure_one(path: Path) -> tuple[int, int] | None:
    status = _regular(path)
    return None if status is None else (status.st_size, int(status.st_mtime // 1))


def _regular(path: Path) -> os.stat_result | None:
    try:
        status = path.lstat()
    except (OSError, ValueError):
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def arriving(root: Path, incoming: Path) -> int:
    """Bytes of the files in ``incoming/ID``, and of the bundle of each such cart in ``root/ID``.

    A file of two names is one of another cart on its way into this one, and takes no room.
    """
    total = 0
    for of_cart in _entries(incoming):
        found = map(_regular, [*_entries(of_cart), *_entries(root / of_cart.name)])
        total += sum(one.st_size for one in filter(None, found) if one.st_nlink == 1)
    return total


def _entries(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:
        return []  # it went away, or is no directory
