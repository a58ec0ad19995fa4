"""A disk that is full, read-only or broken while the service runs, and then works again."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from cartd.carts.delete import CONCURRENCY
from tests.support.archived_carts import content, in_a_thread, manifest_of, stage, url_of
from tests.support.cartd_with_archive import assert_no_unexpected_errors, on_the_volume
from tests.support.databases import sqlite_url
from tests.support.failing_disk import CHANGES, FULL, FailingDisk
from tests.support.faulty_archive import FaultyArchive
from tests.support.running_cartd import RunningCartd, entry, manifest, running_cartd, wait_for
from tests.support.wire import wire

pytest_plugins = ("tests.support.archive_fixtures",)

OFTEN = "[cartd]\nlru_interval = 0.2\nvolume_reserve = 0\n"
MIB = 2**20
SIZE = 3000
LARGE = 24 * MIB


@dataclass(frozen=True, slots=True)
class Site:
    cartd: RunningCartd
    archive: FaultyArchive
    disk: FailingDisk

    def stage(self, uid: str, size: int = SIZE, **more: object) -> None:
        stage(self.cartd, self.archive, uid, size, **more)  # type: ignore[arg-type]

    def fails(self, uid: str, size: int = SIZE, **more: object) -> str:
        """Post a cart that ends in error; return its message."""
        body = manifest_of(self.archive, uid, size, **more)  # type: ignore[arg-type]
        assert self.cartd.post(uid, body).status == 201
        return self.cartd.wait_until(uid, "error")

    def is_right(self, *uids: str, size: int = SIZE) -> None:
        for uid in uids:
            assert self.cartd.download(uid) == {"dir/file-0": content(f"{uid}-0", size)}

    def taken(self) -> int:
        """Return the bytes that all carts use according to the store, which must be right."""
        with closing(sqlite3.connect(self.cartd.directory / "cartd.sqlite3")) as database:
            query = "SELECT sum(volume_bytes) FROM cart WHERE deleted_date IS NULL"
            [(taken,)] = database.execute(query)
        paths = [self.cartd.volume / path for path in on_the_volume(self.cartd)]
        assert sum(path.stat().st_size for path in paths) == taken
        return int(taken)


@contextmanager
def site_beside(directory: Path, archive: FaultyArchive, **removal: int) -> Iterator[Site]:
    with running_cartd(
        directory / "cartd", archive=url_of(archive), ini=OFTEN, started=False
    ) as cartd:
        cartd.database = sqlite_url(cartd.directory / "cartd.sqlite3")
        disk = FailingDisk(directory / "orders", cartd.volume)
        cartd.program = disk.program(cartd.twistd, **removal)
        cartd.start()
        yield Site(cartd, archive, disk)
        assert cartd.terminate() == 0
        assert_no_unexpected_errors(cartd.log)


@in_a_thread
def test_a_failing_disk_is_reported_and_harms_no_other_cart(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    with site_beside(tmp_path, archive) as site:
        site.stage("before")
        expected = [
            (errno.ENOSPC, "write", "No Space Available"),
            (FULL[1], "write", "No Space Available"),
            (errno.ENOSPC, "create", "No Space Available"),
            (errno.ENOSPC, "mkdir", "No Space Available"),
            (errno.EIO, "write", "Input/output error"),
            (errno.EIO, "replace", "Input/output error"),
            (errno.EROFS, "create", "Read-only file system"),
        ]
        for number, (code, call, message) in enumerate(expected):
            cart_id = 2 + 2 * number
            site.disk.fail(code, call, path=f"/incoming/{cart_id}")
            uid, other = f"fails-{number}", f"other-{number}"
            assert message in site.fails(uid, LARGE // 8)
            assert len(archive.seen("GET", f"{uid}-0")) <= 1  # it is not retried for ever
            site.stage(other)
            site.is_right("before", other)
            assert not list((site.cartd.volume / "incoming").glob("*/*"))
            assert site.taken() == SIZE * (2 + number)

        site.disk.heal()
        fixed = site.cartd.run("cartd-cmd", "fixit", "--cartid", "fails-0")
        assert fixed.stderr == "fails-0: ready\n"
        assert site.cartd.post("fails-1", manifest_of(archive, "fails-1", LARGE // 8)).status == 201
        site.cartd.wait_until("fails-1", "ready")
        site.is_right("fails-0", "fails-1", size=LARGE // 8)


@pytest.mark.parametrize(
    ("code", "call", "message"),
    [
        (errno.ENOSPC, "write", "No Space Available"),
        (errno.EIO, "fsync", "Input/output error"),
        (errno.EIO, "read", "Input/output error"),
    ],
    ids=lambda value: str(value),
)
@in_a_thread
def test_a_disk_that_refuses_a_bundle_keeps_what_was_fetched(
    archive: FaultyArchive, tmp_path: Path, code: int, call: str, message: str
) -> None:
    with site_beside(tmp_path, archive) as site:
        where = "/dir/file-0" if call == "read" else "/incoming/1/tar-"
        site.disk.fail(code, call, path=where)
        assert message in site.fails("mine", bundle=True)
        # An unreadable file is useless, and would use space that is not counted.
        readable = call != "read"
        assert on_the_volume(site.cartd) == ({"1/mine/dir/file-0"} if readable else set())
        assert site.cartd.staged("mine") == readable
        site.disk.heal()
        assert site.cartd.run("cartd-cmd", "fixit", "--cartid", "mine").returncode == 0
        site.is_right("mine")
        assert on_the_volume(site.cartd) == {"1/mine.tar"}
        assert len(archive.seen("GET", "mine-0")) == (1 if readable else 2)


@in_a_thread
def test_a_full_disk_still_serves_ready_carts(archive: FaultyArchive, tmp_path: Path) -> None:
    with site_beside(tmp_path, archive) as site:
        site.stage("mine", LARGE)
        site.stage("gone")
        with wire(site.cartd.port, receive_buffer=64 * 1024) as connection:
            connection.get("/mine?filename=data.tar", "Connection: close")
            length = int(connection.head().headers["content-length"])
            first = connection.read(MIB)
            site.disk.fail(errno.EROFS, *CHANGES)
            assert len(first + connection.rest()) == length
        site.is_right("mine", size=LARGE)
        assert "Read-only file system" in site.fails("new")
        assert site.cartd.delete("gone").status == 200
        assert site.cartd.get("/gone").status == 404
        assert any(path.startswith("2/gone") for path in on_the_volume(site.cartd))
        site.disk.heal()
        wait_for(lambda: not (site.cartd.volume / "2").exists())
        assert site.cartd.run("cartd-cmd", "fixit", "--cartid", "new").returncode == 0
        site.is_right("new")


@pytest.mark.parametrize("bundle", [False, True], ids=["a tree", "a bundle"])
@in_a_thread
def test_an_unreadable_file_is_restaged(
    archive: FaultyArchive, tmp_path: Path, bundle: bool
) -> None:
    with site_beside(tmp_path, archive) as site:
        site.stage("mine", LARGE, bundle=bundle)
        whole = site.cartd.get("/mine?filename=data.tar").body
        with wire(site.cartd.port, receive_buffer=64 * 1024) as connection:
            connection.get("/mine?filename=data.tar")
            connection.head()
            first = connection.read(MIB)
            site.disk.fail(errno.EIO, "read", path="mine.tar" if bundle else "mine/dir/file-0")
            came = first + connection.rest()
        assert len(came) < len(whole) and whole.startswith(came)
        wait_for(lambda: len(archive.seen("GET", "mine-0")) == 2)
        site.disk.heal()
        site.cartd.wait_until("mine", "ready")
        assert site.cartd.get("/mine?filename=data.tar").body == whole
        assert "cannot be read on the volume: Input/output error" in site.cartd.log


@in_a_thread
def test_damaged_carts_on_a_broken_disk_are_logged_once(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    uids = [f"mine-{number}" for number in range(4)]
    with site_beside(tmp_path, archive) as site:
        for number, uid in enumerate(uids, 1):
            site.stage(uid)
            os.truncate(site.cartd.volume / str(number) / uid / "dir/file-0", 1)
        site.disk.fail(errno.EIO, *CHANGES)
        for uid in uids:
            answer = site.cartd.get(f"/{uid}?filename=data.tar")
            assert answer.status == 503
            assert b"is not writable (Input/output error)" in answer.body
            assert site.cartd.status(uid) == ("ready", "")
        assert site.cartd.log.count("The volume is not writable: Input/output error") == 1
        assert "restaging" not in site.cartd.log
        site.disk.heal()
        for uid in uids:
            assert site.cartd.get(f"/{uid}?filename=data.tar").status == 202
            site.cartd.wait_until(uid, "ready")
        site.is_right(*uids)
        assert site.cartd.log.count("The volume is writable again") == 1


@pytest.mark.parametrize("bundle", [False, True], ids=["a tree", "a bundle"])
@in_a_thread
def test_a_process_out_of_descriptors_recovers(
    archive: FaultyArchive, tmp_path: Path, bundle: bool
) -> None:
    with site_beside(tmp_path, archive) as site:
        site.stage("mine", bundle=bundle)
        site.disk.fail(errno.EMFILE, "read")
        answer = site.cartd.get("/mine?filename=data.tar")
        assert (answer.status, answer.headers["retry-after"]) == (503, "2")
        assert b"Too many open files (EMFILE)" in answer.body
        assert site.cartd.status("mine") == ("ready", "")
        site.disk.heal()
        site.is_right("mine")
        assert len(archive.seen("GET", "mine-0")) == 1


@pytest.mark.parametrize("half", [slice(3), slice(3, 6)], ids=["in place of a file", "above it"])
@in_a_thread
def test_whatever_is_planted_in_a_tree_gives_way(
    half: slice, archive: FaultyArchive, tmp_path: Path
) -> None:
    """The link is not followed, and foreign files on the volume are kept."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file-0").write_bytes(bytes(SIZE))
    with site_beside(tmp_path, archive) as site:
        theirs = [
            site.cartd.volume / path
            for path in ("notes", "7/mine/x", "cartuids/theirs", "incoming/theirs")
        ]
        for path in theirs:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("theirs")
        site.stage("mine")
        file = site.cartd.volume / "1" / "mine" / "dir" / "file-0"

        def directory() -> None:
            file.unlink()
            (file / "deep").mkdir(parents=True)
            (file / "deep" / "file").touch()

        def pipe() -> None:
            file.unlink()
            os.mkfifo(file)

        def link() -> None:
            file.unlink()
            file.symlink_to(precious / "file-0")

        def file_for_directory() -> None:
            file.unlink()
            file.parent.rmdir()
            file.parent.write_text("not a directory")

        def link_for_directory() -> None:
            file.unlink()
            file.parent.rmdir()
            file.parent.symlink_to(precious)
            (precious / "file-0").write_bytes(b"other")

        def file_for_tree() -> None:
            file.unlink()
            file.parent.rmdir()
            file.parent.parent.rmdir()
            file.parent.parent.write_text("not a tree")

        plants = [directory, pipe, link, file_for_directory, link_for_directory, file_for_tree]
        for number, plant in enumerate(plants[half]):
            plant()
            assert site.cartd.get("/mine").status == 202, plant
            wait_for(lambda times=number + 2: len(archive.seen("GET", "mine-0")) == times)
            site.cartd.wait_until("mine", "ready")
            site.is_right("mine")
        assert [path.name for path in precious.iterdir()] == ["file-0"]
        assert [path.read_text() for path in theirs] == ["theirs"] * len(theirs)
        assert on_the_volume(site.cartd) == {"1/mine/dir/file-0", "7/mine/x", "incoming/theirs"}


MANY = 12
LARGE_CARTS = [f"large-{number}" for number in range(16)]


@in_a_thread
def test_deleting_many_large_carts_delays_no_request(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    """Their removal hangs at the first files all the while."""
    archive.put("one", b"1")
    entries = [entry("one", f"{number // 10}/{number}", b"1") for number in range(MANY)]
    with site_beside(tmp_path, archive, SMALL_CART_FILES=MANY - 1) as site:
        cartd = site.cartd
        site.stage("kept", LARGE // 3)
        for uid in LARGE_CARTS:
            assert cartd.post(uid, manifest(entries)).status == 201
        for uid in LARGE_CARTS:
            cartd.wait_until(uid, "ready")
        whole = cartd.get("/kept?filename=data.tar").body
        site.disk.hold("unlink", path="/removed-")
        with wire(cartd.port, receive_buffer=64 * 1024) as connection:
            connection.get("/kept?filename=data.tar", "Connection: close")
            connection.head()
            came = connection.read(MIB)
            with ThreadPoolExecutor(len(LARGE_CARTS)) as clients:
                answers = list(clients.map(cartd.delete, LARGE_CARTS))
            assert {answer.status for answer in answers} == {200}
            wait_for(lambda: len(site.disk.waiting()) == CONCURRENCY)
            assert {cartd.get(f"/{uid}").status for uid in LARGE_CARTS} == {404}
            assert cartd.request("HEAD", "/kept").status == 204
            site.stage("new")
            site.is_right("new")
            assert came + connection.rest() == whole
        left = [path for path in on_the_volume(cartd) if not path.startswith("1/kept/")]
        assert len(left) == len(LARGE_CARTS) * MANY + 1
        assert len(site.disk.waiting()) == CONCURRENCY
        site.disk.heal()
        wait_for(lambda: len(on_the_volume(cartd)) == 2)
        site.is_right("new")
