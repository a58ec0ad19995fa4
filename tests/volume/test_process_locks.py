"""A process is alive as long as its lock file is locked, however it ends."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cartd.volume.locks import NO_BOOT_ID, ProcessLocks, boot_id
from tests.support.without_flock import refuse

HOLD = """
import sys
from pathlib import Path
from cartd.volume.locks import ProcessLocks
process_locks = ProcessLocks(Path(sys.argv[1]))
process_locks.start()
print(process_locks.name, flush=True)
sys.stdin.read()
"""


def test_a_killed_process_is_known_to_be_dead(tmp_path: Path) -> None:
    mine = ProcessLocks(tmp_path)
    mine.start()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        name = other.stdout.readline().strip()
        assert mine.dead_among({name, mine.name}) == set()
        other.kill()
        other.wait()
        assert mine.dead_among({name, mine.name}) == {name}
        assert mine.dead_among({name}) == {name}
    mine.stop()


def test_locks_of_dead_processes_are_removed_at_start(tmp_path: Path) -> None:
    first = ProcessLocks(tmp_path)
    first.start()
    stale = tmp_path / f"{first.name[:-8]}0badcafe.lock"
    stale.touch()
    second = ProcessLocks(tmp_path)
    second.start()
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted([first.name, second.name])
    first.stop()
    second.stop()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("host", "boot", "local"),
    [
        pytest.param("here", "0badcafe", True, id="this process's neighbour"),
        pytest.param("6f3c0de1a2b3", "0badcafe", True, id="a container of another name"),
        pytest.param("here", "12345678", True, id="before the machine was restarted"),
        pytest.param("here", "0", True, id="where there are no boot ids"),
        pytest.param("there", "12345678", False, id="another machine"),
        pytest.param("there", "0", False, id="another machine without a boot id"),
    ],
)
def test_a_dead_process_is_detected_on_the_same_machine(
    tmp_path: Path, host: str, boot: str, local: bool
) -> None:
    mine = ProcessLocks(tmp_path, host="here", boot="0badcafe")
    mine.start()
    other = ProcessLocks(tmp_path, host=host, boot=boot)
    other.start()
    assert mine.dead_among({other.name}) == set()
    other.stop()
    assert mine.dead_among({other.name}) == ({other.name} if local else set())
    mine.stop()


def test_without_boot_ids_the_host_name_identifies_the_machine(tmp_path: Path) -> None:
    mine = ProcessLocks(tmp_path, host="here", boot=NO_BOOT_ID)
    dead = {f"{host}-{NO_BOOT_ID}-12-0badcafe" for host in ("here", "there")}
    assert mine.dead_among(dead) == {f"here-{NO_BOOT_ID}-12-0badcafe"}


def test_a_process_without_locks_is_not_considered_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patching:
        patching.setattr(fcntl, "flock", refuse)
        unlocked, other = ProcessLocks(tmp_path), ProcessLocks(tmp_path)
        unlocked.start()
        other.start()
        assert unlocked.no_locks_reason == "Function not implemented"
        assert other.dead_among({unlocked.name}) == set()
        other.stop()
        assert unlocked.dead_among({other.name}) == {other.name}
    locked = ProcessLocks(tmp_path)
    locked.start()
    assert locked.no_locks_reason == ""
    assert locked.dead_among({unlocked.name}) == set()
    unlocked.stop()
    assert locked.dead_among({unlocked.name}) == {unlocked.name}
    locked.stop()


@pytest.mark.parametrize("then", ["holds it still", "has removed it"])
def test_a_starting_process_is_not_considered_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    """Another process checks the new file between its creation and its lock."""
    lock = fcntl.flock
    opened: list[int] = []

    def flock_after_check(fd: int, how: int) -> None:
        monkeypatch.undo()
        [path] = tmp_path.iterdir()
        opened.append(os.open(path, os.O_RDWR))
        lock(opened[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        if then == "has removed it":
            path.unlink()
            os.close(opened.pop())
        lock(fd, how)

    monkeypatch.setattr(fcntl, "flock", flock_after_check)
    mine, other = ProcessLocks(tmp_path), ProcessLocks(tmp_path)
    mine.start()
    for fd in opened:
        os.close(fd)
    other.start()
    assert other.dead_among({mine.name}) == set()
    assert [path.stem for path in tmp_path.iterdir() if path.stem == mine.name] == [mine.name]
    mine.stop()
    other.stop()


def test_a_kernel_has_one_name_for_all_its_processes() -> None:
    asked = [
        sys.executable,
        "-c",
        "from cartd.volume.locks import boot_id; print(boot_id())",
    ]
    printed = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    assert printed == boot_id()
    assert re.fullmatch("[0-9a-f]{8}|0", printed)


@pytest.mark.parametrize(
    "name", ["", "here", "here-12-0badcafe", "../here-0badcafe-1-0badcafe", "here-0badcafe-x-y"]
)
def test_an_invalid_name_is_not_considered_dead(tmp_path: Path, name: str) -> None:
    (tmp_path / "here-0badcafe-1-0badcafe.lock").touch()
    (tmp_path / "holders").mkdir()
    process_locks = ProcessLocks(tmp_path / "holders", host="here", boot="0badcafe")
    assert process_locks.dead_among({name}) == set()
    assert (tmp_path / "here-0badcafe-1-0badcafe.lock").exists()


def test_a_host_name_cannot_lead_out_of_the_directory(tmp_path: Path) -> None:
    process_locks = ProcessLocks(tmp_path / "holders", host="../up")
    process_locks.start()
    assert [path.stem for path in (tmp_path / "holders").iterdir()] == [process_locks.name]
    process_locks.stop()
