"""Names that collide on the volume are detected, reported and never merged into one file."""

from __future__ import annotations

import subprocess
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cartd.errors import PathCollision
from cartd.volume.file_system import (
    CollisionFinder,
    Folding,
    detect_folding,
    find_collision,
    first_same_path,
    prepare,
)
from cartd.volume.incoming import PartialFile
from cartd.volume.paths import VolumePaths
from cartd.volume.rooted_fs import MkdirFS
from tests.support.archived_carts import in_a_thread, url_of
from tests.support.cartd_with_archive import assert_no_unexpected_errors
from tests.support.faulty_archive import FaultyArchive
from tests.support.running_cartd import RunningCartd, entry, manifest, running_cartd

pytest_plugins = ("tests.support.archive_fixtures",)

CASE = Folding(case=True)
NORMAL = Folding(normal_form=True)
BOTH = Folding(case=True, normal_form=True)
COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@contextmanager
def without_case(directory: Path, *, size: int = 32 << 20) -> Iterator[Path]:
    """Mount a directory on NTFS, which is case-preserving and case-insensitive."""
    image, mount = directory / "ntfs.image", directory / "ntfs"
    with image.open("wb") as opened:
        opened.truncate(size)
    run("mkntfs", "--force", "--quick", "--quiet", str(image))
    mount.mkdir()
    run("mount.lowntfs-3g", "-o", "ignore_case", str(image), str(mount))
    try:
        yield mount
    finally:
        run("umount", "--lazy", str(mount))
        image.unlink()


def found(folding: Folding, paths: list[str]) -> set[frozenset[str]]:
    folded = CollisionFinder(folding)
    for page in (paths[:2], paths[2:]):
        folded.scan(page)
    folded.collect(paths)
    return {frozenset(pair) for pair in folded.pairs()}


@pytest.mark.parametrize(
    ("folding", "paths"),
    [
        (CASE, ["x/data", "x/DATA"]),
        (CASE, ["X/data", "x/Data"]),
        (CASE, ["x", "X/y"]),
        (CASE, ["X/y/z", "x"]),
        (CASE, ["a/x/1", "a/x/2", "a/X"]),
        (CASE, ["stra\u00dfe", "STRASSE"]),
        (NORMAL, [COMPOSED, DECOMPOSED]),
        (NORMAL, [f"{COMPOSED}/x", DECOMPOSED]),
        (BOTH, [COMPOSED.upper(), DECOMPOSED]),
        (CASE, ["\u01c5", "\u01c6"]),
    ],
    ids=str,
)
def test_paths_that_may_collide_are_found(folding: Folding, paths: list[str]) -> None:
    [pair] = [pair for pair in found(folding, paths) if pair >= {paths[-1]}][:1]
    assert pair <= set(paths)


@pytest.mark.parametrize(
    ("folding", "paths"),
    [
        (CASE, ["x/a", "x/b", "X/c", "y"]),
        (CASE, [COMPOSED, DECOMPOSED]),
        (NORMAL, ["x/data", "x/DATA"]),
        (BOTH, ["ab", "a/b", "abc"]),
    ],
    ids=str,
)
def test_paths_that_cannot_collide_are_not_found(folding: Folding, paths: list[str]) -> None:
    assert found(folding, paths) == set()


names = st.text("aAbB\u00e9\u00c9e\u0301/", min_size=1, max_size=6).filter(
    lambda path: all(path.split("/"))
)


@given(st.lists(names, unique=True, max_size=8))
def test_every_real_collision_is_among_those_found(paths: list[str]) -> None:
    def key(path: str) -> str:
        return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).lower())

    pairs = found(BOTH, paths)
    for at, first in enumerate(paths):
        for second in paths[:at]:
            if key(first) == key(second):
                assert any({first, second} & pair for pair in pairs)
    assert bool(pairs) == any(
        BOTH.key(second) == BOTH.key(first) or BOTH.key(second).startswith(f"{BOTH.key(first)}/")
        for first in paths
        for second in paths
        if first is not second
    )


def test_a_case_sensitive_volume_has_no_collisions(tmp_path: Path) -> None:
    paths = VolumePaths(tmp_path / "volume")
    assert prepare(paths) == []
    assert detect_folding(paths) == Folding()
    assert first_same_path(paths, [("x/data", "x/DATA")]) is None
    assert list(paths.all_incoming.iterdir()) == []


def test_limitations_of_the_volume_are_reported(tmp_path: Path) -> None:
    with without_case(tmp_path) as mount:
        paths = VolumePaths(mount / "volume")
        [line] = prepare(paths)
        assert line.startswith("The volume does not distinguish upper and lower case: ")
        assert detect_folding(paths) == CASE
        folded = CollisionFinder(CASE)
        claimed = ["stra\u00dfe", "STRASSE", "Y/a", "y/A"]
        folded.scan(claimed)
        folded.collect(claimed)
        assert find_collision(paths, folded) == ("Y/a", "y/A")
        assert list(paths.all_incoming.iterdir()) == []

        # Even if a collision was missed before, no file of a cart replaces another one.
        directories = MkdirFS(paths.root, folds=True)
        for name, content in (("data", b"1"), ("data", b"2")):
            place(directories, paths.root / "5" / "uid" / "x" / name, content)
        with pytest.raises(PathCollision, match=r"^x/data and x/DATA name the same file"):
            place(directories, paths.root / "5" / "uid" / "x" / "DATA", b"3")
        with pytest.raises(PathCollision, match=r"^x/data and x/Data name the same file"):
            place(directories, paths.root / "5" / "uid" / "x" / "Data" / "y", b"3")
        assert (paths.root / "5" / "uid" / "x" / "data").read_bytes() == b"2"


def place(directories: MkdirFS, final: Path, content: bytes) -> None:
    partial = PartialFile(directories.root / "incoming" / "new", final, directories)
    try:
        partial.append(content)
        partial.commit()
    finally:
        partial.discard()


@in_a_thread
def test_only_the_cart_with_colliding_paths_is_in_error(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    files = {"a": b"AAAA", "b": b"BBBB", "c": b"CCCCCC"}
    for name, content in files.items():
        archive.put(name, content)

    def posted(cartd: RunningCartd, uid: str, *paths: str, bundle: bool = False) -> None:
        entries = [entry(name, path, files[name]) for name, path in zip("abc", paths, strict=False)]
        assert cartd.post(uid, manifest(entries, bundle=bundle)).status == 201

    with (
        without_case(tmp_path) as mount,
        running_cartd(
            tmp_path / "cartd",
            archive=url_of(archive),
            ini="[cartd]\nvolume_reserve = 0\n",
            started=False,
        ) as cartd,
    ):
        cartd.volume.symlink_to(mount / "volume")
        (mount / "volume").mkdir()
        cartd.start()
        assert cartd.log.count("does not distinguish upper and lower case") == 1
        posted(cartd, "same", "x/data", "x/DATA")
        posted(cartd, "bundled", "x/data", "X/DATA", bundle=True)
        posted(cartd, "below", "x", "y", "X/y")
        posted(cartd, "good", "x/data", "X/other", COMPOSED)
        said = "name the same file on this volume, which cannot hold both"
        assert cartd.wait_until("same", "error") == f"x/data and x/DATA {said}"
        assert cartd.wait_until("bundled", "error") == f"x/data and X/DATA {said}"
        assert cartd.wait_until("below", "error") == f"x and X/y {said}"
        cartd.wait_until("good", "ready")
        assert cartd.download("good") == {
            "x/data": b"AAAA",
            "X/other": b"BBBB",
            COMPOSED: b"CCCCCC",
        }
        posted(cartd, "uid", "a")
        cartd.wait_until("uid", "ready")
        posted(cartd, "UID", "b")
        cartd.wait_until("UID", "ready")
        link = cartd.volume / "cartuids" / "uid"
        assert (link / "a").read_bytes() == b"AAAA"
        assert cartd.delete("UID").status == 200
        assert (link / "a").read_bytes() == b"AAAA"
        assert cartd.download("uid") == {"a": b"AAAA"}
        assert cartd.terminate() == 0
        assert_no_unexpected_errors(cartd.log)


def test_a_reserve_larger_than_the_volume_stops_the_start(tmp_path: Path) -> None:
    with (
        without_case(tmp_path) as mount,
        running_cartd(tmp_path / "cartd", archive="http://127.0.0.1:1/", started=False) as cartd,
    ):
        cartd.configure("[cartd]\nvolume_reserve = 1 GB\n")
        cartd.volume.symlink_to(mount / "volume")
        (mount / "volume").mkdir()
        ran = cartd.run("twistd", "--nodaemon", "--pidfile=", "cartd", check=False)
        assert ran.returncode == 1
        [line] = [line for line in ran.stderr.splitlines() if line.startswith("cartd: ")]
        assert "volume_reserve: 1,000,000,000 bytes are to stay free" in line
        assert line.endswith(" in all: no cart could be staged; set it lower")
