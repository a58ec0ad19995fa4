"""Whether a directory can be the volume, tried out before the service starts.  Blocks."""

from __future__ import annotations

import os
from pathlib import Path

from cartd.errors import ConfigError, NoSpace
from cartd.volume.partial import Directories, PartialFile
from cartd.volume.paths import VolumePaths


def prepare(paths: VolumePaths) -> None:
    """Make the fixed directories and try what staging does: write, then rename out of incoming.

    Raises :class:`ConfigError` that names the path and the reason.  The volume's own parent is not
    made: where a disk is not mounted, nothing must be written in its place.
    """
    for directory, mode in ((paths.root, 0o777), (paths.links, 0o777), (paths.all_incoming, 0o700)):
        try:
            directory.mkdir(mode, exist_ok=True)
        except FileExistsError:
            raise unusable(directory, "it is not a directory") from None
        except FileNotFoundError:
            raise unusable(directory, "the directory above it does not exist") from None
        except OSError as error:
            raise unusable(directory, error.strerror or str(error)) from None
    try:
        _try_out(paths)
    except OSError as error:
        raise unusable(paths.root, error.strerror or str(error)) from None


def _try_out(paths: VolumePaths) -> None:
    temporary = paths.all_incoming / f".trial-{os.getpid()}"
    final = paths.root / temporary.name
    for left in (temporary, final):
        left.unlink(missing_ok=True)
    trial = PartialFile(temporary, final, paths.root, Directories(paths.root))
    try:
        trial.append(b"cartd")
        trial.place()
    except NoSpace:
        # A full volume is no reason not to start: eviction will make room on it.
        pass
    finally:
        trial.discard()
        final.unlink(missing_ok=True)


def unusable(path: Path, reason: str) -> ConfigError:
    """What is to be raised for a path that cannot be used as part of the volume."""
    return ConfigError(f"volume_path: {str(path)!r} cannot be used: {reason}")
