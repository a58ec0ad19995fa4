"""The client's parser of tars: any cut of the stream, the writers of the field, hostile tars."""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cartd.tar.virtual_tar import Literal
from cartd_client.tar_stream import (
    BLOCK,
    END_OF_MEMBER,
    MAX_EXTENSION,
    Member,
    TarError,
    TarStream,
)
from tests.support import built_tars

PARTS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=120
).filter(lambda part: part not in (".", "..") and len(part.encode()) <= 255)
PATHS = st.lists(PARTS, min_size=1, max_size=4).map("/".join)
TIMES = st.integers(-(2**32), 2**33)
FILES = st.lists(
    st.tuples(PATHS, st.binary(max_size=2000), TIMES), max_size=5, unique_by=lambda file: file[0]
)
CUTS = st.lists(st.integers(1, 1500), max_size=12)


def parts(tar: bytes, cuts: Iterable[int]) -> Iterable[bytes]:
    """Cut ``tar``: parts of the lengths of ``cuts``, and the rest."""
    at = 0
    for length in cuts:
        yield tar[at : at + length]
        at += length
    yield tar[at:]


def read(
    tar: bytes, cuts: Iterable[int] = (), stream: TarStream | None = None
) -> list[Member | bytes]:
    """Return each member, and after each the content that was read of it."""
    stream = stream or TarStream()
    found: list[Member | bytes] = []
    content = bytearray()
    for part in parts(tar, cuts):
        for event in stream.feed(part):
            if isinstance(event, Member):
                found.append(event)
            elif isinstance(event, memoryview):
                assert event
                content += event
            else:
                assert event is END_OF_MEMBER
                found.append(bytes(content))
                content.clear()
    stream.close()
    return found


def contents(found: list[Member | bytes]) -> list[tuple[str, bytes, int]]:
    """Return name, content and seconds of the files."""
    members = zip(found[::2], found[1::2], strict=True)
    return [
        (member.name, content, member.mtime_ns // 10**9)
        for member, content in members
        if isinstance(member, Member) and isinstance(content, bytes) and not member.is_directory
    ]


def by_python(files: Iterable[tuple[str, bytes, int]], tar_format: int) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tar_format) as tar:
        for path, content, mtime in files:
            member = tarfile.TarInfo(path)
            member.size, member.mtime = len(content), mtime
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


@given(FILES, CUTS, st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_tars_by_python_are_read_however_they_are_cut(
    files: list[tuple[str, bytes, int]], cuts: list[int], tar_format: int
) -> None:
    # A name that ends in NULs or slashes is another one in the tar of Python.
    tar = by_python(files, tar_format)
    assert contents(read(tar, cuts)) == files


@given(FILES, CUTS, st.integers(0, 10**6))
@settings(max_examples=60)
def test_the_tar_of_cartd_is_read_and_continued_at_any_byte(
    files: list[tuple[str, bytes, int]], cuts: list[int], at: int
) -> None:
    contents_by_path = {path: content for path, content, _ in files}
    members = [
        built_tars.Member(path, len(content), mtime, "md5", "0" * 32)
        for path, content, mtime in files
    ]
    virtual = built_tars.build_tar(members, top="data")
    tar = b"".join(
        segment.data
        if isinstance(segment, Literal)
        else contents_by_path[segment.path][segment.offset : segment.offset + segment.length]
        for segment in virtual.segments(0, virtual.length)
    )
    whole = read(tar, cuts)
    assert contents(whole) == [(f"data/{path}", *rest) for path, *rest in files]

    # The offsets of members lead to the same: at a member's start, and within its content.
    for number, member in enumerate(whole[::2]):
        assert isinstance(member, Member)
        content = whole[2 * number + 1]
        assert isinstance(content, bytes)
        assert tar[member.data : member.data + member.size] == content
        rest = read(tar[member.start :], cuts, TarStream(member.start))
        assert rest == whole[2 * number :]
        inside = at % (member.size + 1)
        stream = TarStream.inside(member, member.data + inside)
        assert read(tar[member.data + inside :], cuts, stream) == [
            content[inside:],
            *whole[2 * number + 2 :],
        ]


def test_tars_by_gnu_tar_are_read(tmp_path: Path) -> None:
    long = "l" * 90 + "/" + "m" * 100
    (tmp_path / "top" / ("l" * 90)).mkdir(parents=True)
    (tmp_path / "top" / long).write_bytes(b"long")
    (tmp_path / "top" / "ä").write_bytes(b"x" * 3000)
    for tar_format in ("gnu", "pax", "ustar"):
        command = ["tar", f"--format={tar_format}", "--sort=name", "-cf", "-", "top"]
        tar = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True).stdout
        found = read(tar, [100, 600, 1])
        names = [member.name for member in found if isinstance(member, Member)]
        assert names == ["top", f"top/{'l' * 90}", f"top/{long}", "top/ä"], tar_format
        assert [content for content in found if isinstance(content, bytes)][2:] == [
            b"long",
            b"x" * 3000,
        ]


def header(name: str = "a", size: int = 0, kind: bytes = b"0", size_field: bytes = b"") -> bytes:
    """Return one block with a right checksum."""
    info = tarfile.TarInfo(name)
    info.size = size
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT)[:BLOCK])
    block[156:157] = kind
    if size_field:
        block[124:136] = size_field.ljust(12, b"\0")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def extension(kind: bytes, body: bytes) -> bytes:
    return header("x", len(body), kind) + body + bytes(-len(body) % BLOCK)


def record(keyword: bytes, value: bytes) -> bytes:
    length = len(keyword) + len(value) + 3
    while len(text := b"%d %b=%b\n" % (length, keyword, value)) != length:
        length = len(text)
    return text


END = bytes(2 * BLOCK)


def test_large_sizes_and_old_times_are_read() -> None:
    for head in (
        header(size_field=b"\x80" + (10**13).to_bytes(11, "big")),
        extension(b"x", record(b"size", b"10000000000000")) + header(),
    ):
        [member] = TarStream().feed(head)
        assert isinstance(member, Member)
        assert member.size == 10**13
        assert member.end == len(head) + 10**13
    [member] = TarStream().feed(extension(b"x", record(b"mtime", b"-1.5")) + header(size=9))
    assert isinstance(member, Member)
    assert member.mtime_ns == -1_500_000_000


@pytest.mark.parametrize(
    ("tar", "words"),
    [
        (header(kind=b"1") + END, "a hard link"),
        (header(kind=b"2") + END, "a symbolic link"),
        (header(kind=b"4") + END, "a block device"),
        (header(kind=b"6") + END, "a FIFO"),
        (header(kind=b"S") + END, "a sparse file"),
        (header(kind=b"Z") + END, "unknown type"),
        (extension(b"x", record(b"GNU.sparse.major", b"1")) + header() + END, "sparse"),
        (header(size=5, kind=b"5") + bytes(BLOCK) + END, "a directory with content"),
        (header("", kind=b"0") + END, "a name that is empty"),
        (extension(b"x", record(b"path", b"a\0b")) + header() + END, "has a NUL"),
        (extension(b"L", b"a" * 10) + END, "without a member"),
        (extension(b"x", b"99 path=a\n") + header() + END, "invalid pax records"),
        (extension(b"x", b"5 a=b\n") + header() + END, "invalid pax records"),
        (extension(b"x", b"path=a\n") + header() + END, "invalid pax records"),
        (extension(b"x", record(b"size", b"-1")) + header() + END, "invalid size"),
        (extension(b"x", record(b"size", b"9" * 19)) + header() + END, "a size that no file has"),
        (extension(b"x", record(b"mtime", b"nan")) + header() + END, "invalid time"),
        (extension(b"g", record(b"path", b"a")) + header() + END, "a global header"),
        (2 * extension(b"x", record(b"path", b"a")) + header() + END, "two extended headers"),
        (header(kind=b"x", size=MAX_EXTENSION + 1), "impossible size"),
        (header(kind=b"L", size=0) + END, "impossible size"),
        (header(size_field=b"\xff" * 12) + END, "a size that no file has"),
        (header(size_field=b"\x80" + b"\xff" * 11) + END, "a size that no file has"),
        (header(size_field=b"1_0") + END, "invalid size"),
        (header()[:300] + b"x" + header()[301:] + END, "wrong checksum"),
        (b"x" * BLOCK + END, "no header"),
        (bytes(BLOCK) + header() + END, "after the end mark"),
        (END + b"x" * BLOCK, "after the end mark"),
        (header(size=5) + b"12345", "before its end mark"),
        (header() + bytes(BLOCK), "before its end mark"),
        (header() + END + b"\0", "before its end mark"),
        (b"", "before its end mark"),
    ],
)
def test_what_no_cart_has_is_rejected(tar: bytes, words: str) -> None:
    for cuts in ([], [1, 511, 100]):
        with pytest.raises(TarError, match=words):
            read(tar, cuts)


def test_a_comment_for_all_members_changes_nothing() -> None:
    tar = extension(b"g", record(b"comment", b"abc")) + header("name") + END
    [member, content] = read(tar)
    assert isinstance(member, Member)
    assert (member.name, member.start, content) == ("name", 0, b"")


@given(st.binary(max_size=3000), CUTS)
def test_any_bytes_are_a_tar_or_an_error(data: bytes, cuts: list[int]) -> None:
    tar = bytearray(by_python([("a", b"x" * 700, 5), ("b" * 200, b"y", 7)], tarfile.PAX_FORMAT))
    for number, byte in enumerate(data):
        tar[number * 31 % len(tar)] ^= byte
    for text in (data, bytes(tar)):
        results: list[object] = []
        for cut in ((), cuts):
            try:
                results.append(read(text, cut))
            except TarError as error:
                results.append(str(error))
        assert results[0] == results[1]
