"""File locks, and systems and volumes that do not support them."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from pathlib import Path

import pytest

from cartd.files import LocksUnsupported, lock_holder, try_lock
from tests.support.cart_site import CartSite
from tests.support.running_cartd import RunningCartd, command, running_cartd
from tests.support.served_directory import served_directory
from tests.support.without_flock import without_flock

FILES = {"a": b"first", "b/c": b"second"}


def opened(path: Path) -> int:
    return os.open(path, os.O_RDONLY)


def test_a_lock_is_held_until_its_descriptor_is_closed(tmp_path: Path) -> None:
    first, second = opened(tmp_path), opened(tmp_path)
    assert lock_holder(first) == ""
    assert try_lock(first)
    assert not try_lock(second)
    assert not try_lock(second, shared=True)
    assert lock_holder(second) in (f"process {os.getpid()}", "")  # not every kernel has /proc/locks
    os.close(first)
    assert try_lock(second)
    os.close(second)


def test_a_shared_lock_forbids_only_one_that_is_not(tmp_path: Path) -> None:
    shared = [opened(tmp_path), opened(tmp_path)]
    alone = opened(tmp_path)
    assert all(try_lock(fd, shared=True) for fd in shared)
    assert not try_lock(alone)
    for fd in (*shared, alone):
        os.close(fd)


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES])
def test_errnos_that_mean_the_lock_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    assert not try_lock_that_fails(tmp_path, monkeypatch, number)


@pytest.mark.parametrize(
    "number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL, errno.EIO]
)
def test_other_errors_mean_that_locks_are_unsupported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with pytest.raises(LocksUnsupported, match=os.strerror(number)):
        try_lock_that_fails(tmp_path, monkeypatch, number)


def try_lock_that_fails(path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> bool:
    def fails(_fd: int, _how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fails)
    fd = opened(path)
    try:
        return try_lock(fd)
    finally:
        os.close(fd)


# A volume without locks


def run_without(cartd: RunningCartd, *arguments: str) -> tuple[int, str, str]:
    """Run a command without locks; return its exit status, output and errors."""
    line = without_flock([command("cartd-cmd"), *arguments])
    done = cartd.run(Path(sys.executable).name, *line[1:], check=False)
    return done.returncode, done.stdout, done.stderr


def test_a_service_without_locks_logs_it_once_and_serves(tmp_path: Path) -> None:
    with (
        served_directory(tmp_path / "archive") as archive,
        running_cartd(tmp_path / "cartd", archive=archive.url, started=False) as cartd,
    ):
        cartd.program = without_flock(cartd.twistd)
        cartd.start()
        site = CartSite(tmp_path, cartd, archive)
        site.stage("kept", FILES)
        assert cartd.download("kept") == FILES
        [line] = [line for line in cartd.log.splitlines() if "file locks" in line]
        assert f"#warn] The volume {cartd.volume} has no file locks (Function not imp" in line
        assert cartd.terminate() == 0
        assert list((cartd.volume / "holders").iterdir()) == []
        line = f"cartd-cmd: The volume {cartd.volume} has no file locks (Function not implemented)"
        for arguments in (["verify"], ["fixit", "--cartid", "kept"], ["purge"], ["dump"]):
            status, _, said = run_without(cartd, *arguments)
            assert status == 0, said
            assert said.count("file locks") == 1
            assert line in said
            assert "Traceback" not in said
