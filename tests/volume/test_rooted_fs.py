"""RootedFS follows no link out of its root, and never blocks on a pipe."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cartd.sending import reader
from cartd.sending.reader import DirFdCache
from cartd.volume.rooted_fs import CREATE_FLAGS, MAX_OPEN, RootedFS, open_directory
from tests.support.volume_parts import open_below

SECRET = b"not of this volume"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "outside" / "deep").mkdir(parents=True)
    for name in ("file", "deep/file"):
        (tmp_path / "outside" / name).write_bytes(SECRET)
    root = tmp_path / "root"
    (root / "a" / "deep").mkdir(parents=True)
    (root / "a" / "deep" / "file").write_bytes(b"inside")
    (root / "link").symlink_to(tmp_path / "outside")
    (root / "a" / "file").symlink_to(tmp_path / "outside" / "file")
    return root


@pytest.fixture
def fs(root: Path) -> Iterator[RootedFS]:
    with RootedFS(root) as fs:
        yield fs
    assert open_below(root) == 0


def whole(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def read(root: Path, path: str) -> int:
    files = DirFdCache(root)
    with files:
        return files.open(path)


WAYS: dict[str, Callable[[RootedFS, Path], object]] = {
    "lstat": lambda fs, path: fs.lstat(path),
    "open": lambda fs, path: fs.open(path),
    "open a file": lambda fs, path: fs.open_file(path),
    "create": lambda fs, path: fs.open(path.with_name("new"), CREATE_FLAGS),
    "mkdir": lambda fs, path: fs.mkdir(path.with_name("new")),
    "make": lambda fs, path: fs.ensure_directory(path.with_name("new")),
    "unlink": lambda fs, path: fs.unlink(path),
    "rmdir": lambda fs, path: fs.rmdir(path.with_name("deep")),
    "rename from": lambda fs, path: fs.rename(path, fs.root / "new"),
    "rename to": lambda fs, path: fs.rename(fs.root / "a/deep/file", path),
    "replace to": lambda fs, path: fs.replace(fs.root / "a/deep/file", path),
    "list": lambda fs, path: fs.directory(path.parent).__enter__(),
    "read": lambda fs, path: read(fs.root, fs.relative(path)),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_symlink_to_a_directory_is_never_followed(
    root: Path, fs: RootedFS, way: Callable[[RootedFS, Path], object]
) -> None:
    outside = root.with_name("outside")
    before = whole(outside)
    for path in (root / "link" / "file", root / "link" / "deep" / "file"):
        with pytest.raises(NotADirectoryError):
            way(fs, path)
    assert whole(outside) == before
    assert sorted(path.name for path in outside.iterdir()) == ["deep", "file"]
    assert not fs.exists(root / "link" / "file")
    assert not fs.is_directory(root / "link")


@pytest.mark.parametrize("path", ["../outside/file", "a/../../outside/file", "..", "a//x", "."])
def test_dot_dot_names_are_refused(root: Path, fs: RootedFS, path: str) -> None:
    for opened in (fs.open_relative, lambda path: read(root, path)):
        with pytest.raises(OSError, match="leads out") as caught:
            opened(path)
        assert caught.value.errno == errno.EXDEV
    with pytest.raises(OSError, match="leads out"):
        fs.lstat(root.parent / "outside" / "file")


def test_a_link_to_a_file_is_itself_and_nothing_else(root: Path, fs: RootedFS) -> None:
    link = root / "a" / "file"
    for opened in (fs.open, fs.open_file, lambda _: read(root, "a/file")):
        with pytest.raises(OSError, match="symbolic link") as caught:
            opened(link)
        assert caught.value.errno == errno.ELOOP
    with pytest.raises(FileExistsError):
        fs.open(link, CREATE_FLAGS)
    assert fs.exists(link)
    fs.unlink(link)
    assert (root.with_name("outside") / "file").read_bytes() == SECRET


def test_pipes_and_sockets_are_neither_waited_for_nor_opened(root: Path, fs: RootedFS) -> None:
    os.mkfifo(root / "pipe")
    for name in ("pipe", "a"):
        with pytest.raises(OSError, match="not a regular file"):
            fs.open_file(root / name)
    with pytest.raises(NotADirectoryError), fs.directory(root / "pipe"):
        pass
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(root / "s"))
        with pytest.raises(OSError, match="No such device"):
            fs.open_file(root / "s")


def test_the_root_itself_may_be_reached_through_links(root: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(root)
    with RootedFS(tmp_path / "alias") as fs:
        os.close(fs.open_file(tmp_path / "alias" / "a/deep/file"))


def test_few_directories_stay_open_and_none_when_it_is_closed(root: Path) -> None:
    fs = RootedFS(root)
    deep = root.joinpath(*"abcdefghijklmnopqrstuvwxyz")
    deep.mkdir(parents=True)
    for path in (deep, *deep.parents[:20]):
        fs.ensure_directory(path / "made")
        assert open_below(root) <= MAX_OPEN
    with fs.directory(deep) as used:
        fs.close()
        assert os.listdir(used) == ["made"]  # noqa: PTH208
    assert open_below(root) == 0
    files = DirFdCache(root)
    for number in range(10):
        (deep / str(number)).mkdir()
        (deep / str(number) / "file").write_bytes(b"x")
        os.close(files.open(f"{(deep / str(number) / 'file').relative_to(root)}"))
        assert open_below(root) <= MAX_OPEN
    files.close()
    assert open_below(root) == 0


def test_directories_above_the_last_one_are_not_opened_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [f"c/{number}/{name}/file" for number in range(3) for name in ("x", "y")]
    for path in [*paths, "c/file", "c/0/file"]:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())
    opened: list[str] = []

    def open_and_note(dir_fd: int, name: str, path: str) -> int:
        opened.append(path)
        return open_directory(dir_fd, name, path)

    monkeypatch.setattr(reader, "open_directory", open_and_note)
    files = DirFdCache(root)
    with files:
        for path in ["c/0/x/file", "c/1/x/file", "c/1/y/file", "c/0/file", "c/file", "c/0/y/file"]:
            fd = files.open(path)
            assert os.read(fd, 100) == path.encode()
            os.close(fd)
    assert opened == ["c", "c/0", "c/0/x", "c/1", "c/1/x", "c/1/y", "c/0", "c/0", "c/0/y"]


def test_a_name_that_another_begins_with_is_another_directory(root: Path) -> None:
    for path in ("d/file", "de/file"):
        (root / path).parent.mkdir()
        (root / path).write_bytes(path.encode())
    files = DirFdCache(root)
    with files:
        for path in ("d/file", "de/file"):
            fd = files.open(path)
            assert os.read(fd, 100) == path.encode()
            os.close(fd)
