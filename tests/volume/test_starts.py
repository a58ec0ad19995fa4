"""Trial files that starts write to the volume, and their leftovers after a kill."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cartd.errors import ConfigError
from cartd.volume import locks
from cartd.volume.file_system import prepare, write_volume_number
from cartd.volume.identity import read_volume_number
from cartd.volume.incoming import PartialFile, remove_leftovers, trial_file
from cartd.volume.paths import VolumePaths

KILLED = """
import os, signal, sys
from pathlib import Path
from cartd.volume.file_system import prepare
from cartd.volume.file_system import write_volume_number
from cartd.volume.incoming import PartialFile
from cartd.volume.paths import VolumePaths

method, root = sys.argv[1], Path(sys.argv[2])
setattr(PartialFile, method, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
"""
TRYING = f"{KILLED}prepare(VolumePaths(root))"
MARKING = f"{KILLED}write_volume_number(root, 1)"
HEX = "0123456789abcdef"


@pytest.fixture
def paths(tmp_path: Path) -> VolumePaths:
    return VolumePaths(tmp_path / "volume")


def left(paths: VolumePaths) -> list[str]:
    return sorted(
        str(path.relative_to(paths.root)) for path in paths.root.rglob("*") if path.is_file()
    )


@pytest.mark.parametrize(
    ("program", "method", "where"),
    [
        (TRYING, "commit", "incoming/.trial-"),
        (TRYING, "discard", ".trial-"),
        (MARKING, "commit", "incoming/.cartd-volume-"),
    ],
)
def test_a_start_removes_what_a_killed_one_has_left(
    paths: VolumePaths, program: str, method: str, where: str
) -> None:
    prepare(paths)
    command = [sys.executable, "-c", program, method, str(paths.root)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    [name] = left(paths)
    assert name.startswith(where)

    prepare(paths)
    assert left(paths) == []


def test_nothing_else_is_removed(paths: VolumePaths) -> None:
    prepare(paths)
    write_volume_number(paths.root, 7)
    names = [f".trial-{HEX}x", f"trial-{HEX}", ".cartd-volume-1", f"incoming/.other-{HEX}"]
    for name in names:
        (paths.root / name).touch()

    prepare(paths)
    assert left(paths) == sorted([".cartd-volume", *names])


def test_what_another_start_is_writing_stays(
    paths: VolumePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = PartialFile.commit

    def swept(partial: PartialFile, **how: bool) -> None:
        remove_leftovers(paths)
        commit(partial, **how)

    monkeypatch.setattr(PartialFile, "commit", swept)
    prepare(paths)
    write_volume_number(paths.root, 7)
    assert read_volume_number(paths.root) == 7

    with trial_file(paths, ".trial") as mine:
        mine.touch()
        remove_leftovers(paths)
        assert mine.exists()
    remove_leftovers(paths)
    assert not mine.exists()


def test_a_directory_locked_by_another_start_is_named(
    paths: VolumePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(paths)
    monkeypatch.setattr(locks, "ATTEMPTS", 1)
    with (
        locks.exclusive_lock(paths.all_incoming),
        pytest.raises(ConfigError, match=r"volume_path: .* another process"),
    ):
        prepare(paths)
