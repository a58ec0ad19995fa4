"""Checks at the start that the volume and the database belong together.

Strategy: a random number is written to both when they are new.  If the numbers differ or one is
missing, the disk may not be mounted, or the volume may have another database's carts: then nothing
is created, written or removed.  All functions block: they are for the start and the commands.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

from cartd.errors import ConfigError, NoSpace
from cartd.store import VolumeRecord, volume_record
from cartd.volume.file_system import prepare, unusable, write_volume_number
from cartd.volume.identity import holds_carts, read_volume_number
from cartd.volume.paths import VolumePaths


def _discard(_line: str) -> None:
    """Ignore the line."""


def bind_volume(
    url: str, root: Path, *, force: bool = False, report: Callable[[str], object] = _discard
) -> int | None:
    """Prepare the volume at ``root`` for the database; return its identity number.

    None if the disk is too full to write it: that is retried at the next start.  ``force``: make it
    the volume of this database, whatever it was.  ``report`` is called with each warning about the
    volume.

    :raises ConfigError: it is not the volume of this database, or it cannot be used.
    """
    try:
        with volume_record(url) as record:
            return _bind(record, root, force, report)
    except OSError as error:
        raise unusable(root, error.strerror or str(error)) from None


def _bind(
    record: VolumeRecord, root: Path, force: bool, report: Callable[[str], object]
) -> int | None:
    there = read_volume_number(root)
    if not force:
        _check_match(record, there, root)
    for line in prepare(VolumePaths(root)):
        report(line)
    known = record.number
    number = secrets.randbits(31) if known is None else known
    if there != number:
        try:
            write_volume_number(root, number)
        except NoSpace:
            return None
    if known is None:
        record.write(number)
    return number


def _check_match(record: VolumeRecord, there: int | None, root: Path) -> None:
    known = record.number
    if there == known:
        return
    if known is not None and record.has_carts:
        raise ConfigError(
            f"volume_path: {str(root)!r} is not the volume of this database (is it mounted?);"
            " to use it anyway, run cartd-cmd bind-volume"
        )
    if there is not None and holds_carts(root):
        raise ConfigError(
            f"volume_path: {str(root)!r} has carts of another database (is the database right?);"
            " to use it anyway, run cartd-cmd bind-volume"
        )
