"""A site of Pacifica Cartd is taken over by cartd: its database, its volume, its configuration."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import preloaded
from tests.support.archived_carts import in_a_thread, url_of
from tests.support.cartd_with_archive import assert_no_unexpected_errors, on_the_volume
from tests.support.faulty_archive import FaultyArchive
from tests.support.pacifica_schema import VERSIONS
from tests.support.pacifica_site import FILES, PacificaSite, data_of
from tests.support.running_cartd import DEADLINE, RunningCartd, running_cartd, unpacked, wait_for

pytest_plugins = ("tests.support.archive_fixtures",)

UIDS = ("tree", "bundle", "half", "tarring", "lost", "torn", "failed")


def files_of(uid: str) -> dict[str, bytes]:
    return {path: data_of(uid, path) for path in FILES}


def fetched(archive: FaultyArchive, uid: str) -> list[int]:
    return [len(archive.seen("GET", f"{uid}/{path}")) for path in FILES]


@pytest.mark.parametrize("version", VERSIONS)
@in_a_thread
def test_a_site_of_pacifica_keeps_carts_and_configuration(
    archive: FaultyArchive, tmp_path: Path, version: str
) -> None:
    site = PacificaSite(tmp_path / "site", version)
    for uid in UIDS:
        for path in FILES:
            archive.put(f"{uid}/{path}", data_of(uid, path))
    with running_cartd(
        site.volume.parent,
        archive="",
        ini=site.configuration(url_of(archive)),
        started=False,
        DATABASE_URL="",
        VOLUME_PATH="",
    ) as cartd:
        refuses_to_start(cartd, version)
        cartd.run("cartd-cmd", "dbsync")
        bundle = (site.volume / "2/bundle.tar").read_bytes()
        cartd.start()
        assert " ignored: cartd needs no broker" in cartd.log
        ready_carts_are_there_at_once(cartd, bundle)
        assert fetched(archive, "tree") == fetched(archive, "bundle") == [0, 0, 0]
        unfinished_carts_are_finished(cartd)
        assert fetched(archive, "half") == [0, 1, 1]
        assert fetched(archive, "tarring") == [0, 0, 0]
        lost_carts_are_staged_when_they_are_asked_for(cartd)
        assert fetched(archive, "lost") == fetched(archive, "torn") == [1, 1, 1]
        a_tar_that_is_written_anew_has_other_validators(cartd, site)
        assert cartd.status("failed") == ("error", "Failed to pull file(gone)")
        assert cartd.get("/failed").status == 500
        fixed = cartd.run("cartd-cmd", "fixit", "--cartid", "failed")
        assert fixed.stderr == "failed: ready\n"
        assert cartd.download("failed") == files_of("failed")
        assert fetched(archive, "failed") == [0, 1, 1]
        assert cartd.get("/deleted").status == 404
        status, message = cartd.status("unheard")
        assert status == "error"
        assert "post it again" in message
        bundles = (
            {"2/bundle", "6/torn"} if version == "0.1" else {"2/bundle", "4/tarring", "6/torn"}
        )
        carts = {f"{number}/{uid}" for number, uid in enumerate(UIDS, 1)}
        assert on_the_volume(cartd) == {
            *(f"{bundle}.tar" for bundle in bundles),
            *(f"{cart}/{path}" for cart in carts - bundles for path in FILES),
        }
        assert {path.name for path in (site.volume / "cartuids").iterdir()} == set(UIDS)
        assert cartd.terminate() == 0
        assert_no_unexpected_errors(cartd.log)


def refuses_to_start(cartd: RunningCartd, version: str) -> None:
    ended = preloaded.run(
        cartd.twistd,
        cwd=cartd.directory,
        env=cartd.settings(),
        timeout=DEADLINE,
    )
    assert ended.returncode == 1
    [line] = ended.stderr.splitlines()
    assert f"version {version}, older than 3.0" in line
    assert "cartd-cmd dbsync" in line


def ready_carts_are_there_at_once(cartd: RunningCartd, bundle: bytes) -> None:
    tree = cartd.get("/tree?filename=data.tar")
    assert (tree.status, unpacked(tree.body)) == (200, files_of("tree"))
    assert tree.headers["content-length"] == str(len(tree.body))
    part = cartd.get("/tree?filename=data.tar", range="bytes=600-")
    assert (part.status, part.body) == (206, tree.body[600:])
    whole = cartd.get("/bundle")
    assert (whole.status, whole.body) == (200, bundle)
    part = cartd.get("/bundle", range="bytes=600-", if_range=whole.headers["etag"])
    assert (part.status, part.body) == (206, bundle[600:])
    for uid in ("tree", "bundle"):
        size = str(sum(map(len, files_of(uid).values())))
        head = cartd.request("HEAD", f"/{uid}").headers
        assert head["x-pacifica-status"] == "ready"
        assert head["x-pacifica-files-staged"] == head["x-pacifica-files-total"] == "3"
        assert head["x-pacifica-bytes-staged"] == head["x-pacifica-bytes-total"] == size


def unfinished_carts_are_finished(cartd: RunningCartd) -> None:
    for uid in ("half", "tarring"):
        cartd.wait_until(uid, "ready")
        answer = cartd.get(f"/{uid}?filename=data.tar")
        assert unpacked(answer.body) == files_of(uid)


def lost_carts_are_staged_when_they_are_asked_for(cartd: RunningCartd) -> None:
    for uid in ("lost", "torn"):
        assert cartd.status(uid) == ("ready", "")
        assert cartd.get(f"/{uid}").status == 202
        cartd.wait_until(uid, "ready")
        assert cartd.download(uid) == files_of(uid)


def a_tar_that_is_written_anew_has_other_validators(
    cartd: RunningCartd, site: PacificaSite
) -> None:
    before = cartd.get("/bundle").headers
    (site.volume / "2/bundle.tar").unlink()
    assert cartd.get("/bundle").status == 202
    cartd.wait_until("bundle", "ready")
    after = cartd.get("/bundle")
    assert unpacked(after.body) == files_of("bundle")
    for name in ("etag", "last-modified"):
        assert after.headers[name] != before[name]


@contextmanager
def site_over_quota(directory: Path) -> Iterator[RunningCartd]:
    """A site with an upgraded database, whose carts exceed the quota."""
    site = PacificaSite(directory / "site", "2.0")
    ini = site.configuration("http://127.0.0.1:9/").replace(
        "[cartd]", "[cartd]\nvolume_quota = 3500\nlru_interval = 0.1"
    )
    with running_cartd(
        site.volume.parent, archive="", ini=ini, started=False, DATABASE_URL="", VOLUME_PATH=""
    ) as cartd:
        cartd.run("cartd-cmd", "dbsync")
        yield cartd


UNAVAILABLE_AT_FIRST = """
from cartd.errors import Unavailable
from cartd.store import Carts
from twisted.scripts.twistd import run

unmeasured = Carts.unmeasured

async def fail_once(self):
    Carts.unmeasured = unmeasured
    raise Unavailable("not measured")

Carts.unmeasured = fail_once
run()
"""


@in_a_thread
def test_carts_of_pacifica_are_measured_after_an_outage(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    with site_over_quota(tmp_path) as cartd:
        cartd.program = (sys.executable, "-c", UNAVAILABLE_AT_FIRST, *cartd.twistd[1:])
        cartd.start()
        wait_for(lambda: cartd.request("HEAD", "/failed").status == 404)
        assert "not measured; retrying every" in cartd.log
        assert cartd.terminate() == 0
        assert_no_unexpected_errors(cartd.log)


@in_a_thread
def test_carts_of_pacifica_are_evicted_like_others(archive: FaultyArchive, tmp_path: Path) -> None:
    with site_over_quota(tmp_path) as cartd:
        whole = cartd.run("cartd-cmd", "fixit", "--cartid", "tree", "bundle")
        assert whole.stderr == "tree: ready, nothing to fix\nbundle: ready, nothing to fix\n"
        cartd.start()
        # Only the tree fits: the carts used before are evicted, in error or not.
        wait_for(lambda: cartd.request("HEAD", "/bundle").status == 404)
        wait_for(lambda: cartd.request("HEAD", "/failed").status == 404)
        assert cartd.request("HEAD", "/tree").status == 204
