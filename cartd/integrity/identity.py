"""That a volume and a database belong together, made sure of before anything else is done.

Strategy: a number, drawn when both are new, is written to either.  Where it differs, or one
has none, the disk may not be mounted, or the volume may hold another database's carts: then nothing
is made, written or removed.  Everything here blocks: for the start and the commands.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

from cartd.errors import ConfigError, NoSpace
from cartd.store import VolumeRecord, volume_record
from cartd.volume.check import prepare, unusable
from cartd.volume.identity import holds_carts, read_volume_number, write_volume_number
from cartd.volume.paths import VolumePaths


def _discard(_line: str) -> None:
    """Is told."""


def bind_volume(
    url: str, root: Path, *, adopt: bool = False, report: Callable[[str], object] = _discard
) -> int | None:
    """Prepare the volume at ``root`` for the database; the number that it is known by.

    None if the disk is too full for even that: it is tried again at the next start.  ``adopt``:
    it is the database's volume from now on, whatever it was.  ``report`` is given what a site
    should know of the volume, a line each.

    :raises ConfigError: it is not the database's volume, or cannot be used; says what to do.
    """
    try:
        with volume_record(url) as record:
            return _bind(record, root, adopt, report)
    except OSError as error:
        raise unusable(root, error.strerror or str(error)) from None


def _bind(
    record: VolumeRecord, root: Path, adopt: bool, report: Callable[[str], object]
) -> int | None:
    there = read_volume_number(root)
    if not adopt:
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
            f"volume_path: {str(root)!r} is not the volume that this database's carts are on"
            " (is it mounted?); cartd-cmd import makes it that, if it shall be"
        )
    if there is not None and holds_carts(root):
        raise ConfigError(
            f"volume_path: {str(root)!r} has carts of another database (is the database the right"
            " one?); cartd-cmd import makes it this database's volume, if it shall be"
        )
