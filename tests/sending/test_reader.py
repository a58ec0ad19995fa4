"""Reading a computed tar from real files."""

from __future__ import annotations

import errno
import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cartd.errors import DiskUnavailable, FileUnreadable, VolumeDamaged
from cartd.sending.reader import SENDFILE_MIN, Reader, TarReader, TreeReader
from cartd.tar.virtual_tar import Literal, Slice
from tests.support.built_tars import Member, build_tar
from tests.support.volume_parts import open_below

SIZES = {
    "a/first.bin": 5000,
    "a/b/empty": 0,
    "a/b/tiny": 3,
    "ünï": 512,
    "last": SENDFILE_MIN + 5000,
}
MEMBERS = [Member(path, size, 1, "md5", "") for path, size in SIZES.items()]
PART = Slice("ünï", 512, 0, 100)
BUNDLE = build_tar(MEMBERS, top="top")


def failing(number: int) -> Any:
    def call(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


def fill(root: Path) -> Path:
    for place, (path, size) in enumerate(SIZES.items()):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(bytes((n * 7 + n // 256 + place) % 256 for n in range(size)))
    return root


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def tar(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tar") / "uid.tar"
    path.write_bytes(everything(TreeReader(tree, BUNDLE.segments(0, BUNDLE.length)), 4096))
    return path


@pytest.fixture
def own_tree(tmp_path: Path) -> Path:
    """A tree that the test may damage."""
    return fill(tmp_path)


def everything(reader: Reader, limit: int) -> bytes:
    """Return all bytes; every read but the last must be full."""
    parts = []
    while data := reader.read(limit):
        parts.append(data)
    assert all(len(part) == limit for part in parts[:-1])
    assert reader.read(limit) == b""
    reader.close()
    return b"".join(parts)


def read_some(reader: Reader) -> bytes:
    with closing(reader):
        return reader.read(10)


def whole(root: Path) -> TreeReader:
    return TreeReader(root, BUNDLE.segments(0, BUNDLE.length))


@pytest.mark.parametrize("limit", [1, 100, 512, 4096, 10**9])
def test_a_tree_is_read_as_the_tar_that_tarfile_understands(tree: Path, limit: int) -> None:
    data = everything(whole(tree), limit)
    assert len(data) == BUNDLE.length
    (copy := tree.parent / f"{limit}.tar").write_bytes(data)
    with tarfile.open(copy) as found:
        for path in SIZES:
            member = found.extractfile(f"top/{path}")
            assert member is not None
            assert member.read() == (tree / path).read_bytes()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_range_reads_the_same_from_the_tree_and_from_the_tar(
    tree: Path, tar: Path, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, BUNDLE.length))
    stop = data.draw(st.integers(start, BUNDLE.length))
    limit = data.draw(st.integers(50, 60_000))
    expected = tar.read_bytes()[start:stop]
    assert everything(TreeReader(tree, BUNDLE.segments(start, stop)), limit) == expected
    assert everything(TarReader(tar, BUNDLE.length, start, stop), limit) == expected


def test_one_read_is_filled_from_many_small_members(tree: Path) -> None:
    reader = whole(tree)
    assert len(reader.read(12_000)) == 12_000
    reader.close()


def test_a_file_is_open_from_its_first_byte_to_its_last(tree: Path) -> None:
    reader = TreeReader(
        tree, iter([Slice("last", SENDFILE_MIN + 5000, 0, SENDFILE_MIN + 5000), PART])
    )
    assert open_below(tree) == 0
    reader.read(SENDFILE_MIN)
    assert open_below(tree) > 0
    reader.read(5000)
    assert open_below(tree) == 0
    reader.read(1)
    assert open_below(tree) > 0
    reader.read(99)
    assert open_below(tree) == 0


def test_a_short_file_is_read_as_a_whole_and_not_kept_open(tree: Path) -> None:
    reader = TreeReader(tree, iter([Slice("a/first.bin", 5000, 0, 5000)]))
    data = reader.read(1)
    assert open_below(tree) == 0
    assert data + reader.read(5000) == (tree / "a/first.bin").read_bytes()


def test_closing_in_mid_file_closes_it_and_may_be_repeated(tree: Path) -> None:
    reader = TreeReader(tree, iter([Slice("last", SENDFILE_MIN + 5000, 0, SENDFILE_MIN + 5000)]))
    reader.read(10)
    reader.close()
    assert open_below(tree) == 0
    other = os.dup(0)
    reader.close()
    os.fstat(other)  # raises if the second close closed a reused descriptor
    os.close(other)


def test_members_that_are_not_reached_are_never_opened(own_tree: Path) -> None:
    (own_tree / "last").unlink()
    reader = whole(own_tree)
    pieces = list(BUNDLE.segments(0, BUNDLE.length))
    before = sum(len(p.data) if isinstance(p, Literal) else p.length for p in pieces[:-2])
    assert len(reader.read(before)) == before
    with pytest.raises(VolumeDamaged, match="last"):
        reader.read(1)
    reader.close()


def remove(path: Path) -> None:
    path.unlink()


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def link(path: Path) -> None:
    path.rename(path.with_name("target"))
    path.symlink_to("target")


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_parent(path: Path) -> None:
    path.parent.rename(path.parent.with_name("moved"))
    path.parent.write_bytes(b"")


DAMAGE = [remove, grow, cut, link, replace_by_folder, replace_by_pipe]


CASES = [(name, damage) for name in ("a/first.bin", "last") for damage in DAMAGE]


@pytest.mark.parametrize(
    ("name", "damage"),
    [*CASES, ("a/first.bin", replace_parent)],
    ids=lambda it: it if isinstance(it, str) else it.__name__,
)
def test_a_file_that_differs_from_its_record_is_damage(
    own_tree: Path, name: str, damage: Callable[[Path], None]
) -> None:
    damage(own_tree / name)
    reader = whole(own_tree)
    with pytest.raises(VolumeDamaged, match=rf"^{name} (is|has) ") as caught:
        everything(reader, 4096)
    assert str(own_tree) not in str(caught.value)
    reader.close()
    assert open_below(own_tree) == 0


def test_a_folder_of_the_recorded_size_is_no_file(own_tree: Path) -> None:
    size = (own_tree / "a").stat().st_size
    with pytest.raises(VolumeDamaged, match="not a regular file"):
        read_some(TreeReader(own_tree, iter([Slice("a", size, 0, size)])))


def test_a_file_that_shrinks_while_it_is_read_is_damage(own_tree: Path) -> None:
    reader = TreeReader(
        own_tree, iter([Slice("last", SENDFILE_MIN + 5000, 0, SENDFILE_MIN + 5000)])
    )
    assert len(reader.read(10_000)) == 10_000
    os.truncate(own_tree / "last", 20_000)
    with pytest.raises(VolumeDamaged, match=r"^last .*truncated"):
        everything(reader, SENDFILE_MIN)
    reader.close()


def test_a_file_that_the_system_refuses_is_named_with_the_reason(tree: Path) -> None:
    name = "n" * 256
    with pytest.raises(FileUnreadable, match=rf"^{name} cannot be read .*: File name too long"):
        read_some(TreeReader(tree, iter([Slice(name, 1, 0, 1)])))


@pytest.mark.parametrize("size", [1, SENDFILE_MIN])
def test_a_read_error_names_the_file(
    tree: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "bad").write_bytes(bytes(size))
    monkeypatch.setattr(os, "read", failing(errno.EIO))
    monkeypatch.setattr(os, "pread", failing(errno.EIO))
    with pytest.raises(
        FileUnreadable, match=r"^bad cannot be read .*: Input/output error"
    ) as failed:
        read_some(TreeReader(tree, iter([Slice("bad", size, 0, size)])))
    assert failed.value.path == "bad"


def test_running_out_of_descriptors_is_not_damage_of_the_cart(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "open", failing(errno.EMFILE))
    with pytest.raises(DiskUnavailable, match="Too many open files"):
        read_some(TreeReader(tree, iter([Slice("any", 1, 0, 1)])))


@pytest.mark.parametrize("size", [BUNDLE.length - 1, BUNDLE.length + 1])
def test_a_tar_of_another_size_is_damage_of_the_volume(tar: Path, size: int) -> None:
    with pytest.raises(VolumeDamaged, match=r"^uid\.tar has "):
        read_some(TarReader(tar, size, 0, 100))


def test_a_tar_that_is_missing_is_damage_of_the_volume(tmp_path: Path) -> None:
    with pytest.raises(VolumeDamaged, match=r"^uid\.tar is missing"):
        read_some(TarReader(tmp_path / "uid.tar", 10_240, 0, 100))


@pytest.mark.parametrize("limit", [0, -1])
def test_a_read_of_zero_bytes_is_refused(limit: int) -> None:
    with pytest.raises(ValueError, match="cannot read"):
        TreeReader(Path(), iter([Literal(b"x")])).read(limit)


def test_all_slices_of_one_file_are_of_one_version_of_it(tmp_path: Path) -> None:
    path, size = tmp_path / "x.tar", SENDFILE_MIN * 2
    path.write_bytes(b"1" * size)
    slices = [Slice("x.tar", size, at, 5) for at in (7, 100_000, 3)]
    reader = TreeReader(tmp_path, iter([*slices, Literal(b"end")]), keep_open=True)
    read = reader.read(5)
    path.unlink()
    path.write_bytes(b"2" * size)
    assert read + everything(reader, 4) == b"1" * 15 + b"end"
    assert not open_below(tmp_path)


def test_segments_are_asked_for_only_when_they_are_needed(tree: Path) -> None:
    def pieces() -> Iterator[Literal | Slice]:
        yield Literal(b"abc")
        raise AssertionError("asked too early")

    assert TreeReader(tree, pieces()).read(3) == b"abc"
