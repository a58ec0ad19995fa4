"""Errors while a file is received and written."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from pathlib import Path

import pytest

from cartd.checksum import Mismatch
from cartd.errors import NoSpace
from cartd.volume.incoming import PartialFile
from cartd.volume.rooted_fs import MkdirFS
from tests.support.incoming_place import LARGE, SMALL, FailingWrites, Place
from tests.support.volume_parts import (
    HeldThreads,
    InThisThread,
    RecordingProducer,
    open_below,
    result_of,
)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, InThisThread(), InThisThread())


@pytest.fixture
def held(tmp_path: Path) -> tuple[Place, HeldThreads]:
    threads = HeldThreads()
    return Place(tmp_path, threads, threads), threads


def test_a_byte_too_many_stops_the_producer_at_once(place: Place) -> None:
    incoming, producer = place.incoming(SMALL), RecordingProducer()
    incoming.registerProducer(producer, True)
    incoming.write(LARGE)
    assert producer.calls == ["stop"]
    incoming.write(LARGE)
    incoming.unregisterProducer()
    assert isinstance(incoming.failure, Mismatch)
    with pytest.raises(Mismatch):
        result_of(incoming.finish())
    assert place.files() == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT], ids=["disk", "disk quota"])
def test_a_full_disk_raises_no_space(
    place: Place, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "write", FailingWrites(number))
    incoming, producer = place.incoming(LARGE), RecordingProducer()
    incoming.registerProducer(producer, True)
    incoming.write(LARGE)
    assert producer.calls == ["stop"]
    with pytest.raises(NoSpace):
        result_of(incoming.finish())
    assert place.files() == []
    assert open_below(place.root) == 0


def test_a_disk_error_keeps_its_errno_and_names_the_file(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "write", FailingWrites(errno.EIO))
    incoming = place.incoming(LARGE)
    incoming.write(LARGE)
    with pytest.raises(OSError, match=r"7/mine/a/b\.dat") as caught:
        result_of(incoming.finish())
    assert caught.value.errno == errno.EIO
    assert str(place.root) not in str(caught.value)


def test_a_producer_that_comes_after_the_failure_is_stopped(place: Place) -> None:
    incoming, producer = place.incoming(b""), RecordingProducer()
    incoming.write(LARGE)
    incoming.registerProducer(producer, True)
    assert producer.calls == ["stop"]


def test_a_second_producer_or_one_that_is_pulled_is_refused(place: Place) -> None:
    incoming = place.incoming(b"")
    with pytest.raises(TypeError):
        incoming.registerProducer(RecordingProducer(), False)
    incoming.registerProducer(RecordingProducer(), True)
    with pytest.raises(RuntimeError):
        incoming.registerProducer(RecordingProducer(), True)
    incoming.unregisterProducer()
    incoming.registerProducer(RecordingProducer(), True)


def test_an_absurd_modification_time_fails_and_leaves_nothing(place: Place) -> None:
    incoming = place.incoming(b"", mtime=10**30)
    with pytest.raises(OSError, match="modification time 1000000"):
        result_of(incoming.finish())
    assert place.files() == []


def test_a_link_in_place_of_the_file_is_replaced_not_followed(place: Place) -> None:
    outside = place.root / "outside"
    outside.write_bytes(b"precious")
    place.final.parent.mkdir(parents=True)
    place.final.symlink_to(outside)
    incoming = place.incoming(SMALL)
    incoming.write(SMALL)
    result_of(incoming.finish())
    assert outside.read_bytes() == b"precious"
    assert not place.final.is_symlink()
    assert place.final.read_bytes() == SMALL


def test_a_link_in_the_place_of_a_directory_is_not_followed(place: Place) -> None:
    outside = place.root / "outside"
    outside.mkdir()
    place.final.parent.parent.mkdir(parents=True)
    place.final.parent.symlink_to(outside)
    with pytest.raises(NotADirectoryError):
        result_of(place.incoming(b"").finish())
    assert place.files() == [place.final.parent]


def test_directories_that_vanished_are_made_again(tmp_path: Path) -> None:
    directories = MkdirFS(tmp_path)
    for name in ("one", "two"):
        temporary = tmp_path / "incoming" / name
        PartialFile(temporary, tmp_path / name, directories).commit()
        (tmp_path / "incoming").rmdir()
    assert (tmp_path / "two").exists()


def test_a_vanished_directory_fails_one_file_and_is_made_again(tmp_path: Path) -> None:
    directories = MkdirFS(tmp_path)

    def place(name: str) -> None:
        final = tmp_path / "tree" / name
        PartialFile(tmp_path / "incoming" / name, final, directories).commit()

    with directories.retained():
        place("one")
        shutil.rmtree(tmp_path / "tree")
        with pytest.raises(FileNotFoundError, match="tree/two"):
            place("two")
        place("three")
    assert [path.name for path in (tmp_path / "tree").iterdir()] == ["three"]


def test_a_foreign_temporary_file_is_neither_used_nor_removed(place: Place) -> None:
    theirs = place.root / "incoming" / "7" / "0-x"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"theirs")
    with pytest.raises(FileExistsError):
        result_of(place.incoming(b"").finish())
    assert theirs.read_bytes() == b"theirs"
    assert place.files() == [theirs]


def test_bytes_after_the_failure_are_dropped(place: Place) -> None:
    incoming, late = place.incoming(b""), bytes(10)
    incoming.write(LARGE)
    before = sys.getrefcount(late)
    incoming.write(late)
    assert sys.getrefcount(late) == before
