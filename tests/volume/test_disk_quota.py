"""A volume with a file system quota that the free space does not show.

It is a btrfs on a loop device; the volume is a subvolume with a size limit.  The kernel fails
writes beyond it with ``EDQUOT``, and frees removed bytes only when it has committed the removal.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.archived_carts import content, in_a_thread, manifest_of, stage, url_of
from tests.support.cartd_with_archive import assert_no_unexpected_errors, on_the_volume
from tests.support.faulty_archive import FaultyArchive
from tests.support.running_cartd import RunningCartd, running_cartd, wait_for

pytest_plugins = ("tests.support.archive_fixtures",)
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="btrfs and loop devices")

MB = 1_000_000
LIMIT = 8 * MB


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


@contextmanager
def limited(directory: Path, mounted: Path) -> Iterator[None]:
    """Mount a file system of 256 MiB at ``mounted``, with a subvolume of ``LIMIT`` bytes."""
    image, whole = directory / "image", directory / "whole"
    with image.open("wb") as file:
        file.truncate(256 * 2**20)
    run("mkfs.btrfs", "-q", image)
    whole.mkdir()
    mounted.mkdir()
    run("mount", "-o", "loop", image, whole)
    try:
        run("btrfs", "subvolume", "create", whole / "volume")
        run("btrfs", "quota", "enable", whole)
        run("btrfs", "qgroup", "limit", str(LIMIT), whole / "volume")
        run("mount", "--bind", whole / "volume", mounted)
        try:
            yield
        finally:
            run("umount", mounted)
    finally:
        run("umount", whole)


@contextmanager
def site(archive: FaultyArchive, directory: Path, ini: str) -> Iterator[RunningCartd]:
    ini = f"[cartd]\nvolume_reserve = 0\nlru_interval = 0.2\n{ini}"
    beside = running_cartd(directory / "cartd", archive=url_of(archive), ini=ini, started=False)
    with beside as cartd, limited(directory, cartd.volume):
        try:
            cartd.start()
            yield cartd
            assert_no_unexpected_errors(cartd.log)
        finally:
            cartd.terminate()


def is_right(cartd: RunningCartd, uid: str, size: int) -> None:
    assert cartd.download(uid) == {"dir/file-0": content(f"{uid}-0", size)}


@in_a_thread
def test_only_a_cart_beyond_the_disk_quota_is_in_error(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    with site(archive, tmp_path, "") as cartd:
        carts = ["a", "b"]
        for uid in carts:
            stage(cartd, archive, uid, 2 * MB)
        for uid, bundle in (("large", False), ("large-bundle", True)):
            body = manifest_of(archive, uid, 9 * MB, bundle=bundle)
            assert cartd.post(uid, body).status == 201
            assert cartd.wait_until(uid, "error") == "No Space Available"
        assert on_the_volume(cartd) == {"1/a/dir/file-0", "2/b/dir/file-0"}
        stage(cartd, archive, "c", 2 * MB)
        for uid in [*carts, "c"]:
            is_right(cartd, uid, 2 * MB)
        # A deletion frees space again, though the quota was reached.
        for uid in carts:
            assert cartd.delete(uid).status == 200
        wait_for(lambda: on_the_volume(cartd) == {"5/c/dir/file-0"})
        stage(cartd, archive, "d", 4 * MB)
        is_right(cartd, "d", 4 * MB)
        is_right(cartd, "c", 2 * MB)


@in_a_thread
def test_carts_are_evicted_where_the_file_system_has_a_quota(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    with site(archive, tmp_path, f"volume_quota = {6 * MB}\n") as cartd:
        for number in range(8):
            stage(cartd, archive, f"cart-{number}", 2 * MB)
        ready = [n for n in range(8) if cartd.request("HEAD", f"/cart-{n}").status == 204]
        assert ready == [5, 6, 7]
        for number in ready:
            is_right(cartd, f"cart-{number}", 2 * MB)
