"""A volume on a real file system that fails to write or remove files: no ready cart is lost.

The file system is a separate ext4 on a loop device; that, and the flags of files, need root.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.archived_carts import content, in_a_thread, manifest_of, stage, url_of
from tests.support.cartd_with_archive import assert_no_unexpected_errors
from tests.support.faulty_archive import FaultyArchive
from tests.support.running_cartd import RunningCartd, running_cartd, wait_for
from tests.support.wire import wire

pytest_plugins = ("tests.support.archive_fixtures",)
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="ext4 and loop devices")

KB = 1000
CARTS = [f"cart-{number}" for number in range(8)]
SIZE = 100 * KB


def run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


class Ext4:
    """Mount a file system of 16 MiB at ``mounted``."""

    def __init__(self, image: Path, mounted: Path) -> None:
        self._image = image
        self.mounted = mounted

    def mount(self) -> None:
        run("mount", "-o", "loop,errors=remount-ro", self._image, self.mounted)

    def unmount(self) -> None:
        subprocess.run(["chattr", "-R", "-f", "-ia", self.mounted], check=False)
        run("umount", self.mounted)

    def breaks(self) -> None:
        """Make the kernel find an error in it and remount it read-only."""
        device = Path(run("findmnt", "--noheadings", "--output", "SOURCE", self.mounted))
        Path("/sys/fs/ext4", device.name, "trigger_fs_error").write_text("1")

    def repair(self) -> None:
        """Repair it, as an administrator does while it is not mounted."""
        self.unmount()
        subprocess.run(["e2fsck", "-fy", self._image], check=False, stdout=subprocess.DEVNULL)
        self.mount()

    def flag(self, change: str, *paths: Path) -> None:
        run("chattr", "-R", change, *paths)


@contextmanager
def ext4(image: Path, mounted: Path) -> Iterator[Ext4]:
    with image.open("wb") as file:
        file.truncate(16 * 2**20)
    run("mkfs.ext4", "-q", image)
    mounted.mkdir()
    disk = Ext4(image, mounted)
    disk.mount()
    try:
        yield disk
    finally:
        disk.unmount()


def ini(quota: int, reserve: int = 0) -> str:
    return f"[cartd]\nvolume_quota = {quota}\nvolume_reserve = {reserve}\nlru_interval = 0.1\n"


@contextmanager
def site_with_carts(archive: FaultyArchive, directory: Path) -> Iterator[tuple[RunningCartd, Ext4]]:
    """Start the service with eight ready carts, which fill their quota."""
    beside = running_cartd(
        directory / "cartd", archive=url_of(archive), ini=ini(8 * SIZE), started=False
    )
    with beside as cartd, ext4(directory / "image", cartd.volume) as disk:
        try:
            cartd.start()
            for uid in CARTS:
                stage(cartd, archive, uid, SIZE)
            restart(cartd, 8 * SIZE)
            yield cartd, disk
            assert_no_unexpected_errors(cartd.log)
        finally:
            cartd.terminate()


def restart(cartd: RunningCartd, quota: int, reserve: int = 0) -> None:
    """Stop the service, which syncs what it has staged, and start it with other limits.

    Files that are not synced when the disk breaks are verified again, and are not ready meanwhile.
    """
    assert cartd.terminate() == 0
    cartd.configure(ini(quota, reserve))
    cartd.start()


def ready(cartd: RunningCartd) -> list[str]:
    """Return the uids of the carts that are sent, with the right bytes."""
    answer = [uid for uid in CARTS if cartd.request("HEAD", f"/{uid}").status == 204]
    for uid in answer:
        assert cartd.download(uid) == {"dir/file-0": content(f"{uid}-0", SIZE)}
    return answer


def lines(cartd: RunningCartd, *having: str) -> int:
    """Return how many lines of the log contain all of these."""
    return sum(all(text in line for text in having) for line in cartd.log.splitlines())


REFUSED = "Cannot free space on the volume: "
READ_ONLY = REFUSED + "Read-only file system"


@in_a_thread
def test_a_read_only_file_system_costs_no_ready_cart(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    with site_with_carts(archive, tmp_path) as (cartd, disk):
        disk.breaks()
        for number in range(4):
            uid = f"new-{number}"
            assert cartd.post(uid, manifest_of(archive, uid, SIZE)).status == 201
            assert cartd.wait_until(uid, "error") == READ_ONLY
        assert ready(cartd) == CARTS
        assert lines(cartd, REFUSED, "ready carts are kept") == 1
        # A cart that a client deletes returns 404, and its files stay on the volume.
        assert cartd.delete(CARTS[0]).status == 200
        assert ready(cartd) == CARTS[1:]
        assert (cartd.volume / "1").exists()
        purged = cartd.run("cartd-cmd", "purge", "--time-ago", "0 days ago", check=False)
        assert purged.returncode == 1
        assert len(purged.stderr.splitlines()) == 1
        assert ready(cartd) == CARTS[1:]
        assert lines(cartd, "cannot be removed") <= 2


@in_a_thread
def test_a_disk_filled_by_others_costs_no_ready_cart(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    """Without a post: it is the reserve that cannot be kept."""
    with site_with_carts(archive, tmp_path) as (cartd, disk):
        restart(cartd, 8 * SIZE, reserve=8 * 2**20)
        cartd.send(signal.SIGSTOP)
        (cartd.volume / "theirs").write_bytes(bytes(6 * 2**20))
        disk.breaks()
        cartd.send(signal.SIGCONT)
        wait_for(lambda: lines(cartd, READ_ONLY) == 1)
        assert ready(cartd) == CARTS


@pytest.mark.parametrize("flag", ["+i", "+a"])
@in_a_thread
def test_unremovable_files_cost_no_ready_cart(
    archive: FaultyArchive, tmp_path: Path, flag: str
) -> None:
    with site_with_carts(archive, tmp_path) as (cartd, disk):
        carts = [cartd.volume / str(number) / uid for number, uid in enumerate(CARTS, 1)]
        disk.flag(flag, *carts)
        restart(cartd, 7 * SIZE)
        wait_for(lambda: lines(cartd, REFUSED + "Operation not permitted") == 1)
        assert ready(cartd) == CARTS
        purged = cartd.run("cartd-cmd", "purge", "--time-ago", "0 days ago", check=False)
        assert purged.returncode == 1
        assert "Operation not permitted" in purged.stderr
        assert len(purged.stdout.splitlines()) == 3
        assert ready(cartd) == CARTS
        disk.flag(f"-{flag[1]}", *carts)
        wait_for(lambda: lines(cartd, "Carts can be evicted again") == 1)
        assert len(ready(cartd)) == 7  # eviction ended at the second
        stage(cartd, archive, "new", SIZE)


@in_a_thread
def test_of_an_unremovable_and_another_cart_the_other_goes(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    with site_with_carts(archive, tmp_path) as (cartd, disk):
        disk.flag("+i", cartd.volume / "1" / CARTS[0])
        for number in range(3):
            stage(cartd, archive, f"new-{number}", SIZE)
        assert ready(cartd) == [CARTS[0], *CARTS[4:]]
        assert lines(cartd, REFUSED) == 0
        assert lines(cartd, "Cart 1 ", "cannot be removed: Operation not permitted") == 1


@pytest.mark.parametrize("bundle", [False, True], ids=["a tree", "a bundle"])
@in_a_thread
def test_a_damaged_cart_stays_ready_while_nothing_can_be_written(
    archive: FaultyArchive, tmp_path: Path, bundle: bool
) -> None:
    with site_with_carts(archive, tmp_path) as (cartd, disk):
        restart(cartd, 2**30)
        stage(cartd, archive, "hurt", SIZE, bundle=bundle)
        stage(cartd, archive, "long", 60 * SIZE)
        restart(cartd, 2**30)
        long = cartd.get("/long?filename=data.tar").body
        with wire(cartd.port, receive_buffer=64 * 1024) as connection:
            connection.get("/long?filename=data.tar")
            connection.head()
            came = connection.read(1000)
            os.truncate(cartd.volume / "9" / ("hurt.tar" if bundle else "hurt/dir/file-0"), 10)
            os.truncate(cartd.volume / "10/long/dir/file-0", 59 * SIZE)
            run("sync", "--file-system", cartd.volume)  # what is only in the journal would be lost
            disk.breaks()
            came += connection.rest()
        assert len(came) < len(long)
        for _ in range(3):
            answer = cartd.get("/hurt?filename=data.tar")
            assert (answer.status, answer.headers["retry-after"]) == (503, "2")
            assert b"the volume is not writable (Read-only file system)" in answer.body
            assert cartd.status("hurt") == ("ready", "")
        fixed = cartd.run("cartd-cmd", "fixit", "--cartid", "hurt", check=False)
        repaired = cartd.run("cartd-cmd", "verify", "--repair", "--cartid", "hurt", check=False)
        assert (fixed.returncode, repaired.returncode) == (1, 1)
        assert "cannot be used: Read-only file system" in repaired.stderr
        assert cartd.status("hurt") == cartd.status("long") == ("ready", "")
        assert ready(cartd) == CARTS
        assert lines(cartd, "The volume is not writable: Read-only file system") == 1
        assert lines(cartd, " not sent: ") == lines(cartd, "restaging") == 0

        assert cartd.terminate() == 0
        disk.repair()
        cartd.start()
        for uid in ("hurt", "long"):
            cartd.get(f"/{uid}?filename=data.tar")
            cartd.wait_until(uid, "ready")
            wait_for(lambda uid=uid: len(archive.seen("GET", f"{uid}-0")) == 2)
            cartd.wait_until(uid, "ready")
        assert cartd.get("/long?filename=data.tar").body == long


@in_a_thread
def test_an_unsynced_cart_is_ready_after_verification(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    with site_with_carts(archive, tmp_path) as (cartd, disk):
        restart(cartd, 2**30)
        stage(cartd, archive, "fresh", SIZE)
        disk.breaks()
        wait_for(lambda: lines(cartd, "(fresh): verifying 1 files") == 1)
        cartd.wait_until("fresh", "ready")
        assert cartd.download("fresh") == {"dir/file-0": content("fresh-0", SIZE)}
        assert len(archive.seen("GET", "fresh-0")) == 1
        assert ready(cartd) == CARTS
