"""The bundle against what tarfile writes, against naive slicing, and against real tars."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from cartd.tar.bundle import Bundle, Literal, Slice
from cartd.tar.headers import DIRECTORY, FILE, header_length
from tests.laid_out import Member, lay_out

CREATED = 1_700_000_000
OCTAL_LIMIT = 8**11

components = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1),
    st.sampled_from(["plain.txt", "über", "two\nlines", "end ", "a" * 97, "b" * 100, "c" * 250]),
).filter(lambda name: name not in (".", ".."))
paths = st.lists(components, min_size=1, max_size=4).map("/".join)
small_sizes = st.one_of(st.sampled_from([0, 1, 511, 512, 513]), st.integers(0, 3000))
sizes = st.one_of(small_sizes, st.sampled_from([OCTAL_LIMIT - 1, OCTAL_LIMIT, 2**42]))
times = st.one_of(
    st.integers(0, 2**32), st.sampled_from([-1, -(2**40), 0, OCTAL_LIMIT - 1, OCTAL_LIMIT])
)


def member(path: str, size: int = 0, mtime: int = CREATED) -> Member:
    return Member(path, size, mtime, "sha1", "a" * 40)


def layouts(sizes: st.SearchStrategy[int]) -> st.SearchStrategy[list[Member]]:
    members = st.builds(member, paths, sizes, times)
    return st.lists(members, max_size=6, unique_by=lambda m: m.path)


def content(path: str, size: int) -> bytes:
    """Bytes that differ from file to file and from place to place."""
    seed = sum(path.encode())
    return bytes((seed + place * 7 + place // 251) % 256 for place in range(size))


def materialised(pieces: Iterable[Literal | Slice]) -> bytes:
    out = []
    for piece in pieces:
        if isinstance(piece, Literal):
            out.append(piece.data)
        else:
            assert piece.offset + piece.length <= piece.size
            stop = piece.offset + piece.length
            out.append(content(piece.path, piece.size)[piece.offset : stop])
    return b"".join(out)


def merged(pieces: Iterable[Literal | Slice]) -> list[bytes | Slice]:
    """The same bytes with neighbouring literals in one."""
    out: list[bytes | Slice] = []
    for piece in pieces:
        if isinstance(piece, Slice):
            out.append(piece)
        elif out and isinstance(out[-1], bytes):
            out[-1] += piece.data
        else:
            out.append(piece.data)
    return out


class Recorder(io.RawIOBase):
    """What tarfile writes, with a place for data that is too large to exist."""

    def __init__(self) -> None:
        self.pieces: list[Literal | Slice] = []

    def tell(self) -> int:
        return 0

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.pieces.append(Literal(bytes(data)))
        return len(data)


def folders(members: Sequence[Member], top: str) -> Iterator[tuple[str, Member | None]]:
    """Names in the order of the tar: each folder once, before what is in it."""
    seen = {top}
    yield top, None
    for each in members:
        parts = [top, *each.path.split("/")]
        for depth in range(1, len(parts)):
            if (folder := "/".join(parts[:depth])) not in seen:
                seen.add(folder)
                yield folder, None
        yield "/".join(parts), each


def tarfile_pieces(members: Sequence[Member], top: str, created: int) -> list[Literal | Slice]:
    recorder = Recorder()
    with tarfile.open(mode="w", fileobj=recorder, format=tarfile.PAX_FORMAT) as tar:
        for name, each in folders(members, top):
            info = tarfile.TarInfo(name)
            info.mtime = each.mtime if each else created
            info.mode = 0o644 if each else 0o755
            info.type = tarfile.REGTYPE if each else tarfile.DIRTYPE
            info.size = each.size if each else 0
            tar.addfile(info)
            if each and each.size:
                recorder.pieces.append(Slice(each.path, each.size, 0, each.size))
                padding = -each.size % tarfile.BLOCKSIZE
                recorder.write(bytes(padding))
                tar.offset += each.size + padding
    return recorder.pieces


@settings(deadline=None)
@given(layouts(sizes), components, times, st.integers(1, 6))
@example([], "t", CREATED, 1)
@example([member("e" * 98)], "t", CREATED, 1)
@example([member("e" * 99)], "t", CREATED, 1)
@example([member("d" * 97 + "/f"), member("d" * 98 + "/f")], "t", CREATED, 1)
@example([member("d/f"), member("d/e/f"), member("d/g")], "t", CREATED, 1)
@example([member("d/f", 1), member("d/g", 0)], "t", CREATED, 2)
def test_the_bytes_are_those_that_tarfile_writes(
    members: list[Member], top: str, created: int, page: int
) -> None:
    bundle = lay_out(members, top=top, created=created, page=page)
    pieces = merged(bundle.segments(0, bundle.length))
    assert pieces == merged(tarfile_pieces(members, top, created))
    lengths = (len(piece) if isinstance(piece, bytes) else piece.length for piece in pieces)
    assert bundle.length == sum(lengths)


def test_many_members_stand_in_the_tar_as_few_do() -> None:
    members = [member(f"d{number // 99}/f{number}", number) for number in range(1000)]
    bundle = lay_out(members, top="top", created=CREATED, page=600)
    expected = merged(tarfile_pieces(members, "top", CREATED))
    assert merged(bundle.segments(0, bundle.length)) == expected
    for start in range(0, bundle.length, bundle.length // 40):
        some = clipped(bundle.segments(0, bundle.length), start, start + 9000)
        assert merged(bundle.segments(start, min(start + 9000, bundle.length))) == merged(some)


@settings(deadline=None)
@given(paths, sizes, times)
def test_a_header_is_what_tobuf_gives_and_as_long_as_planned(
    name: str, size: int, mtime: int
) -> None:
    for kind, flag, mode in (
        (FILE, tarfile.REGTYPE, 0o644),
        (DIRECTORY, tarfile.DIRTYPE, 0o755),
    ):
        full = f"{name}/" if kind is DIRECTORY else name
        info = tarfile.TarInfo(name)
        info.type, info.mode, info.size, info.mtime = flag, mode, size, mtime
        assert kind.header(full, size, mtime) == info.tobuf(tarfile.PAX_FORMAT)
        assert header_length(full, size, mtime) == len(info.tobuf(tarfile.PAX_FORMAT))


@settings(deadline=None)
@given(layouts(small_sizes), st.integers(1, 6), st.data())
def test_any_range_of_any_layout_is_the_slice_of_the_whole(
    members: list[Member], page: int, data: st.DataObject
) -> None:
    bundle = lay_out(members, top="top", created=CREATED, page=page)
    whole = materialised(bundle.segments(0, bundle.length))
    assert len(whole) == bundle.length
    start = data.draw(st.integers(0, bundle.length))
    stop = data.draw(st.integers(start, bundle.length))
    pieces = list(bundle.segments(start, stop))
    assert materialised(pieces) == whole[start:stop]
    assert all(p.data if isinstance(p, Literal) else p.length for p in pieces)


def test_every_range_between_two_edges_is_the_slice_of_the_whole() -> None:
    members = [member("a/b/x", 700), member("a/empty"), member("ü", 512), member("a/c/y", 1)]
    bundle = lay_out(members, top="top", created=CREATED)
    whole = materialised(bundle.segments(0, bundle.length))
    blocks = range(0, bundle.length + 1, tarfile.BLOCKSIZE)
    edges = sorted({min(max(b + d, 0), bundle.length) for b in blocks for d in (-1, 0, 1, 188)})
    for place, start in enumerate(edges):
        for stop in edges[place:]:
            assert materialised(bundle.segments(start, stop)) == whole[start:stop]


def clipped(pieces: Iterable[Literal | Slice], start: int, stop: int) -> Iterator[Literal | Slice]:
    """Piece by piece from the beginning: slow and plain."""
    at = 0
    for piece in pieces:
        length = len(piece.data) if isinstance(piece, Literal) else piece.length
        low, high = max(start, at) - at, min(stop, at + length) - at
        if low < high and isinstance(piece, Literal):
            yield Literal(piece.data[low:high])
        elif low < high and isinstance(piece, Slice):
            yield replace(piece, offset=low, length=high - low)
        at += length


@settings(deadline=None)
@given(layouts(sizes), st.data())
def test_a_range_of_a_huge_layout_is_cut_out_of_its_pieces(
    members: list[Member], data: st.DataObject
) -> None:
    bundle = lay_out(members, top="top", created=CREATED)
    start = data.draw(st.integers(0, bundle.length))
    stop = data.draw(st.integers(start, bundle.length))
    whole = bundle.segments(0, bundle.length)
    assert merged(bundle.segments(start, stop)) == merged(clipped(whole, start, stop))


class Watched(str):
    """Joined paths that count how often they are taken apart."""

    asked = 0

    def split(self, *separator: Any) -> list[str]:
        self.asked += 1
        return super().split(*separator)


def watched(count: int) -> tuple[Bundle, list[Watched]]:
    members = [member(f"d{number // 100}/f{number}", 4096) for number in range(count)]
    bundle = lay_out(members, top="top", created=CREATED)
    joined = bundle.members.joined
    joined[:] = places = [Watched(paths) for paths in joined]
    return bundle, places


def test_a_late_range_takes_the_paths_apart_among_which_it_lies_and_no_others() -> None:
    bundle, places = watched(5000)
    late = bundle.length - 100_000
    assert sum(1 for _ in bundle.segments(late, late + 5000)) > 1
    assert [paths.asked for paths in places] == [*[0] * (len(places) - 1), 1]


def test_the_pieces_come_one_by_one() -> None:
    bundle, places = watched(5000)
    next(bundle.segments(0, bundle.length))
    assert [paths.asked for paths in places] == [1, *[0] * (len(places) - 1)]


@pytest.mark.parametrize(("start", "stop"), [(-1, 5), (6, 5), (0, 10_241)])
def test_a_range_outside_the_tar_is_refused_at_once(start: int, stop: int) -> None:
    bundle = lay_out([], top="top", created=CREATED)
    assert bundle.length == 10_240
    with pytest.raises(ValueError, match="no bytes"):
        bundle.segments(start, stop)


BAD_PATHS = {
    "empty": "",
    "absolute": "/etc/passwd",
    "parent": "a/../b",
    "ends in parent": "a/..",
    "here": "./a",
    "double slash": "a//b",
    "final slash": "a/",
    "NUL": "a\0b",
    "NUL in a folder": "a\0/b",
    "lone surrogate": "a\ud800",
    "lone surrogate in a folder": "\ud800/a",
}


@pytest.mark.parametrize("path", BAD_PATHS.values(), ids=BAD_PATHS.keys())
def test_only_normalised_relative_paths_get_in(path: str) -> None:
    with pytest.raises(ValueError, match=r"not a (member|normalised)|surrogates"):
        lay_out([member("good/file"), member(path)], top="top", created=CREATED)


@pytest.mark.parametrize("top", ["", ".", "..", "a\0b", "\udc80", "a/b"])
def test_the_top_folder_is_one_component(top: str) -> None:
    with pytest.raises(ValueError, match=r"not the name|surrogates"):
        lay_out([member("file")], top=top, created=CREATED)


def test_a_negative_size_is_refused() -> None:
    with pytest.raises(ValueError, match="member"):
        lay_out([member("file", -1)], top="top", created=CREATED)


BASE = [Member("a", 1, 2, "md5", "00"), Member("b", 3, 4, "md5", "11")]
VARIANTS = {
    "another path": [BASE[0]._replace(path="c"), BASE[1]],
    "another size": [BASE[0]._replace(size=2), BASE[1]],
    "another time": [BASE[0]._replace(mtime=3), BASE[1]],
    "another type": [BASE[0]._replace(hash_type="sha1"), BASE[1]],
    "another sum": [BASE[0]._replace(hash_sum="01"), BASE[1]],
    "another order": [BASE[1], BASE[0]],
    "one less": [BASE[0]],
    "digits moved": [BASE[0]._replace(size=12, mtime=2), BASE[1]],
    "text moved": [BASE[0]._replace(hash_type="md50", hash_sum="0"), BASE[1]],
}


@pytest.mark.parametrize("members", VARIANTS.values(), ids=VARIANTS.keys())
def test_other_members_have_another_etag(members: list[Member]) -> None:
    etag = lay_out(BASE, top="top", created=5).etag
    assert lay_out(members, top="top", created=5).etag != etag


def test_the_etag_is_strong_quoted_and_follows_the_top_and_its_time() -> None:
    etag = lay_out(BASE, top="top", created=5).etag
    assert etag.startswith('"') and etag.endswith('"') and len(etag) == 66
    assert lay_out(list(BASE), top="top", created=5).etag == etag
    assert lay_out(BASE, top="pot", created=5).etag != etag
    assert lay_out(BASE, top="top", created=6).etag != etag


REAL = [
    member("readme.txt", 1000, 1_000_000_000),
    member("data/run 1/empty", 0, 1_100_000_000),
    member("data/run 1/" + "long" * 30 + ".dat", 513, 1_200_000_000),
    member("data/" + "/".join(["d" * 60] * 5) + "/deep.bin", 70_000, 1_300_000_000),
    member("über/naïve — 文件.txt", 512, 1_400_000_000),
    member("data/back", 1, 1_500_000_000),
    member("quote \"' %s;$(x)", 20_000, 1_600_000_000),
]


@pytest.fixture
def real_tar(tmp_path: Path) -> Path:
    bundle = lay_out(REAL, top="my cart", created=CREATED)
    path = tmp_path / "real.tar"
    path.write_bytes(materialised(bundle.segments(0, bundle.length)))
    return path


def assert_unpacked(root: Path) -> None:
    """Exactly the members are there, with their bytes and times, below their folders."""
    found = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}
    assert found == {f"my cart/{each.path}" for each in REAL}
    for each in REAL:
        path = root / "my cart" / each.path
        assert path.read_bytes() == content(each.path, each.size)
        assert path.stat().st_mtime == each.mtime
    assert (root / "my cart").stat().st_mtime == CREATED


def names() -> list[str]:
    return [name if each else f"{name}/" for name, each in folders(REAL, "my cart")]


@pytest.mark.parametrize("tar", ["tar", "bsdtar"])
def test_real_tars_list_and_unpack_it(tar: str, real_tar: Path, tmp_path: Path) -> None:
    env = {**os.environ, "LC_ALL": "C.UTF-8"}
    listed = subprocess.run([tar, "-tf", real_tar], env=env, capture_output=True, check=True)
    assert not listed.stderr
    assert listed.stdout.decode().replace("\\\\", "\\").splitlines() == names()
    root = tmp_path / "out"
    root.mkdir()
    done = subprocess.run(
        [tar, "-xf", real_tar, "-C", root], env=env, capture_output=True, check=True
    )
    assert not done.stderr
    assert_unpacked(root)


@pytest.mark.parametrize("mode", ["r:", "r|"], ids=["by offset", "as a stream"])
def test_tarfile_lists_and_unpacks_it(mode: str, real_tar: Path, tmp_path: Path) -> None:
    with tarfile.open(real_tar, mode) as tar:  # type: ignore[call-overload]
        infos = []
        for info in tar:
            infos.append(info)
            tar.extract(info, tmp_path / "out")
    listed = [f"{info.name}/" if info.isdir() else info.name for info in infos]
    assert listed == names()
    assert {(i.uid, i.gid, i.uname, i.gname) for i in infos} == {(0, 0, "", "")}
    assert {(i.isdir(), i.mode) for i in infos} == {(True, 0o755), (False, 0o644)}
