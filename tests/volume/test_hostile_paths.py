"""Symbolic links in place of directories: nothing behind them is read, written or removed."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cartd.errors import CartdError, ConfigError, VolumeDamaged
from cartd.model import DuplicateFile
from cartd.sending.reader import TarReader, TreeReader
from cartd.tar.virtual_tar import Slice
from cartd.volume import Volume
from cartd.volume.identity import read_volume_number
from cartd.volume.locks import ProcessLocks
from cartd.volume.remove import MAX_DEPTH_OPEN, remove_tree
from cartd.volume.rooted_fs import RootedFS
from tests.support.volume_parts import (
    BODY,
    CART,
    Bytes,
    a_cart,
    a_file,
    checksum_of,
    has,
    open_below,
    result_of,
    stage,
)

pytest_plugins = ("tests.support.volume_fixture",)

FILE = a_file(BODY)
BUNDLED = a_cart(bundle=True)
OTHER = a_cart(9, "other")
DUPLICATE = DuplicateFile(
    0, "x.dat", 1, 7, "mine", "a/b.dat", len(BODY), 5, FILE.hash_type, FILE.hash_sum
)
ON_THE_WAY = ["7", "7/mine", "7/mine/a"]
ELSEWHERE = ["incoming", "incoming/7", "cartuids"]
Work = Callable[[Volume], Coroutine[Any, Any, object]]


@pytest.fixture
def volume(volume: Volume, root: Path) -> Volume:
    """A volume with a staged cart, its bundle and link, and an incoming file."""
    stage(volume, FILE)
    volume.paths.tar(CART).write_bytes(BODY)
    result_of(volume.links.place(CART))
    (root / "incoming" / "7").mkdir()
    (root / "incoming" / "7" / "0-left").write_bytes(BODY)
    return volume


def plant(root: Path, where: str) -> Path:
    """Move a directory with its contents outside, and link to it from its old place."""
    outside = root.with_name("outside")
    (root / where).rename(outside)
    (root / where).symlink_to(outside)
    return outside


def snapshot(directory: Path) -> dict[str, object]:
    found: dict[str, object] = {".": directory.stat().st_mtime_ns}
    for path in directory.rglob("*"):
        status = path.lstat()
        regular = stat.S_ISREG(status.st_mode)
        content = path.read_bytes() if regular else None
        found[str(path)] = (status.st_mtime_ns, status.st_mode, status.st_nlink, content)
    return found


async def no_throttle(_size: int) -> None:
    pass


async def set_aside(volume: Volume) -> None:
    await volume.orphans.remove_aside(await volume.orphans.set_aside([CART.id]))


async def stage_again(volume: Volume) -> None:
    for path in ("a/b.dat", "a/new.dat"):
        stage(volume, a_file(BODY, path, position=3))


WORK: dict[str, Work] = {
    "stage": stage_again,
    "share": lambda volume: volume.links.link_duplicates(OTHER, [DUPLICATE]),
    "begin": lambda volume: volume.incoming.clear(CART.id),
    "begin anew": lambda volume: volume.incoming.clear(CART.id, include_staged=True),
    "write a tar": lambda volume: volume.bundles.write(BUNDLED, Bytes(BODY), len(BODY)),
    "drop the tar": lambda volume: volume.bundles.drop(CART),
    "drop the tree": lambda volume: volume.bundles.drop_tree(CART),
    "drop files": lambda volume: volume.removal.drop_files(CART, [FILE]),
    "link": lambda volume: volume.links.place(BUNDLED),
    "unlink": lambda volume: volume.links.remove(CART),
    "remove": lambda volume: volume.removal.remove(CART),
    "set aside": set_aside,
    "search for orphans": lambda volume: volume.orphans.find([CART.id]),
}


@pytest.mark.parametrize("where", ON_THE_WAY + ELSEWHERE)
@pytest.mark.parametrize("work", WORK.values(), ids=WORK)
def test_nothing_behind_a_link_is_changed(
    volume: Volume, root: Path, work: Work, where: str
) -> None:
    outside = plant(root, where)
    before = snapshot(outside)
    with suppress(OSError, CartdError):
        result_of(work(volume))
    assert snapshot(outside) == before


NOT_THERE = "cannot be read: Not a directory"
READS: dict[str, tuple[Work, object]] = {
    "measure": (lambda volume: volume.verification.stat_files(CART, [FILE]), [None]),
    "faults": (
        lambda volume: volume.verification.faults(CART, [FILE], no_throttle),
        [NOT_THERE],
    ),
    "in place": (lambda volume: has(volume, FILE), False),
    "right": (lambda volume: volume.verification.intact_duplicates([DUPLICATE]), []),
}


@pytest.mark.parametrize("where", ON_THE_WAY)
@pytest.mark.parametrize(("read", "found"), READS.values(), ids=READS)
def test_what_is_behind_a_link_is_not_there(
    volume: Volume, root: Path, read: Work, found: object, where: str
) -> None:
    assert result_of(read(volume)) != found
    plant(root, where)
    assert result_of(read(volume)) == found
    assert result_of(volume.links.link_duplicates(OTHER, [DUPLICATE]))[0] == []
    reader = TreeReader(volume.paths.tree(CART), iter([piece()]), root=root)
    with pytest.raises(VolumeDamaged, match=r"^a/b\.dat is missing"):
        reader.read(100)


def test_a_bundle_behind_a_link_is_not_there(volume: Volume, root: Path) -> None:
    size = len(BODY)
    assert result_of(volume.bundles.size(CART)) == size
    assert result_of(volume.incoming.size()) == 2 * size
    outside = plant(root, "7")
    assert result_of(volume.bundles.size(CART)) is None
    assert result_of(volume.bundles.stat_members(CART, [])) is None
    assert result_of(volume.verification.faults(BUNDLED, [FILE], no_throttle)) == [
        "cannot be read in the bundle"
    ]
    assert result_of(volume.incoming.size()) == size
    with pytest.raises(VolumeDamaged, match=r"^mine\.tar is missing"):
        TarReader(volume.paths.tar(CART), size, 0, size, root=root).read(100)
    assert result_of(volume.orphans.cart_ids()) == [7]
    assert (outside / "mine.tar").read_bytes() == BODY


@pytest.mark.parametrize("where", ON_THE_WAY)
def test_a_cart_is_staged_in_the_place_of_a_link(volume: Volume, root: Path, where: str) -> None:
    plant(root, where)
    stage(volume, FILE)
    assert not (root / where).is_symlink()
    assert result_of(has(volume, FILE))
    assert TreeReader(volume.paths.tree(CART), iter([piece()]), root=root).read(100) == BODY


def piece() -> Slice:
    return Slice("a/b.dat", len(BODY), 0, len(BODY))


def feed(pipe: Path) -> int:
    """Write the expected bytes into a pipe; return its other end, to be closed."""
    fd = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    os.write(fd, BODY)
    return fd


def test_a_pipe_that_gives_the_right_bytes_is_no_file(volume: Volume) -> None:
    place = volume.paths.member(CART, FILE.path)
    place.unlink()
    os.mkfifo(place)
    other = feed(place)
    reader = TreeReader(volume.paths.tree(CART), iter([piece()]))
    with pytest.raises(VolumeDamaged, match="not a regular file"):
        reader.read(100)
    reader.close()
    assert result_of(volume.verification.faults(CART, [FILE], no_throttle)) == [
        "is not a regular file"
    ]
    assert not result_of(has(volume, FILE))
    os.close(other)
    stage(volume, FILE)
    assert place.read_bytes() == BODY


def test_an_identity_file_that_is_a_pipe_is_not_waited_for(volume: Volume, root: Path) -> None:
    os.mkfifo(root / ".cartd-volume")
    with pytest.raises(OSError, match="not a regular file"):
        read_volume_number(root)
    (root / ".cartd-volume").unlink()
    (root.parent / "mark").write_text("77")
    (root / ".cartd-volume").symlink_to(root.parent / "mark")
    with pytest.raises(OSError, match="symbolic link"):
        read_volume_number(root)


@pytest.mark.parametrize("where", ["cartuids", "incoming"])
def test_a_start_reports_a_symlink_for_a_fixed_directory(
    volume: Volume, root: Path, where: str
) -> None:
    plant(root, where)
    with pytest.raises(ConfigError, match=rf"{where}' cannot be used: it is a symbolic link"):
        volume.prepare()


def test_process_locks_are_not_read_through_a_symlink(volume: Volume, root: Path) -> None:
    mine = ProcessLocks(root / "holders", host="here", boot="0badcafe")
    mine.start()
    name = "here-0badcafe-1-0badcafe"
    outside = plant(root, "holders")
    (outside / f"{name}.lock").write_bytes(b"precious")
    before = snapshot(outside)
    assert mine.dead_among([name]) == set()
    with pytest.raises(NotADirectoryError):
        ProcessLocks(root / "holders", host="here", boot="0badcafe").start()
    mine.stop()
    assert snapshot(outside) == before


def test_a_lock_that_is_a_link_or_a_pipe_is_left_alone(root: Path, volume: Volume) -> None:
    (root / "holders").mkdir()
    names = [f"here-0badcafe-{n}-0badcafe" for n in (1, 2)]
    precious = root.parent / "precious"
    precious.write_bytes(b"precious")
    (root / "holders" / f"{names[0]}.lock").symlink_to(precious)
    os.mkfifo(root / "holders" / f"{names[1]}.lock")
    process_locks = ProcessLocks(root / "holders", host="here", boot="0badcafe")
    process_locks.start()
    assert process_locks.dead_among(names) == set()
    process_locks.stop()
    assert precious.read_bytes() == b"precious"
    assert len(list((root / "holders").iterdir())) == 2


def test_no_directory_stays_open_when_no_file_is_on_its_way(volume: Volume, root: Path) -> None:
    before = open_below(root)
    one = volume.incoming.open(CART, FILE, checksum_of(FILE))
    another = volume.incoming.open(CART, a_file(BODY, "a/new.dat"), checksum_of(FILE))
    another.write(BODY)
    result_of(another.finish())
    assert open_below(root) > before
    result_of(one.abort())
    assert open_below(root) == before
    result_of(volume.links.link_duplicates(OTHER, [DUPLICATE]))
    result_of(volume.links.place(CART))
    assert open_below(root) == before


def test_a_tree_deeper_than_the_descriptor_limit_is_removed(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    at = os.open(tmp_path / "tree", os.O_RDONLY)
    for _ in range(30 * MAX_DEPTH_OPEN):
        os.mkdir("d", dir_fd=at)
        os.close(os.open("file", os.O_CREAT, dir_fd=at))
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    with RootedFS(tmp_path) as volume:
        remove_tree(volume, tmp_path / "tree")
    assert list(tmp_path.iterdir()) == []


def test_without_directory_descriptors_paths_are_used(
    volume: Volume, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("rooted_fs", "remove", "incoming", "links"):
        monkeypatch.setattr(f"cartd.volume.{module}.HAS_DIR_FD", False)
    assert result_of(volume.removal.remove(CART))
    result_of(stage_again(volume))
    assert result_of(has(volume, FILE))
    assert result_of(volume.links.link_duplicates(OTHER, [DUPLICATE]))[0] == [DUPLICATE]
    result_of(volume.links.place(CART))
    assert (root / "cartuids" / "mine" / "a" / "b.dat").read_bytes() == BODY
    result_of(volume.bundles.write(BUNDLED, Bytes(BODY), len(BODY)))
    assert result_of(volume.bundles.size(BUNDLED)) == len(BODY)
    assert TarReader(volume.paths.tar(CART), len(BODY), 0, 4, root=root).read(100) == BODY[:4]
    for cart in (CART, OTHER):
        assert result_of(volume.removal.remove(cart))
    assert {path.name for path in root.iterdir()} == {"cartuids", "incoming"}
