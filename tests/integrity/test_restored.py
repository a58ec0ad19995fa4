"""A database restored from an older backup than the volume, or a volume older than the database."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from cartd.integrity.repair import Orphans
from cartd.model import CartStatus
from cartd.store import Store
from cartd.volume import Volume
from tests.support.archived_carts import content, in_a_thread, manifest_of, stage, url_of
from tests.support.cartd_with_archive import assert_no_unexpected_errors, on_the_volume
from tests.support.faulty_archive import FaultyArchive
from tests.support.running_cartd import RunningCartd, running_cartd, wait_for
from tests.support.stored_carts import posted, with_status
from tests.support.volume_parts import InThisThread, everything, in_the_loop

pytest_plugins = ("tests.support.archive_fixtures", "tests.support.database_fixtures")

OFTEN = "[cartd]\nlru_interval = 0.1\n"
NEVER = 10**9


@contextmanager
def running(directory: Path, archive: FaultyArchive) -> Iterator[RunningCartd]:
    with running_cartd(directory / "cartd", archive=url_of(archive), ini=OFTEN) as cartd:
        yield cartd
        assert cartd.terminate() == 0
        assert_no_unexpected_errors(cartd.log)


def back_up(cartd: RunningCartd) -> None:
    """Back up the database while the service runs."""
    with (
        closing(sqlite3.connect(cartd.directory / "cartd.sqlite3")) as source,
        closing(sqlite3.connect(cartd.directory / "backup")) as target,
    ):
        source.backup(target)


def restore(cartd: RunningCartd) -> None:
    """Restore the database while the service is stopped."""
    for path in cartd.directory.glob("cartd.sqlite3*"):
        path.unlink()
    shutil.copy(cartd.directory / "backup", cartd.directory / "cartd.sqlite3")


@in_a_thread
def test_new_carts_do_not_inherit_orphans_after_a_restore(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    with running(tmp_path, archive) as cartd:
        stage(cartd, archive, "kept", 1000)
        back_up(cartd)
        stage(cartd, archive, "lost", 2000, files=2)
        stage(cartd, archive, "lost-tar", 3000, files=2, bundle=True)
        stage(cartd, archive, "lost-too", 500)
        (cartd.volume / "7 of mine").mkdir()
        (cartd.volume / "8").mkdir()
        (cartd.volume / "8" / "mine").write_text("precious")
        cartd.terminate()
        restore(cartd)
        cartd.start()
        wait_for(lambda: "3 directories on the volume, such as 2, belong to no cart" in cartd.log)
        assert cartd.log.count("belong to no cart") == 1

        # It gets the id of a lost cart.
        stage(cartd, archive, "new", 1000)
        assert not any("lost/" in path for path in on_the_volume(cartd))
        assert cartd.download("new") == {"dir/file-0": content("new-0", 1000)}

        verify = cartd.run("cartd-cmd", "verify", check=False)
        assert (verify.returncode, verify.stdout.splitlines()[2:]) == (
            1,
            [
                "directory 3: 10,240 bytes, belongs to no cart",
                "directory 4: 500 bytes, belongs to no cart",
            ],
        )
        verify = cartd.run("cartd-cmd", "verify", "--repair")
        assert verify.stdout.splitlines()[-1] == "2 directories removed"
        assert on_the_volume(cartd) == {"1/kept/dir/file-0", "2/new/dir/file-0", "8/mine"}
        assert {path.name for path in (cartd.volume / "cartuids").iterdir()} == {
            "kept", "new", "lost",
        }  # fmt: skip
        assert cartd.run("cartd-cmd", "verify").returncode == 0


@in_a_thread
def test_an_older_volume_is_repaired_after_a_restore(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    with running(tmp_path, archive) as cartd:
        stage(cartd, archive, "deleted", 1000)
        cartd.terminate()
        shutil.copytree(cartd.volume, tmp_path / "backup", symlinks=True)
        cartd.start()
        stage(cartd, archive, "ready", 2000, files=2)
        archive.put("half-1", content("half-1", 500), tape_heads=NEVER)
        cartd.post("half", manifest_of(archive, "half", 1000, files=2))
        wait_for(lambda: cartd.staged("half") == 1)
        cartd.delete("deleted")
        cartd.terminate()
        shutil.rmtree(cartd.volume)
        shutil.copytree(tmp_path / "backup", cartd.volume, symlinks=True)
        archive.put("half-1", content("half-1", 500))
        cartd.start()
        wait_for(lambda: not (cartd.volume / "1").exists())

        # Files recorded as staged that are missing are fetched before the cart is ready.
        cartd.wait_until("half", "ready")
        assert cartd.download("half") == {
            f"dir/file-{n}": content(f"half-{n}", 500) for n in (0, 1)
        }
        assert "1 staged files are missing on the volume" in cartd.log

        assert cartd.get("/ready").status == 202
        cartd.wait_until("ready", "ready")
        assert cartd.download("ready") == {
            f"dir/file-{n}": content(f"ready-{n}", 1000) for n in (0, 1)
        }


@in_a_thread
def test_a_complete_bundle_is_resumed_without_its_tree(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    """As after a kill between writing and recording the tar."""
    with running(tmp_path, archive) as cartd:
        stage(cartd, archive, "tar", 2000, files=2, bundle=True)
        whole = cartd.get("/tar").body
        requests = len(archive.requests)
        cartd.kill()
        with closing(sqlite3.connect(cartd.directory / "cartd.sqlite3")) as database:
            database.execute("UPDATE cart SET status = 'bundling'")
            database.commit()
        cartd.start()
        cartd.wait_until("tar", "ready")
        assert cartd.get("/tar").body == whole
        assert len(archive.requests) == requests


class TestOrphans:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        return tmp_path / "volume"

    @pytest.fixture
    def volume(self, root: Path) -> Volume:
        volume = Volume(root, InThisThread())
        volume.prepare()
        return volume

    @in_the_loop
    async def test_only_unknown_cart_directories_are_orphans(
        self, store: Store, volume: Volume, root: Path
    ) -> None:
        for status in (CartStatus.READY, CartStatus.DELETED):
            cart = await with_status(store, status, status)
            (root / str(cart.id) / cart.uid).mkdir(parents=True)
        for path in ("10/tree/a/b", "11/bundle.tar", "12/both.tar", "13/two", "13/uids.tar"):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(bytes(10))
        (root / "12" / "both" / "deep").mkdir(parents=True)
        (root / "12" / "both" / "deep" / "file").hardlink_to(root / "12" / "both.tar")
        for path in ("14", "15/not a uid", "16/.hidden", "017/uid", "x18/uid", "incoming/20"):
            (root / path).mkdir(parents=True)
        (root / "19").symlink_to(root / "10")
        (root / "15" / "file").touch()
        (root / "incoming" / "20" / "half").write_bytes(bytes(3))
        found = await Orphans(store.carts, volume).find()
        assert {one.cart_id: one.size for one in found} == {10: 10, 11: 10, 12: 10, 14: 0, 20: 3}

    @in_the_loop
    async def test_an_orphan_that_became_a_cart_is_not_removed(
        self, store: Store, volume: Volume, root: Path
    ) -> None:
        for path in ("1/mine/a", "2/lost/a"):
            (root / path).mkdir(parents=True)
        (root / "cartuids" / "lost").symlink_to("../2/lost")
        orphans = Orphans(store.carts, volume)
        found = await orphans.find()
        assert [one.cart_id for one in found] == [1, 2]
        assert (await with_status(store, "mine", CartStatus.STAGING)).id == 1
        await orphans.remove(found)
        assert everything(root) == {"1", "1/mine", "1/mine/a", "cartuids", "incoming"}

    @in_the_loop
    async def test_ids_of_removed_orphans_are_not_reused(self, store: Store, database: str) -> None:
        assert await store.carts.retire_unknown_ids([7, 4]) == {4, 7}
        cart = await posted(store)
        assert cart.id == 8
        assert await store.carts.retire_unknown_ids([3, 8]) == {3}
        assert (await posted(store, "next")).id == 9
