"""Whether a directory can be the volume, tried out before the service starts.  Blocks."""

from __future__ import annotations

from pathlib import Path

from cartd.beneath import Beneath
from cartd.errors import ConfigError, NoSpace
from cartd.volume.directories import Directories
from cartd.volume.momentary import TRIAL, momentary, sweep
from cartd.volume.partial import PartialFile
from cartd.volume.paths import VolumePaths


def prepare(paths: VolumePaths) -> None:
    """Make the fixed directories and try what staging does: write, then rename out of incoming.

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
        sweep(paths)
        with momentary(paths, TRIAL) as temporary:
            _try_out(paths, temporary)
    except OSError as error:
        raise unusable(paths.root, error.strerror or str(error)) from None


def _try_out(paths: VolumePaths, temporary: Path) -> None:
    final = paths.root / temporary.name
    trial = PartialFile(temporary, final, Directories(paths.root))
    try:
        trial.append(b"cartd")
        trial.place()
    except NoSpace:
        # A full volume is no reason not to start: eviction will make room on it.
        pass
    finally:
        trial.discard()
        with Beneath(paths.root) as below:
            below.unlink(final)


def unusable(path: Path, reason: str) -> ConfigError:
    """What is to be raised for a path that cannot be used as part of the volume."""
    return ConfigError(f"volume_path: {str(path)!r} cannot be used: {reason}")
