"""Locks: a cart that one process sends is not removed by another."""

from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from cartd.errors import VolumeDamaged
from cartd.sending.reader import TreeReader
from cartd.tar.virtual_tar import Literal, Slice
from cartd.volume import Volume, locks
from cartd.volume.locks import SharedLock, exclusive_lock
from tests.support.volume_parts import CART, InThisThread, everything, result_of

SEND = """
import sys
from pathlib import Path
from cartd.volume.locks import SharedLock
lock = SharedLock(Path(sys.argv[1]))
lock.acquire()
print("taken", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a volume on which a cart has one file."""
    root = tmp_path / "volume"
    Volume(root, InThisThread()).prepare()
    staged(root)
    return root


def staged(root: Path) -> None:
    tree = root / str(CART.id) / CART.uid
    tree.mkdir(parents=True)
    (tree / "file").touch()


@contextmanager
def another_process_sends(root: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", SEND, str(root / str(CART.id))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "taken\n"
        yield process
        process.kill()


def test_a_cart_locked_by_another_process_stays_until_that_ends(root: Path) -> None:
    volume = Volume(root, InThisThread())
    before = everything(root)
    with another_process_sends(root) as process:
        assert result_of(volume.locks.in_use([CART.id, 8])) == {CART.id}
        assert not result_of(volume.removal.remove(CART))
        assert everything(root) == before
        process.kill()
        process.wait()
        assert result_of(volume.locks.in_use([CART.id, 8])) == set()
        assert result_of(volume.removal.remove(CART))
    assert everything(root) == {"cartuids", "incoming"}


def test_a_cart_is_in_use_until_its_last_shared_lock_is_released(root: Path) -> None:
    volume = Volume(root, InThisThread())
    first, second = volume.locks.shared(CART), volume.locks.shared(CART)
    first.acquire()
    second.acquire()
    second.acquire()
    first.release()
    first.release()
    assert not result_of(volume.removal.remove(CART))
    second.release()
    assert result_of(volume.removal.remove(CART))


def test_a_cart_being_removed_cannot_be_locked_for_sending(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "RETRY_INTERVAL", 0)
    directory = root / str(CART.id)
    lock = SharedLock(directory)
    with exclusive_lock(directory) as may_go:
        assert may_go
        with pytest.raises(VolumeDamaged, match="removed"):
            lock.acquire()
    lock.release()
    lock.acquire()
    assert result_of(Volume(root, InThisThread()).locks.in_use([CART.id])) == {CART.id}
    lock.release()


def test_a_brief_exclusive_lock_breaks_no_download(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = root / str(CART.id)
    lock = SharedLock(directory)
    with ExitStack() as looking:
        assert looking.enter_context(exclusive_lock(directory))
        monkeypatch.setattr(time, "sleep", lambda _: looking.close())
        lock.acquire()
    with exclusive_lock(directory) as may_go:
        assert not may_go
    lock.release()


def test_the_replacement_of_a_removed_directory_is_locked(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory is removed and created again between stat and lock."""
    directory = root / str(CART.id)
    flock = fcntl.flock

    def replaced_first(held: int, how: int) -> None:
        monkeypatch.undo()
        directory.rename(root / "incoming/gone")
        staged(root)
        flock(held, how)

    monkeypatch.setattr(fcntl, "flock", replaced_first)
    lock = SharedLock(directory)
    lock.acquire()
    assert not result_of(Volume(root, InThisThread()).removal.remove(CART))
    lock.release()


def test_a_missing_or_unlockable_directory_is_not_in_use(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = Volume(root, InThisThread())
    missing = SharedLock(root / "8")
    missing.acquire()
    missing.release()

    def refused(_held: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    lock = volume.locks.shared(CART)
    lock.acquire()
    assert result_of(volume.locks.in_use([CART.id])) == set()
    assert result_of(volume.removal.remove(CART))
    lock.release()


def test_a_reader_locks_its_cart_from_first_byte_to_close(root: Path) -> None:
    volume = Volume(root, InThisThread())
    pieces: list[Literal | Slice] = [Literal(b"one"), Slice("file", 0, 0, 0), Literal(b"two")]
    reader = TreeReader(volume.paths.tree(CART), iter(pieces), volume.locks.shared(CART))
    assert result_of(volume.locks.in_use([CART.id])) == set()
    assert reader.read(1) == b"o"
    assert result_of(volume.locks.in_use([CART.id])) == {CART.id}
    assert reader.read(100) == b"netwo"
    assert result_of(volume.locks.in_use([CART.id])) == {CART.id}
    reader.close()
    assert result_of(volume.locks.in_use([CART.id])) == set()
