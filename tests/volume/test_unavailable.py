"""A volume that becomes unavailable while the service runs: nothing is lost, written or deleted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from twisted.internet import reactor as _reactor

from tests.support.archive_faults import hang_before_head
from tests.support.archived_carts import content, in_a_thread, manifest_of, stage, url_of
from tests.support.cartd_with_archive import assert_no_unexpected_errors
from tests.support.databases import sqlite_url
from tests.support.faulty_archive import FaultyArchive
from tests.support.running_cartd import RunningCartd, running_cartd, wait_for
from tests.support.volume_parts import everything

pytest_plugins = ("tests.support.archive_fixtures",)

reactor: Any = _reactor
OFTEN = "[cartd]\nlru_interval = 0.1\nvolume_reserve = 0\n"
GONE = "volume is unavailable"
BACK = "volume is available again"
SIZE = 3000


@contextmanager
def running(directory: Path, archive: FaultyArchive) -> Iterator[RunningCartd]:
    with running_cartd(directory / "cartd", archive=url_of(archive), ini=OFTEN) as cartd:
        yield cartd
        assert cartd.terminate() == 0
        assert_no_unexpected_errors(cartd.log)


@contextmanager
def unavailable_volume(cartd: RunningCartd) -> Iterator[None]:
    """Replace the volume by an empty directory, like an unmounted mount point, during the block."""
    elsewhere = cartd.volume.with_name("elsewhere")
    cartd.volume.rename(elsewhere)
    cartd.volume.mkdir()
    yield
    assert everything(cartd.volume) == set()
    cartd.volume.rmdir()
    elsewhere.rename(cartd.volume)


def files(uid: str, number: int = 3) -> dict[str, bytes]:
    return {f"dir/file-{n}": content(f"{uid}-{n}", SIZE // number) for n in range(number)}


@in_a_thread
def test_an_unavailable_volume_does_not_damage_a_cart(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    with running(tmp_path, archive) as cartd:
        stage(cartd, archive, "tree", SIZE, files=3)
        stage(cartd, archive, "tar", SIZE, files=3, bundle=True)
        with unavailable_volume(cartd):
            for _ in range(2):
                for uid in ("tree", "tar"):
                    answer = cartd.get(f"/{uid}")
                    assert answer.status == 503
                    assert "retry-after" in answer.headers
                    assert "mounted" in answer.json["message"]
                    assert cartd.status(uid) == ("ready", "")
            assert cartd.log.count(GONE) == 1
        asked = len(archive.requests)
        for uid in ("tree", "tar"):
            assert cartd.download(uid) == files(uid)
        wait_for(lambda: BACK in cartd.log)
        assert (cartd.log.count(GONE), cartd.log.count(BACK)) == (1, 1)
        assert len(archive.requests) == asked
        assert "restaging" not in cartd.log


@in_a_thread
def test_staging_resumes_when_the_volume_is_back(archive: FaultyArchive, tmp_path: Path) -> None:
    with running(tmp_path, archive) as cartd:
        body = manifest_of(archive, "mine", SIZE, files=3)
        archive.fault("mine-2", hang_before_head(), method="GET")
        assert cartd.post("mine", body).status == 201
        wait_for(lambda: cartd.staged("mine") == 2)
        with unavailable_volume(cartd):
            reactor.callFromThread(archive.drop_connections)
            wait_for(lambda: GONE in cartd.log)
            assert cartd.status("mine") == ("staging", "")
            # Carts that are posted meanwhile are accepted, too.
            stage_later = manifest_of(archive, "later", SIZE, files=3, bundle=True)
            assert cartd.post("later", stage_later).status == 201
            assert cartd.get("/later").status == 202
        for uid in ("mine", "later"):
            cartd.wait_until(uid, "ready")
            assert cartd.download(uid) == files(uid)
        assert [len(archive.seen("GET", f"mine-{n}")) for n in range(2)] == [1, 1]
        assert cartd.log.count(GONE) == 1


@in_a_thread
def test_deletions_are_finished_when_the_volume_is_back(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    with running(tmp_path, archive) as cartd:
        stage(cartd, archive, "mine", SIZE)
        stage(cartd, archive, "other", SIZE)
        with unavailable_volume(cartd):
            assert cartd.delete("mine").status == 200
            assert cartd.get("/mine").status == 404
            wait_for(lambda: GONE in cartd.log)
        wait_for(lambda: not (cartd.volume / "1").exists())
        assert cartd.get("/other").status == 200


@in_a_thread
def test_a_command_refuses_a_foreign_volume_until_it_is_bound(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    with running(tmp_path, archive) as cartd:
        stage(cartd, archive, "mine", SIZE)
        cartd.terminate()
        cartd.volume.rename(cartd.volume.with_name("elsewhere"))
        cartd.volume.mkdir()
        done = cartd.run("cartd-cmd", "purge", "--time-ago", "0 days ago", check=False)
        assert done.returncode == 1
        assert "is it mounted?" in done.stderr and done.stderr.count("\n") == 1
        assert everything(cartd.volume) == set()
        bound = cartd.run("cartd-cmd", "bind-volume")
        assert bound.stdout == f"{cartd.volume} is the volume of this database.\n"
        cartd.start()
        assert cartd.get("/mine").status == 202
        cartd.wait_until("mine", "ready")
        assert cartd.download("mine") == {"dir/file-0": content("mine-0", SIZE)}


@in_a_thread
def test_a_service_does_not_start_beside_its_volume(archive: FaultyArchive, tmp_path: Path) -> None:
    with running(tmp_path, archive) as cartd:
        stage(cartd, archive, "mine", SIZE)
        cartd.terminate()
        with unavailable_volume(cartd):
            done = cartd.run("twistd", *cartd.twistd[1:], check=False)
            assert done.returncode == 1
            assert done.stderr.startswith("cartd: volume_path: ")
            assert "is it mounted?" in done.stderr and done.stderr.count("\n") == 1
        database = cartd.database
        cartd.database = sqlite_url(tmp_path / "another.sqlite3")
        done = cartd.run("twistd", *cartd.twistd[1:], check=False)
        assert done.returncode == 1 and "carts of another database" in done.stderr
        cartd.database = database
        cartd.start()
        assert cartd.get("/mine").status == 200
