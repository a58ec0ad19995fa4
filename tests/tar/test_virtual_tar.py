"""Computed tars compared with tarfile, with naive slicing, and with real tar programs."""

from __future__ import annotations

import io
import os
import re
import subprocess
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from cartd.tar.headers import DIRECTORY, FILE, header_length
from cartd.tar.index import Lengths
from cartd.tar.virtual_tar import LAYOUT_VERSION, Literal, Slice, VirtualTar
from tests.support.built_tars import Member, build_tar, index_of

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
    """Return bytes that differ between files and between positions."""
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
    """Return the same bytes with adjacent literals joined."""
    out: list[bytes | Slice] = []
    for piece in pieces:
        if isinstance(piece, Slice):
            out.append(piece)
        elif out and isinstance(out[-1], bytes):
            out[-1] += piece.data
        else:
            out.append(piece.data)
    return out


def folders(members: Sequence[Member], top: str) -> Iterator[tuple[str, Member | int]]:
    """Return names and times in the order of the tar, each folder before its contents."""
    seen: set[str] = set()
    for parts, each in [([top, ""], None), *(([top, *m.path.split("/")], m) for m in members)]:
        for depth in range(1, len(parts)):
            if (folder := "/".join(parts[:depth])) not in seen:
                seen.add(folder)
                yield folder, newest(members, folder, top)
        if each:
            yield "/".join(parts), each


def newest(members: Sequence[Member], folder: str, top: str) -> int:
    """Return the time of the newest file below the folder, within the range of a field."""
    times = [each.mtime for each in members if f"{top}/{each.path}".startswith(f"{folder}/")]
    return min(max(times, default=0), OCTAL_LIMIT - 1) if max(times, default=0) > 0 else 0


def header_of(name: str, each: Member | int) -> bytes:
    if isinstance(each, int):
        return DIRECTORY.header(f"{name}/", 0, each)
    return FILE.header(name, each.size, each.mtime)


def pieces_of(members: Sequence[Member], top: str) -> list[Literal | Slice]:
    """Return the segments of the tar, member by member."""
    pieces: list[Literal | Slice] = []
    length = 0
    for name, each in folders(members, top):
        head = header_of(name, each)
        pieces.append(Literal(head))
        length += len(head)
        if isinstance(each, Member) and each.size:
            pieces += [Slice(each.path, each.size, 0, each.size), Literal(bytes(-each.size % 512))]
            length += each.size + -each.size % 512
    return [*pieces, Literal(bytes(1024 + -(length + 1024) % 10_240))]


class Sparse(io.RawIOBase):
    """A tar, possibly larger than any disk, whose files contain zeros."""

    def __init__(self, bundle: VirtualTar) -> None:
        self._bundle = bundle
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._bundle.length)[whence]
        return self._at

    def readinto(self, into: Any) -> int:
        data = self.at(self._at, len(into))
        into[: len(data)] = data
        self._at += len(data)
        return len(data)

    def at(self, start: int, length: int) -> bytes:
        stop = min(start + length, self._bundle.length)
        pieces = self._bundle.segments(min(start, stop), stop)
        return b"".join(p.data if isinstance(p, Literal) else bytes(p.length) for p in pieces)


class Ustar(NamedTuple):
    """The fields of one ustar block."""

    name: bytes
    size: int
    mtime: int
    type: bytes


def read_ustar(sparse: Sparse) -> Iterator[Ustar]:
    """Yield the members as a reader that ignores pax records sees them."""
    at = 0
    while any(block := sparse.at(at, 512)):
        checksum = sum(block[:148]) + 8 * 32 + sum(block[156:])
        assert block[148:156] == b"%06o\0 " % checksum
        assert block[257:265] == b"ustar\x0000"
        field = block[124:136]
        size = int.from_bytes(field[1:], "big") if field[0] == 128 else int(field.rstrip(b"\0"), 8)
        prefix, name = block[345:500].rstrip(b"\0"), block[:100].rstrip(b"\0")
        if block[156:157] != b"x":
            whole = b"%b/%b" % (prefix, name) if prefix else name
            yield Ustar(whole, size, int(block[136:147], 8), block[156:157])
        at += 512 + size + -size % 512


def fits(name: bytes) -> bool:
    parts = name.split(b"/")
    cuts = [(b"/".join(parts[:n]), b"/".join(parts[n:])) for n in range(len(parts))]
    return any(len(prefix) <= 155 and 0 < len(rest) <= 100 for prefix, rest in cuts)


LARGE = [
    member("a/8 GiB less one", OCTAL_LIMIT - 1),
    member("a/8 GiB", OCTAL_LIMIT),
    member("a/64 GiB less one", 8**12 - 1),
    member("a/64 GiB", 8**12),
    member("behind", 1),
]
SPLIT = [member("x" * 80 + "/" + "y" * 40 + str(number), 1) for number in range(2)]
UNCUT = [member("ä" * 60 + str(number), 1) for number in range(2)]
layouts_and_tops = {
    "nothing": ([], "t"),
    "sizes": (LARGE, "t"),
    "a prefix": (SPLIT, "t"),
    "a top in the prefix": ([member("e" * 100)], "t" * 155),
    "a top beyond the prefix": ([member("e" * 99), member("d/f")], "t" * 156),
    "two letters": ([member("ä.dat"), member("ö.dat")], "t"),
    "a name that is cut within a letter": (UNCUT, "t"),
    "times": ([member("old", 0, -1), member("new", 0, OCTAL_LIMIT), member("d/old", 0, -5)], "t"),
}


def every_layout(test: Any) -> Any:
    for members, top in layouts_and_tops.values():
        test = example(members, top)(test)
    return given(layouts(sizes), components)(test)


@every_layout
def test_each_ustar_block_has_size_and_name_without_pax_records(
    members: list[Member], top: str
) -> None:
    found = list(read_ustar(Sparse(build_tar(members, top=top))))
    wanted = list(folders(members, top))
    assert len(found) == len(wanted)
    for block, (name, each) in zip(found, wanted, strict=True):
        is_file = isinstance(each, Member)
        raw = name.encode() if is_file else f"{name}/".encode()
        assert block.type == (b"0" if is_file else b"5")
        assert block.size == (each.size if isinstance(each, Member) else 0)
        mtime = each.mtime if isinstance(each, Member) else each
        assert block.mtime == (mtime if 0 <= mtime < OCTAL_LIMIT else 0)
        assert block.name.decode()
        assert not fits(raw) or block.name == raw
    assert len({block.name for block in found}) == len(found)


@every_layout
def test_tarfile_sees_all_names_sizes_and_times(members: list[Member], top: str) -> None:
    with tarfile.open(fileobj=Sparse(build_tar(members, top=top)), mode="r:") as tar:
        found = [(info.name, info.size, info.mtime, info.isdir(), info.mode) for info in tar]
    wanted = [
        (name, each.size, each.mtime, False, 0o644)
        if isinstance(each, Member)
        else (name, 0, each, True, 0o755)
        for name, each in folders(members, top)
    ]
    assert found == wanted


@given(layouts(sizes), components, st.integers(1, 6))
@example([], "t", 1)
@example([member("e" * 98)], "t", 1)
@example([member("e" * 99)], "t", 1)
@example([member("d" * 97 + "/f"), member("d" * 98 + "/f")], "t", 1)
@example([member("d/f"), member("d/e/f"), member("d/g")], "t", 1)
@example([member("d/f", 1), member("d/g", 0)], "t", 2)
def test_the_tar_is_one_member_behind_the_other(members: list[Member], top: str, page: int) -> None:
    bundle = build_tar(members, top=top, page=page)
    pieces = merged(bundle.segments(0, bundle.length))
    assert pieces == merged(pieces_of(members, top))
    lengths = (len(piece) if isinstance(piece, bytes) else piece.length for piece in pieces)
    assert bundle.length == sum(lengths)


tops = st.builds(
    lambda letter, length: letter * length, st.sampled_from("aä"), st.integers(1, 255)
).filter(lambda top: len(top.encode()) <= 255)


@given(layouts(sizes), tops, tops)
@example([member("x" * 90 + "/" + "y" * 90)], "t" * 64, "t" * 65)
@example([member("x" * 240 + "/" + "y" * 20)], "t" * 155, "t" * 255)
def test_one_index_serves_every_top_folder_and_its_length(
    members: list[Member], top: str, other: str
) -> None:
    index = index_of(members)
    bundle = VirtualTar(top, index, index.shift(top))
    lengths = Lengths.loaded(index.lengths.dumped())
    assert lengths.length(top) == bundle.length
    assert merged(bundle.segments(0, bundle.length)) == merged(pieces_of(members, top))
    same = lengths.variant(top) == lengths.variant(other)
    assert not same or index.shift(top) == index.shift(other)


def test_plain_paths_have_one_variant_for_all_usual_names() -> None:
    lengths = index_of(REAL[:2] + REAL[5:]).lengths
    assert len({lengths.variant(top) for top in ("a", "b" * 99, "c" * 155)}) == 1
    assert len({lengths.variant("ä" * n) for n in range(1, 128)}) == 1


def test_a_folder_has_the_time_of_the_newest_file_below_it() -> None:
    members = [member("a/b/f", 1, 5), member("a/c/f", 1, 9), member("g", 1, 7)]
    found = {block.name: block.mtime for block in read_ustar(Sparse(build_tar(members, top="t")))}
    assert found == {
        b"t/": 9, b"t/a/": 9, b"t/a/b/": 5, b"t/a/b/f": 5, b"t/a/c/": 9, b"t/a/c/f": 9, b"t/g": 7,
    }  # fmt: skip
    [top] = read_ustar(Sparse(build_tar([], top="t")))
    assert top.mtime == 0


GOLDEN = {1: "6aea24b59ae25a033a66d1ecb5ec4ad24004bb59123f62562bfcec77dd512e07"}
"""By layout version, the digest of the bytes and ETags of these tars."""


def test_a_changed_byte_of_the_tar_needs_a_new_layout_version() -> None:
    seen = sha256()
    for members, top in ((REAL, "my cart"), (LARGE, "t"), *layouts_and_tops.values()):
        bundle = build_tar(members, top=top)
        seen.update(bundle.etag.encode())
        for piece in bundle.segments(0, bundle.length):
            seen.update(piece.data if isinstance(piece, Literal) else repr(piece).encode())
    assert seen.hexdigest() == GOLDEN[LAYOUT_VERSION]


@given(st.lists(st.builds(member, paths, small_sizes, times), max_size=40), st.integers(1, 40))
def test_the_digest_does_not_depend_on_how_the_members_were_read(
    members: list[Member], page: int
) -> None:
    assert index_of(members, page=page).digest == index_of(members).digest


def test_many_members_stand_in_the_tar_as_few_do() -> None:
    members = [member(f"d{number // 99}/f{number}", number) for number in range(1000)]
    bundle = build_tar(members, top="top", page=600)
    expected = merged(pieces_of(members, "top"))
    assert merged(bundle.segments(0, bundle.length)) == expected
    for start in range(0, bundle.length, bundle.length // 40):
        some = clipped(bundle.segments(0, bundle.length), start, start + 9000)
        assert merged(bundle.segments(start, min(start + 9000, bundle.length))) == merged(some)


@given(paths, sizes, times)
def test_a_header_is_as_long_as_planned(name: str, size: int, mtime: int) -> None:
    assert header_length(name, size, mtime) == len(FILE.header(name, size, mtime))
    assert header_length(f"{name}/", 0, mtime) == len(DIRECTORY.header(f"{name}/", 0, mtime))


plain_names = st.text(st.characters(max_codepoint=127, exclude_characters="\0/"), min_size=1)


@given(
    plain_names.filter(lambda n: len(n) <= 100), st.integers(0, 8**11 - 1), st.integers(0, 2**32)
)
def test_a_plain_header_is_what_tarfile_writes(name: str, size: int, mtime: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mtime = size, mtime
    assert FILE.plain(name, size, mtime) == info.tobuf(tarfile.PAX_FORMAT)
    assert FILE.header(name, size, mtime) == info.tobuf(tarfile.PAX_FORMAT)


@given(st.integers(1, 155), st.integers(1, 100), st.sampled_from("a\x7f"))
def test_a_plain_header_has_a_long_top_folder_in_its_prefix(
    top: int, path: int, letter: str
) -> None:
    name = f"{letter * top}/{letter * path}"
    plain = FILE.plain(name, 8**11 - 1, 8**11 - 1, b"before")
    assert plain == b"before" + FILE.header(name, 8**11 - 1, 8**11 - 1)


@given(layouts(small_sizes), st.integers(1, 6), st.data())
def test_any_range_of_any_tar_is_the_slice_of_the_whole(
    members: list[Member], page: int, data: st.DataObject
) -> None:
    bundle = build_tar(members, top="top", page=page)
    whole = materialised(bundle.segments(0, bundle.length))
    assert len(whole) == bundle.length
    start = data.draw(st.integers(0, bundle.length))
    stop = data.draw(st.integers(start, bundle.length))
    pieces = list(bundle.segments(start, stop))
    assert materialised(pieces) == whole[start:stop]
    assert all(p.data if isinstance(p, Literal) else p.length for p in pieces)


def test_every_range_between_two_edges_is_the_slice_of_the_whole() -> None:
    members = [member("a/b/x", 700), member("a/empty"), member("ü", 512), member("a/c/y", 1)]
    bundle = build_tar(members, top="top")
    whole = materialised(bundle.segments(0, bundle.length))
    blocks = range(0, bundle.length + 1, tarfile.BLOCKSIZE)
    edges = sorted({min(max(b + d, 0), bundle.length) for b in blocks for d in (-1, 0, 1, 188)})
    for place, start in enumerate(edges):
        for stop in edges[place:]:
            assert materialised(bundle.segments(start, stop)) == whole[start:stop]


def clipped(pieces: Iterable[Literal | Slice], start: int, stop: int) -> Iterator[Literal | Slice]:
    """Yield the bytes by clipping every segment: slow and simple."""
    at = 0
    for piece in pieces:
        length = len(piece.data) if isinstance(piece, Literal) else piece.length
        low, high = max(start, at) - at, min(stop, at + length) - at
        if low < high and isinstance(piece, Literal):
            yield Literal(piece.data[low:high])
        elif low < high and isinstance(piece, Slice):
            yield replace(piece, offset=low, length=high - low)
        at += length


@given(layouts(sizes), st.data())
def test_a_range_of_a_huge_tar_is_cut_out_of_its_pieces(
    members: list[Member], data: st.DataObject
) -> None:
    bundle = build_tar(members, top="top")
    start = data.draw(st.integers(0, bundle.length))
    stop = data.draw(st.integers(start, bundle.length))
    whole = bundle.segments(0, bundle.length)
    assert merged(bundle.segments(start, stop)) == merged(clipped(whole, start, stop))


class Watched(str):
    """Joined paths that count how often they are split."""

    asked = 0

    def split(self, *separator: Any) -> list[str]:
        self.asked += 1
        return super().split(*separator)


def watched(count: int) -> tuple[VirtualTar, list[Watched]]:
    members = [member(f"d{number // 100}/f{number}", 4096) for number in range(count)]
    bundle = build_tar(members, top="top")
    joined = bundle.index.members.joined
    joined[:] = places = [Watched(paths) for paths in joined]
    return bundle, places


def test_a_late_range_splits_only_the_path_strings_it_needs() -> None:
    bundle, places = watched(5000)
    late = bundle.length - 100_000
    assert sum(1 for _ in bundle.segments(late, late + 5000)) > 1
    assert [paths.asked for paths in places] == [*[0] * (len(places) - 1), 1]


def test_the_pieces_come_one_by_one() -> None:
    bundle, places = watched(5000)
    segments = bundle.segments(0, bundle.length)
    assert [type(next(segments)) for _ in range(3)] == [Literal, Literal, Slice]
    assert [paths.asked for paths in places] == [1, *[0] * (len(places) - 1)]


@pytest.mark.parametrize(("start", "stop"), [(-1, 5), (6, 5), (0, 10_241)])
def test_a_range_outside_the_tar_is_refused_at_once(start: int, stop: int) -> None:
    bundle = build_tar([], top="top")
    assert bundle.length == 10_240
    with pytest.raises(ValueError, match="no bytes"):
        bundle.segments(start, stop)


def sparse_tar(path: Path, members: list[Member]) -> None:
    """Write the whole tar without the contents of its files."""
    bundle = build_tar(members, top="b")
    with path.open("wb") as file:
        for piece in bundle.segments(0, bundle.length):
            if isinstance(piece, Literal):
                file.write(piece.data)
            else:
                file.seek(piece.length, os.SEEK_CUR)
        file.truncate(bundle.length)


LISTING = {
    "tar": ("tar", "-tvf"),
    "bsdtar": ("bsdtar", "-tvf"),
    "busybox": ("busybox", "tar", "-tvf"),
    "lsar": ("lsar", "-l"),
    "7zz": ("7zz", "l", "-ba"),
    "pax": ("pax", "-v", "-f"),
}


@pytest.mark.parametrize("tool", LISTING)
def test_readers_find_the_member_behind_one_of_more_than_8_gib(tool: str, tmp_path: Path) -> None:
    # Debian's pax does not support base 256; nor does GNU cpio, which reads the whole file anyway.
    sizes = [9 * 2**30] if tool == "pax" else [9 * 2**30, 65 * 2**30]
    members = [member(f"large-{number}", size) for number, size in enumerate(sizes)]
    path = tmp_path / "large.tar"
    sparse_tar(path, [*members, member("tail", 5)])
    env = {**os.environ, "LC_ALL": "C.UTF-8"}
    done = subprocess.run([*LISTING[tool], path], env=env, capture_output=True, check=True)
    listed = done.stdout.decode()
    assert "b/tail" in listed
    for each in members:
        assert re.search(rf"\b{each.size}\b.*b/{each.path}", listed)


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
        build_tar([member("good/file"), member(path)], top="top")


@pytest.mark.parametrize("top", ["", ".", "..", "a\0b", "\udc80", "a/b"])
def test_the_top_folder_is_one_component(top: str) -> None:
    with pytest.raises(ValueError, match=r"not the name|surrogates"):
        build_tar([member("file")], top=top)


def test_a_negative_size_is_refused() -> None:
    with pytest.raises(ValueError, match="member"):
        build_tar([member("file", -1)], top="top")


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
    etag = build_tar(BASE, top="top").etag
    assert build_tar(members, top="top").etag != etag


def test_the_etag_is_strong_quoted_and_follows_the_top() -> None:
    etag = build_tar(BASE, top="top").etag
    assert etag.startswith('"') and etag.endswith('"') and len(etag) == 66
    assert build_tar(list(BASE), top="top").etag == etag
    assert build_tar(BASE, top="pot").etag != etag


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
    bundle = build_tar(REAL, top="my cart")
    path = tmp_path / "real.tar"
    path.write_bytes(materialised(bundle.segments(0, bundle.length)))
    return path


def assert_unpacked(root: Path) -> None:
    """Check that exactly the members exist, with their bytes and times."""
    found = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}
    assert found == {f"my cart/{each.path}" for each in REAL}
    for each in REAL:
        path = root / "my cart" / each.path
        assert path.read_bytes() == content(each.path, each.size)
        assert path.stat().st_mtime == each.mtime
    assert (root / "my cart").stat().st_mtime == 1_600_000_000
    assert (root / "my cart/über").stat().st_mtime == 1_400_000_000


def names() -> list[str]:
    every = folders(REAL, "my cart")
    return [name if isinstance(each, Member) else f"{name}/" for name, each in every]


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
        # The default of Python 3.14; supported by 3.11 since 3.11.4.
        tar.extraction_filter = getattr(tarfile, "data_filter", None)
        infos = []
        for info in tar:
            infos.append(info)
            tar.extract(info, tmp_path / "out")
    listed = [f"{info.name}/" if info.isdir() else info.name for info in infos]
    assert listed == names()
    assert {(i.uid, i.gid, i.uname, i.gname) for i in infos} == {(0, 0, "", "")}
    assert {(i.isdir(), i.mode) for i in infos} == {(True, 0o755), (False, 0o644)}
