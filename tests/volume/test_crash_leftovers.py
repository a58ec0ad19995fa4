"""Which files the volume reports as intact, above all after a crash."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred

from cartd.model import CartFile
from cartd.volume import FileFacts, Volume
from cartd.volume.verify import BATCH
from tests.support.volume_parts import (
    BODY,
    CART,
    EMPTY,
    HeldThreads,
    InThisThread,
    a_file,
    begin,
    everything,
    failure_of,
    has,
    outcome,
    result_of,
    stage,
)
from tests.support.volume_writer import written_by


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "volume"


@pytest.fixture
def volume(root: Path) -> Volume:
    volume = Volume(root, InThisThread())
    volume.prepare()
    return volume


@pytest.mark.parametrize(
    ("found", "there"),
    [
        pytest.param(BODY, True, id="right"),
        pytest.param(BODY[:-1] + b"?", False, id="another byte"),
        pytest.param(BODY[:-1], False, id="too short"),
        pytest.param(BODY + b"?", False, id="too long"),
        pytest.param(None, False, id="not there"),
    ],
)
def test_a_file_is_there_when_size_and_hash_are_right(
    volume: Volume, found: bytes | None, there: bool
) -> None:
    file = a_file(BODY)
    path = volume.paths.member(CART, file.path)
    path.parent.mkdir(parents=True)
    if found is not None:
        path.write_bytes(found)
    assert result_of(has(volume, file)) is there


def test_intact_files_are_read_from_the_disk_not_the_page_cache(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten: list[tuple[int, int, int]] = []
    monkeypatch.setattr("os.posix_fadvise", lambda _, *what: forgotten.append(what))
    file = a_file(BODY)
    stage(volume, file)

    async def read(_: int) -> None:
        pass

    assert result_of(volume.verification.faults(CART, [file], read)) == [""]
    assert forgotten == []
    assert result_of(has(volume, file))
    assert forgotten == [(0, 0, os.POSIX_FADV_DONTNEED)]


@pytest.mark.parametrize(
    "changed",
    [{"hash_sum": ""}, {"size": None}, {"path": "../b.dat"}],
    ids=["no hash", "no size", "no path"],
)
def test_a_file_without_hash_or_size_is_not_intact(volume: Volume, changed: dict[str, Any]) -> None:
    known = a_file(BODY)
    stage(volume, known)
    assert result_of(has(volume, known))
    values = {name: getattr(known, name) for name in CartFile.__dataclass_fields__} | changed
    assert not result_of(has(volume, CartFile(**values)))


@pytest.mark.parametrize("kind", ["link", "pipe", "directory"])
def test_only_a_regular_file_is_intact(volume: Volume, tmp_path: Path, kind: str) -> None:
    file = a_file(b"")
    path = volume.paths.member(CART, file.path)
    path.parent.mkdir(parents=True)
    (tmp_path / "target").touch()
    if kind == "link":
        path.symlink_to(tmp_path / "target")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    assert not result_of(has(volume, file))
    assert result_of(volume.verification.stat_files(CART, [file])) == [None]


def test_a_killed_process_leaves_nothing_under_the_final_name(root: Path) -> None:
    root.mkdir()
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.volume_writer", "kill", str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        process.kill()
    volume = Volume(root, InThisThread())
    left = list((root / "incoming" / "7").iterdir())
    assert [path.stat().st_size > 0 for path in left] == [True]
    assert not volume.paths.member(CART, "a/b.dat").exists()
    assert result_of(volume.orphans.cart_ids()) == [7]
    result_of(volume.incoming.clear(7))
    assert result_of(volume.orphans.cart_ids()) == []
    assert everything(root) == EMPTY


def test_a_system_limit_is_reported_with_the_relative_path(root: Path) -> None:
    printed = written_by("limit", root)
    assert f"{errno.EFBIG} " in printed
    assert "'7/mine/a/b.dat'" in printed
    assert [path for path in root.rglob("*") if path.is_file()] == []


def test_the_ids_on_the_volume_are_found_and_nothing_else(volume: Volume, root: Path) -> None:
    for name in ("12", "3", "incoming/44", "007", "lost+found", "1" * 30, "٣"):
        (root / name).mkdir()
    (root / "5").touch()
    assert result_of(volume.orphans.cart_ids()) == [3, 12, 44]


def test_files_are_stated_in_their_order(volume: Volume) -> None:
    files = [a_file(bytes(n % 7), f"d/{n}", position=n) for n in range(BATCH + 5)]
    for file in files[::2]:
        stage(volume, file, bytes(file.size or 0))
    assert result_of(volume.verification.stat_files(CART, files)) == [
        None if file.position % 2 else FileFacts(file.position, file.size or 0, file.mtime or 0)
        for file in files
    ]


def test_a_path_that_cannot_be_in_the_tree_has_no_stat(volume: Volume) -> None:
    assert result_of(volume.verification.stat_files(CART, [a_file(b"", "../x")])) == [None]


def test_a_cancelled_verification_stops_hashing(root: Path) -> None:
    threads = HeldThreads()
    volume = Volume(root, threads)
    volume.prepare()
    file = a_file(BODY)
    path = volume.paths.member(CART, file.path)
    path.parent.mkdir(parents=True)
    path.write_bytes(BODY)
    looking = begin(has(volume, file))
    threads.run_all()
    assert looking == [True]
    cancelled = Deferred.fromCoroutine(has(volume, file))
    failed = outcome(cancelled)
    cancelled.cancel()
    assert isinstance(failure_of(failed), CancelledError)
    # It was not read to its end, so it is not reported as intact.
    assert threads.results_of_all() == [(len(BODY), None)]
