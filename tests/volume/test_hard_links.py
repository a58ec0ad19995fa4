"""Hard links to files of other carts: complete and correct, or none at all."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred

from cartd.model import DuplicateFile
from cartd.volume import Volume
from cartd.volume.links import BATCH
from tests.support.volume_parts import (
    BODY,
    EMPTY,
    HeldThreads,
    InThisThread,
    a_cart,
    a_file,
    everything,
    failure_of,
    outcome,
    result_of,
    stage,
)

OLD, NEW = a_cart(3, "old"), a_cart(7, "new")


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    volume = Volume(tmp_path / "volume", InThisThread())
    volume.prepare()
    return volume


def duplicate(
    path: str = "there/too.dat", staged_path: str = "a/b.dat", size: int = len(BODY)
) -> DuplicateFile:
    sha1 = hashlib.sha1(BODY).hexdigest()
    return DuplicateFile(0, path, 4711, OLD.id, OLD.uid, staged_path, size, 5, "sha1", sha1)


def staged(volume: Volume) -> Path:
    """Return the one file of the old cart."""
    return stage(volume, a_file(BODY), cart=OLD)


def refused(volume: Volume, one: DuplicateFile | None = None) -> str:
    """Return why the file is not linked; check that nothing is left of it."""
    shared, reason = result_of(volume.links.link_duplicates(NEW, [one or duplicate()]))
    assert shared == []
    assert reason
    assert not any((volume.paths.tree(NEW).parents[1] / "incoming").rglob("*-*"))
    return reason


def test_a_file_gets_one_more_name(volume: Volume, tmp_path: Path) -> None:
    old = staged(volume)
    assert result_of(volume.links.link_duplicates(NEW, [duplicate()])) == ([duplicate()], "")
    new = volume.paths.member(NEW, "there/too.dat")
    assert new.samefile(old)
    assert new.stat().st_nlink == 2
    result_of(volume.removal.remove(OLD))
    assert new.read_bytes() == BODY
    result_of(volume.removal.remove(NEW))
    assert everything(tmp_path / "volume") == EMPTY


def test_a_link_that_is_there_already_is_made_again(volume: Volume) -> None:
    old = staged(volume)
    for _ in range(2):
        assert result_of(volume.links.link_duplicates(NEW, [duplicate()])) == ([duplicate()], "")
    assert old.stat().st_nlink == 2


def test_what_is_there_and_no_longer_right_is_replaced(volume: Volume) -> None:
    old = staged(volume)
    damaged = stage(volume, a_file(b"?", "there/too.dat"), b"?", NEW)
    assert result_of(volume.links.link_duplicates(NEW, [duplicate()]))[0] == [duplicate()]
    assert damaged.samefile(old)


def test_a_planted_symlink_is_replaced_and_not_followed(volume: Volume, tmp_path: Path) -> None:
    staged(volume)
    precious = tmp_path / "precious"
    precious.write_text("mine")
    new = volume.paths.member(NEW, "there/too.dat")
    new.parent.mkdir(parents=True)
    new.symlink_to(precious)
    assert result_of(volume.links.link_duplicates(NEW, [duplicate()]))[0] == [duplicate()]
    assert not new.is_symlink()
    assert (new.read_bytes(), precious.read_text()) == (BODY, "mine")


def test_a_planted_symlink_to_a_directory_is_removed(volume: Volume, tmp_path: Path) -> None:
    staged(volume)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    volume.paths.tree(NEW).mkdir(parents=True)
    (volume.paths.tree(NEW) / "there").symlink_to(elsewhere)
    (elsewhere / "precious").touch()
    assert result_of(volume.links.link_duplicates(NEW, [duplicate("there/too.dat")]))[0]
    assert [path.name for path in elsewhere.iterdir()] == ["precious"]
    assert volume.paths.member(NEW, "there/too.dat").read_bytes() == BODY


def test_a_directory_in_place_of_the_link_is_removed(volume: Volume) -> None:
    staged(volume)
    (volume.paths.member(NEW, "there/too.dat") / "deep").mkdir(parents=True)
    assert result_of(volume.links.link_duplicates(NEW, [duplicate("there/too.dat")]))[0]
    assert volume.paths.member(NEW, "there/too.dat").read_bytes() == BODY


def removed(old: Path, _: Path) -> None:
    old.unlink()


def cart_moved(old: Path, _: Path) -> None:
    old.parents[2].rename(old.parents[2].with_name("99"))


def longer(old: Path, _: Path) -> None:
    old.write_bytes(BODY + b"?")


def a_link(old: Path, elsewhere: Path) -> None:
    old.unlink()
    elsewhere.write_bytes(BODY)
    old.symlink_to(elsewhere)


def a_pipe(old: Path, _: Path) -> None:
    old.unlink()
    os.mkfifo(old)


def another(old: Path, elsewhere: Path) -> None:
    elsewhere.write_bytes(BODY)
    elsewhere.replace(old)


@pytest.mark.parametrize("change", [removed, cart_moved, longer, a_link, a_pipe])
def test_a_file_that_differs_from_its_record_is_not_linked(
    volume: Volume, tmp_path: Path, change: Callable[[Path, Path], None]
) -> None:
    change(staged(volume), tmp_path / "elsewhere")
    refused(volume)
    assert not volume.paths.member(NEW, "there/too.dat").exists()


@pytest.mark.parametrize("change", [removed, a_link, a_pipe, another])
def test_a_file_changed_between_stat_and_link_is_not_linked(
    volume: Volume,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path, Path], None],
) -> None:
    old = staged(volume)
    link = os.link

    def after_the_change(*args: Any, **more: Any) -> None:
        change(old, tmp_path / "elsewhere")
        link(*args, **more)

    monkeypatch.setattr(os, "link", after_the_change)
    refused(volume)
    assert not os.path.lexists(volume.paths.member(NEW, "there/too.dat"))


@pytest.mark.parametrize(
    "number", [errno.EXDEV, errno.EMLINK, errno.EPERM, errno.ENOTSUP, errno.ENOSPC]
)
def test_a_file_system_without_hard_links_links_nothing(
    volume: Volume, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    old = staged(volume)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", fail)
    refused(volume)
    assert old.read_bytes() == BODY


@pytest.mark.parametrize("path", ["../b", "x" * 256, "nul\0"])
def test_a_path_that_cannot_be_is_not_linked(volume: Volume, path: str) -> None:
    staged(volume)
    refused(volume, duplicate(path))
    refused(volume, duplicate(staged_path=path))


def test_the_rest_is_linked_and_the_first_reason_returned(volume: Volume) -> None:
    staged(volume)
    duplicates = [
        duplicate("1"),
        duplicate("2", "not/there"),
        duplicate("3", size=1),
        duplicate("4"),
    ]
    shared, reason = result_of(volume.links.link_duplicates(NEW, duplicates))
    assert shared == [duplicates[0], duplicates[3]]
    assert reason.startswith("[Errno 2]")
    assert str(volume.paths.tree(NEW).parents[1]) not in reason


def test_directories_removed_meanwhile_are_made_again(volume: Volume) -> None:
    staged(volume)
    shared, _ = result_of(volume.links.link_duplicates(NEW, [duplicate("a/1")]))
    result_of(volume.incoming.clear(NEW.id))
    assert shared and result_of(volume.links.link_duplicates(NEW, [duplicate("a/2")]))[0]


def test_many_files_are_linked_in_few_thread_calls(tmp_path: Path) -> None:
    here = Volume(tmp_path / "volume", InThisThread())
    here.prepare()
    staged(here)
    threads = HeldThreads()
    volume = Volume(tmp_path / "volume", threads)
    duplicates = [duplicate(str(number)) for number in range(2 * BATCH)]
    job = Deferred.fromCoroutine(volume.links.link_duplicates(NEW, duplicates))
    results = outcome(job)
    threads.run_one()
    assert threads.made == 2
    job.cancel()
    assert results == []
    threads.run_all()
    assert isinstance(failure_of(results), CancelledError)
    assert len(list(volume.paths.tree(NEW).iterdir())) == 2 * BATCH


def test_a_temporary_hard_link_takes_no_space(volume: Volume) -> None:
    old = staged(volume)
    incoming = volume.paths.tree(NEW).parents[1] / "incoming" / str(NEW.id)
    incoming.mkdir()
    (incoming / "duplicate-x").hardlink_to(old)
    assert result_of(volume.incoming.size()) == 0
    (incoming / "0-x").write_bytes(BODY)
    assert result_of(volume.incoming.size()) == len(BODY)


def test_a_duplicate_whose_bytes_have_changed_is_not_intact(volume: Volume) -> None:
    old = staged(volume)
    assert result_of(volume.verification.intact_duplicates([duplicate()])) == [duplicate()]
    old.write_bytes(BODY[:-1] + b"?")
    assert result_of(volume.verification.intact_duplicates([duplicate()])) == []
    assert result_of(volume.links.link_duplicates(NEW, [duplicate()]))[0] == [duplicate()]
