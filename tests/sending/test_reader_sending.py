"""A tree that is sent to a socket has the same bytes as one that is read."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cartd.errors import FileUnreadable, VolumeDamaged
from cartd.sending.reader import (
    COALESCE_SIZE,
    SENDFILE_MIN,
    SENDFILE_STEP,
    TarReader,
    TreeReader,
)
from cartd.tar.virtual_tar import Slice
from tests.support.built_tars import Member, build_tar

SIZES = {
    "a/long": 3 * SENDFILE_STEP + 17,
    "a/tiny": 3,
    "a/empty": 0,
    "b/just long": SENDFILE_MIN,
    "b/just short": SENDFILE_MIN - 1,
    **{f"c/{number}": 5000 for number in range(2 * COALESCE_SIZE // 5000)},
    "d/last": SENDFILE_STEP,
}
BUNDLE = build_tar([Member(path, size, 1, "md5", "") for path, size in SIZES.items()], top="top")
ENOUGH = 10**9


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    for path, size in SIZES.items():
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_bytes(os.urandom(size))
    return root


@pytest.fixture(scope="module")
def tar(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tar") / "uid.tar"
    path.write_bytes(whole(tree).read(BUNDLE.length))
    return path


class Ends:
    """Both ends of a non-blocking connection with small buffers."""

    def __init__(self) -> None:
        self.near, self.far = socket.socketpair()
        self.near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 50_000)
        for end in (self.near, self.far):
            end.setblocking(False)

    def drain(self) -> bytes:
        """Return the bytes received at the far end."""
        parts = []
        try:
            while part := self.far.recv(2**20):
                parts.append(part)
        except BlockingIOError:
            pass
        return b"".join(parts)

    def close(self) -> None:
        self.near.close()
        self.far.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends()
    yield ends
    ends.close()


def whole(root: Path) -> TreeReader:
    return TreeReader(root, BUNDLE.segments(0, BUNDLE.length))


def everything(reader: TreeReader, ends: Ends, limit: int = ENOUGH) -> bytes:
    """Return all bytes that it sends; check the counts that it returns."""
    parts: list[bytes] = []
    sent = 0
    while not reader.at_end:
        step = reader.send(ends.near, limit)
        assert step < limit + COALESCE_SIZE
        sent += step
        parts.append(ends.drain())
    reader.close()
    received = b"".join(parts)
    assert sent == len(received)
    return received


@settings(max_examples=40)
@given(st.data())
def test_any_range_is_sent_as_it_is_read(tree: Path, tar: Path, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, BUNDLE.length))
    stop = data.draw(st.integers(start, BUNDLE.length))
    limit = data.draw(st.integers(1000, 10**6))
    expected = tar.read_bytes()[start:stop]
    ends = Ends()
    try:
        assert everything(TreeReader(tree, BUNDLE.segments(start, stop)), ends, limit) == expected
        assert everything(TarReader(tar, BUNDLE.length, start, stop), ends, limit) == expected
    finally:
        ends.close()


def test_what_the_socket_does_not_take_is_sent_later(tree: Path, tar: Path, ends: Ends) -> None:
    reader = whole(tree)
    first = reader.send(ends.near, ENOUGH)
    assert 0 < first < BUNDLE.length
    assert reader.send(ends.near, ENOUGH) == 0
    assert not reader.at_end
    received = ends.drain()
    assert len(received) == first
    assert received + everything(reader, ends) == tar.read_bytes()


def test_a_send_ends_in_the_middle_of_a_long_file(tree: Path) -> None:
    quick, far = socket.socketpair()
    with quick, far:
        quick.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**20)
        quick.setblocking(False)
        reader = whole(tree)
        assert reader.send(quick, 100_000) == 100_000
        reader.close()


def fails(with_errno: int) -> Any:
    def sendfile(*_: object) -> int:
        raise OSError(with_errno, os.strerror(with_errno))

    return sendfile


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_the_file_system_knows_no_sendfile_it_is_read(
    tree: Path, tar: Path, ends: Ends, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "sendfile", fails(number))
    assert everything(whole(tree), ends) == tar.read_bytes()


def test_where_the_system_knows_no_sendfile_it_is_read(
    tree: Path, tar: Path, ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sendfile")
    assert everything(whole(tree), ends) == tar.read_bytes()


def test_sendfile_may_give_up_in_the_middle_of_a_file(
    tree: Path, tar: Path, ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = whole(tree)
    reader.send(ends.near, ENOUGH)
    begun = ends.drain()
    assert len(begun) < SIZES["a/long"]
    monkeypatch.setattr(os, "sendfile", fails(errno.EINVAL))
    assert begun + everything(reader, ends) == tar.read_bytes()


def test_a_disk_error_is_reported_for_the_file_not_the_client(
    tree: Path, ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sendfile", fails(errno.EIO))
    reader = whole(tree)
    with pytest.raises(FileUnreadable, match="cannot be read on the volume: Input/output"):
        reader.send(ends.near, ENOUGH)
    reader.close()


def test_a_long_file_that_shrinks_while_it_is_sent_is_damage(tmp_path: Path, ends: Ends) -> None:
    size = 3 * SENDFILE_STEP
    (tmp_path / "f").write_bytes(bytes(size))
    plan = build_tar([Member("f", size, 1, "md5", "")], top="t")
    reader = TreeReader(tmp_path, plan.segments(0, plan.length))
    reader.send(ends.near, ENOUGH)
    os.truncate(tmp_path / "f", len(ends.drain()) - 1024)
    with pytest.raises(VolumeDamaged, match="f was truncated"):
        reader.send(ends.near, ENOUGH)
    reader.close()


def test_prepare_reports_a_missing_first_file(tmp_path: Path) -> None:
    with pytest.raises(VolumeDamaged, match="a/long is missing"):
        whole(tmp_path).prepare()


def test_preparing_loses_nothing(tree: Path, tar: Path, ends: Ends) -> None:
    reader = whole(tree)
    reader.prepare()
    reader.prepare()
    assert everything(reader, ends) == tar.read_bytes()


def test_a_client_that_has_left_is_an_error_of_the_connection(tree: Path, ends: Ends) -> None:
    ends.far.close()
    reader = whole(tree)
    with pytest.raises(ConnectionError):
        reader.send(ends.near, ENOUGH)
    reader.close()


def test_a_long_slice_that_was_just_written_is_cached(tree: Path) -> None:
    reader = whole(tree)
    assert not reader.is_cached(ENOUGH)  # its first segment has not been opened
    reader.prepare()
    assert reader.is_cached(ENOUGH) and reader.is_cached(1)
    reader.close()


def test_short_files_are_not_reported_as_cached(tree: Path) -> None:
    reader = TreeReader(tree, iter([Slice("a/tiny", 3, 0, 3)]))
    reader.prepare()
    assert not reader.is_cached(ENOUGH)


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EOPNOTSUPP])
@pytest.mark.parametrize("which", ["first", "last"])
def test_data_on_the_disk_alone_is_not_cached(
    tree: Path, monkeypatch: pytest.MonkeyPatch, which: str, number: int
) -> None:
    size = SIZES["a/long"]
    uncached = {"first": 10, "last": size - 1}[which]

    def preadv(_file: int, buffers: list[bytearray], offset: int, flags: int) -> int:
        assert flags == os.RWF_NOWAIT
        if offset == uncached:
            raise OSError(number, os.strerror(number))
        return len(buffers[0])

    monkeypatch.setattr(os, "preadv", preadv)
    reader = TreeReader(tree, iter([Slice("a/long", size, 10, size - 10)]))
    reader.prepare()
    assert not reader.is_cached(ENOUGH)
    assert reader.is_cached(1000) == (which == "last")
    reader.close()
